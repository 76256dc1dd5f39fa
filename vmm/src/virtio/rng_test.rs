use super::*;
use crate::virtio::guest::{DATA, Guest, MEMORY_END};

#[test]
fn every_buffer_is_filled_whatever_its_shape() {
    let mut guest = Guest::new(&mut Rng);
    assert_eq!(guest.run(&mut Rng, 0, &[(DATA, 32, true), (DATA + 0x1000, 32, true)]).unwrap(), 64);
    let (first, second) = (guest.bytes(DATA, 32), guest.bytes(DATA + 0x1000, 32));
    assert!(first != [0; 32] && second != [0; 32] && first != second);
    assert_eq!(guest.bytes(DATA + 32, 8), [0; 8], "written beyond the buffer");
    assert_eq!(guest.line.read().unwrap(), 1, "the driver was not told");
}

#[test]
fn a_huge_request_gets_a_part_and_an_empty_one_nothing() {
    let mut guest = Guest::new(&mut Rng);
    assert_eq!(guest.run(&mut Rng, 0, &[(DATA, 1 << 20, true)]).unwrap(), 4096);
    assert_eq!(guest.run(&mut Rng, 0, &[(DATA, 64, false)]).unwrap(), 0);
}

#[test]
fn memory_the_guest_has_not_ends_it() {
    let mut guest = Guest::new(&mut Rng);
    let error = guest.run(&mut Rng, 0, &[(MEMORY_END - 8, 16, true)]).unwrap_err();
    assert!(matches!(error, DeviceError::Driver(_)), "{error}");
}

#[test]
fn a_driver_that_never_stops_asking_leaves_others_their_turn() {
    let mut guest = Guest::new(&mut Rng);
    for _ in 0..8 {
        guest.offer(0, &[(DATA, 8, true)]);
    }
    guest.queues.limit_chains(3);
    Rng.notified(0, &mut guest.queues).unwrap();
    assert_eq!((guest.used(0), guest.queues.take_unfinished()), (3, vec![0]));
    guest.queues.limit_chains(100);
    Rng.notified(0, &mut guest.queues).unwrap();
    assert_eq!((guest.used(0), guest.queues.take_unfinished()), (8, vec![]));
}
