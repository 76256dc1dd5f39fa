use super::*;
use proptest::prelude::*;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use virtio_queue::desc::split::Descriptor;
use vm_memory::Bytes;

/// Guest memory of two regions that touch.
fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000), (GuestAddress(0x10000), 0x10000)]).unwrap()
}

/// A buffer in pieces of these sizes, with a gap between each.
fn buffer<'a>(memory: &'a GuestMemoryMmap, sizes: &[usize]) -> Buffer<'a> {
    let mut at = 0;
    let last = sizes.len().saturating_sub(1);
    let descriptors = sizes.iter().enumerate().map(|(number, size)| {
        let descriptor = Descriptor::new(at, u32::try_from(*size).unwrap(), u16::from(number < last), 0);
        at += *size as u64 + 3;
        descriptor
    });
    let mut chain = Chain::default();
    chain.read(memory, 0, descriptors, 256).unwrap();
    Buffer::of(memory, &chain).0
}

fn bytes(buffer: &Buffer<'_>) -> Vec<u8> {
    let mut queue = VecDeque::new();
    buffer.clone().append_to(&mut queue);
    queue.into()
}

#[test]
fn a_descriptor_may_span_regions() {
    let memory = memory();
    memory.write_slice(b"across", GuestAddress(0xfffd)).unwrap();
    let mut chain = Chain::default();
    chain.read(&memory, 0, [Descriptor::new(0xfffd, 6, 0, 0)].into_iter(), 1).unwrap();
    let (buffer, _) = Buffer::of(&memory, &chain);
    assert_eq!(bytes(&buffer), b"across");
}

#[test]
fn more_than_there_is_cannot_be_split_off() {
    let memory = memory();
    assert!(buffer(&memory, &[40, 3]).split_at(44).is_none());
    let (head, tail) = buffer(&memory, &[40, 4]).split_at(44).unwrap();
    assert_eq!((head.len(), tail.len()), (44, 0));
}

#[test]
fn more_than_there_is_is_not_copied() {
    let memory = memory();
    assert_eq!(buffer(&memory, &[3, 2]).copy_from(b"longer than that"), 5);
    let mut copy = [0; 16];
    assert_eq!(buffer(&memory, &[3, 2]).copy_to(&mut copy), 5);
    assert_eq!(&copy[..5], b"longe");
}

#[test]
fn more_slices_than_one_call_takes_go_through() {
    let memory = memory();
    let descriptors = (0..1536_u16).map(|number| Descriptor::new(u64::from(number) * 8, 1, 1, 0));
    let last = Descriptor::new(0x1_8000, 1, 0, 0);
    let mut chain = Chain::default();
    chain.read(&memory, 0, descriptors.chain([last]), 2048).unwrap();
    let content: Vec<u8> = (0..1537_u16).map(|number| number.to_le_bytes()[0]).collect();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[&[0xff; 3], content.as_slice()].concat()).unwrap();
    Buffer::of(&memory, &chain).0.read_from(&file, 3).unwrap();
    assert_eq!(bytes(&Buffer::of(&memory, &chain).0), content);
    assert_eq!(memory.read_obj::<[u8; 2]>(GuestAddress(0)).unwrap(), [0, 0], "written beside a buffer");
    Buffer::of(&memory, &chain).0.write_to(&file, 2000).unwrap();
    let mut copy = vec![0; 1537];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut copy, 2000).unwrap();
    assert_eq!(copy, content);
    let beyond = Buffer::of(&memory, &chain).0.read_from(&file, 3000).unwrap_err();
    assert_eq!(beyond.kind(), io::ErrorKind::UnexpectedEof);
}

proptest! {
    /// However a packet is cut, its header and its payload come out whole, and go in whole.
    #[test]
    fn cuts_do_not_matter(
        sizes in prop::collection::vec(0_usize..60, 1..20),
        payload in prop::collection::vec(any::<u8>(), 0..300),
        room in 0_usize..400,
    ) {
        const HEADER_LEN: usize = 44;
        let header: [u8; HEADER_LEN] = std::array::from_fn(|i| u8::try_from(i).unwrap());
        let memory = memory();
        let total: usize = sizes.iter().sum();
        let Some((head, mut body)) = buffer(&memory, &sizes).split_at(HEADER_LEN) else {
            prop_assert!(total < HEADER_LEN);
            return Ok(());
        };
        prop_assert_eq!(body.len(), total - HEADER_LEN);
        prop_assert_eq!(head.copy_from(&header), HEADER_LEN);
        body.truncate(room);
        prop_assert_eq!(body.len(), room.min(total - HEADER_LEN));
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(&payload).unwrap();
        drop(ours);
        // The first of the empty is the end of file, as there is no room for anything else.
        let received = body.receive(theirs.as_fd()).unwrap();
        prop_assert_eq!(received, payload.len().min(body.len()));

        let mut packet = buffer(&memory, &sizes);
        let mut copy = [0; HEADER_LEN];
        prop_assert_eq!(packet.copy_to(&mut copy), HEADER_LEN);
        prop_assert_eq!(copy, header);
        packet.skip(HEADER_LEN);
        packet.truncate(received);
        prop_assert_eq!(bytes(&packet), &payload[..received]);
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        prop_assert_eq!(packet.send(theirs.as_fd()).unwrap(), received);
        let skipped = received / 2;
        packet.skip(skipped);
        prop_assert_eq!(packet.send(theirs.as_fd()).unwrap(), received - skipped);
        drop(theirs);
        let mut sent = Vec::new();
        ours.read_to_end(&mut sent).unwrap();
        prop_assert_eq!(sent, [&payload[..received], &payload[skipped..received]].concat());
    }
}

#[test]
fn a_full_socket_would_block_and_a_closed_one_fails() {
    let memory = memory();
    let all = buffer(&memory, &[0x8000]);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let full = std::iter::repeat_with(|| all.send(theirs.as_fd())).find_map(Result::err).unwrap();
    assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
    drop(ours);
    assert!(all.send(theirs.as_fd()).is_err());
}
