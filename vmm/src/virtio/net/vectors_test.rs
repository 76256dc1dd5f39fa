#![allow(clippy::cast_possible_truncation, reason = "sizes a test chose")]
use super::*;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

const END: u64 = 0x1_0000;

fn memory() -> Arc<GuestMemoryMmap> {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), END as usize)]).unwrap();
    let bytes: Vec<u8> = (0..END).map(|place| (place % 251) as u8).collect();
    memory.write_slice(&bytes, GuestAddress(0)).unwrap();
    Arc::new(memory)
}

fn segments(parts: &[(u64, u32)]) -> Vec<Segment> {
    parts.iter().map(|(address, length)| Segment { addr: GuestAddress(*address), len: *length }).collect()
}

/// The content, as a system call sees it.
fn content(vectors: &mut Vectors) -> Vec<u8> {
    let mut bytes = Vec::new();
    while vectors.len() > 0 {
        let mut byte = [0];
        assert!(vectors.take(&mut byte));
        bytes.extend(byte);
    }
    bytes
}

#[test]
fn chains_follow_one_another_and_go_from_the_front() {
    let mut vectors = Vectors::new(&memory());
    assert_eq!(vectors.append(&segments(&[(0, 3), (10, 0), (20, 2)])), Ok((2, 5)));
    assert_eq!(vectors.append(&segments(&[(100, 4)])), Ok((1, 4)));
    vectors.drop_front(2);
    assert_eq!(content(&mut vectors), [100, 101, 102, 103]);
}

#[test]
fn an_unfit_chain_leaves_nothing_behind() {
    let mut vectors = Vectors::new(&memory());
    vectors.append(&segments(&[(0, 3)])).unwrap();
    assert_eq!(vectors.append(&segments(&[(8, 8), (END - 1, 2)])), Err(Unfit));
    assert_eq!(vectors.append(&segments(&[(u64::MAX, u32::MAX)])), Err(Unfit));
    assert_eq!(vectors.append(&segments(&[(0, 1); MAX_CHAIN_VECTORS + 1])), Err(Unfit));
    assert_eq!(vectors.append(&segments(&[(0, 0); 65_535])), Err(Unfit));
    assert_eq!(content(&mut vectors), [0, 1, 2]);
}

#[test]
fn bytes_are_put_across_vectors_and_not_beyond() {
    let memory = memory();
    let mut vectors = Vectors::new(&memory);
    vectors.append(&segments(&[(0, 2), (10, 1), (20, 2)])).unwrap();
    vectors.put(1, &[0xff; 9]);
    let mut bytes = [0; 23];
    memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
    let changed: Vec<_> = (0..23).filter(|place| bytes[*place] == 0xff).collect();
    assert_eq!(changed, [1, 10, 20, 21]);
}

#[test]
fn a_first_vector_goes_before_what_is_left() {
    for header in [&[(0, 30)][..], &[(0, 12), (12, 18)], &[(0, 1), (1, 11), (12, 3), (15, 15)]] {
        let mut vectors = Vectors::new(&memory());
        vectors.append(&segments(header)).unwrap();
        let mut bytes = [0; 12];
        assert!(vectors.take(&mut bytes));
        assert_eq!(bytes, std::array::from_fn(|place| place as u8));
        let first = libc::iovec { iov_base: std::ptr::dangling_mut::<u8>().cast(), iov_len: 7 };
        let lengths =
            vectors.preceded_by(first, |list| list.iter().map(|vector| vector.iov_len).collect::<Vec<_>>());
        assert_eq!((lengths[0], lengths[1..].iter().sum::<usize>()), (7, 18));
    }
}

#[test]
fn the_list_does_not_grow_with_the_packets() {
    let mut vectors = Vectors::new(&memory());
    let capacity = vectors.list.capacity();
    vectors.append(&segments(&[(0, 1)])).unwrap();
    for _ in 0..10 * MAX_VECTORS {
        vectors.append(&segments(&[(0, 1), (1, 1)])).unwrap();
        vectors.drop_front(2);
        assert_eq!(vectors.len(), 1);
    }
    assert_eq!(vectors.list.capacity(), capacity);
}

proptest! {
    /// Whatever a chain names, the vectors lie in the guest's memory.
    #[test]
    fn vectors_stay_in_memory(
        parts in prop::collection::vec((prop_oneof![0..END + 64, any::<u64>()], prop_oneof![0..3000u32, any::<u32>()]), 0..20),
    ) {
        let memory = memory();
        let mut vectors = Vectors::new(&memory);
        let fits = parts.iter().all(|(address, length)| *length > 0 && address.checked_add((*length).into()).is_some_and(|end| end <= END));
        let appended = vectors.append(&segments(&parts));
        prop_assert!(!fits || appended.is_ok());
        if let Ok((count, bytes)) = appended {
            prop_assert_eq!(count, vectors.len());
            prop_assert_eq!(bytes, parts.iter().map(|(_, length)| *length as usize).sum::<usize>());
            let base = memory.get_host_address(GuestAddress(0)).unwrap().addr();
            for vector in &vectors.list {
                let start = vector.iov_base.addr();
                prop_assert!(start >= base && start + vector.iov_len <= base + END as usize);
            }
        } else {
            prop_assert_eq!(vectors.len(), 0);
        }
    }
}
