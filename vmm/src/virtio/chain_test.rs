use super::*;
use crate::virtio::guest::{DATA, Guest, MEMORY_END, SIZE};
use crate::virtio::rng::Rng;
use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

/// Guest memory of two regions that touch.
fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000), (GuestAddress(0x1_0000), 0x1_0000)]).unwrap()
}

/// The chain of `parts`: address, length, whether the device writes it.
fn read(parts: &[(u64, u32, bool)]) -> Result<Chain, DeviceError> {
    let descriptors = parts.iter().enumerate().map(|(number, (addr, len, write))| {
        let next = if number + 1 < parts.len() { VRING_DESC_F_NEXT } else { 0 };
        let flags = next | if *write { VRING_DESC_F_WRITE } else { 0 };
        Descriptor::new(*addr, *len, flags.try_into().unwrap(), 0)
    });
    let mut chain = Chain::default();
    chain.read(&memory(), 7, descriptors, SIZE).map(|()| chain)
}

#[track_caller]
fn refused(chain: Result<Chain, DeviceError>, reason: &str) {
    let error = chain.unwrap_err();
    assert!(matches!(error, DeviceError::Driver(_)), "{error}");
    assert!(error.to_string().contains(reason), "{error}");
}

fn segment(addr: u64, len: u32) -> Segment {
    Segment { addr: GuestAddress(addr), len }
}

#[test]
fn a_chain_has_what_is_read_and_then_what_is_written() {
    let chain = read(&[(0, 16, false), (0x100, 8, false), (0x200, 4, true)]).unwrap();
    assert_eq!(chain.head_index(), 7);
    assert_eq!(chain.readable, [segment(0, 16), segment(0x100, 8)]);
    assert_eq!(chain.writable, [segment(0x200, 4)]);
}

#[test]
fn a_descriptor_over_two_regions_is_two_segments_and_an_empty_one_is_none() {
    let chain = read(&[(0xfffd, 6, false), (u64::MAX, 0, false)]).unwrap();
    assert_eq!(chain.readable, [segment(0xfffd, 3), segment(0x1_0000, 3)]);
}

#[test]
fn memory_the_guest_has_not_is_refused_whole() {
    let reason = "a descriptor outside of memory";
    refused(read(&[(0, 100, false), (0x1_fff0, 100, false), (0, 100, false)]), reason);
    refused(read(&[(0x2_0000, 1, true)]), reason);
    refused(read(&[(u64::MAX, 2, false)]), reason);
}

#[test]
fn what_is_read_after_what_is_written_is_refused() {
    refused(read(&[(0, 1, true), (0, 1, false)]), "a device-readable descriptor after a device-writable one");
}

#[test]
fn a_chain_is_as_long_as_its_queue_at_most() {
    let parts = vec![(0, 1, false); usize::from(SIZE)];
    read(&parts).unwrap();
    let longer = vec![(0, 1, false); usize::from(SIZE) + 1];
    refused(read(&longer), "a descriptor chain longer than its queue");
}

#[test]
fn a_chain_that_is_cut_off_is_refused() {
    let next = VRING_DESC_F_NEXT.try_into().unwrap();
    let cut = [Descriptor::new(0, 1, next, 1)];
    let mut chain = Chain::default();
    let cut = chain.read(&memory(), 0, cut.into_iter(), SIZE).map(|()| chain);
    refused(cut, "a descriptor chain without an end");
    refused(read(&[]), "a descriptor chain without an end");
}

#[test]
fn an_indirect_table_is_as_long_as_the_queue_at_most() {
    let mut guest = Guest::new(&mut Rng);
    let table = MEMORY_END - 0x10_0000;
    guest.offer_indirect(0, table, &vec![(DATA, 1, true); usize::from(SIZE)]);
    guest.queues.pop(0).unwrap().unwrap();
    // 65,535 is the longest table that the ring's parser lets pass.
    for length in [usize::from(SIZE) + 1, 65_535] {
        guest.offer_indirect(0, table, &vec![(DATA, 1, true); length]);
        let error = guest.queues.pop(0).unwrap_err();
        assert!(error.to_string().contains("a descriptor chain longer than its queue"), "{error}");
    }
}
