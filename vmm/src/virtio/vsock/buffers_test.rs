use super::*;
use proptest::prelude::*;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Guest memory of two regions that touch.
fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000), (GuestAddress(0x10000), 0x10000)]).unwrap()
}

/// Buffers of these sizes, with a gap between each, and their bytes in order.
fn buffers<'a>(memory: &'a GuestMemoryMmap, sizes: &[usize]) -> Buffers<'a, MS<'a, GuestMemoryMmap>> {
    let mut at = 0;
    let descriptors = sizes.iter().map(|size| {
        let descriptor = Descriptor::new(at, u32::try_from(*size).unwrap(), 0, 0);
        at += *size as u64 + 3;
        descriptor
    });
    collect(memory, descriptors)
}

fn bytes(buffers: &Buffers<'_, MS<'_, GuestMemoryMmap>>) -> Vec<u8> {
    let mut outbox = VecDeque::new();
    buffers.append_to(&mut outbox);
    outbox.into()
}

fn header() -> Header {
    Header::from_bytes(&std::array::from_fn(|i| u8::try_from(i).unwrap()))
}

#[test]
fn memory_the_guest_has_not_ends_the_buffers() {
    let memory = memory();
    let descriptors = [(0, 100), (0x1fff0, 100), (0, 100)];
    let collected = collect(&memory, descriptors.into_iter().map(|(at, len)| Descriptor::new(at, len, 0, 0)));
    assert_eq!(collected.len(), 100 + 0x10);
    assert_eq!(collect(&memory, [Descriptor::new(u64::MAX, 2, 0, 0)].into_iter()).len(), 0);
}

#[test]
fn a_descriptor_may_span_regions() {
    let memory = memory();
    memory.write_slice(b"across", GuestAddress(0xfffd)).unwrap();
    let collected = collect(&memory, [Descriptor::new(0xfffd, 6, 0, 0)].into_iter());
    assert_eq!(bytes(&collected), b"across");
}

#[test]
fn an_endless_chain_is_cut() {
    let memory = memory();
    let collected = collect(&memory, (0..65535).map(|_| Descriptor::new(0, 0x10000, 0, 0)));
    assert_eq!(collected.slices.len(), MAX_SLICES);
}

#[test]
fn less_than_a_header_is_none() {
    let memory = memory();
    assert!(buffers(&memory, &[40, 3]).take_header().is_none());
    assert!(buffers(&memory, &[40, 4]).split_head().is_none());
    assert!(buffers(&memory, &[]).split_head().is_none());
}

proptest! {
    /// However a packet is cut, its header and its payload come out whole, and go in whole.
    #[test]
    fn cuts_do_not_matter(
        sizes in prop::collection::vec(0_usize..60, 1..20),
        payload in prop::collection::vec(any::<u8>(), 0..300),
        room in 0_usize..400,
    ) {
        let memory = memory();
        let total: usize = sizes.iter().sum();
        let Some((head, mut body)) = buffers(&memory, &sizes).split_head() else {
            prop_assert!(total <= HEADER_LEN);
            return Ok(());
        };
        prop_assert_eq!(body.len(), total - HEADER_LEN);
        head.put_header(header());
        body.truncate(room);
        prop_assert_eq!(body.len(), room.min(total - HEADER_LEN));
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(&payload).unwrap();
        drop(ours);
        // The first of the empty is the end of file, as there is no room for anything else.
        let received = body.receive(theirs.as_fd()).unwrap();
        prop_assert_eq!(received, payload.len().min(body.len()));

        let mut packet = buffers(&memory, &sizes);
        prop_assert_eq!(packet.take_header(), Some(header()));
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
    let all = buffers(&memory, &[0x8000]);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let full = std::iter::repeat_with(|| all.send(theirs.as_fd())).find_map(Result::err).unwrap();
    assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
    drop(ours);
    assert!(all.send(theirs.as_fd()).is_err());
}
