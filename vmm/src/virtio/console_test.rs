use super::*;
use crate::virtio::guest::{DATA, Guest};
use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use std::os::fd::OwnedFd;

fn pipe() -> (File, File) {
    let (reader, writer): (OwnedFd, OwnedFd) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).unwrap();
    (reader.into(), writer.into())
}

#[test]
fn what_the_guest_prints_comes_out_in_order() {
    let (mut reader, writer) = pipe();
    let output = Output::new(Box::new(writer));
    let mut console = Console::new(output.clone(), None);
    let mut guest = Guest::new(&mut console);
    guest.put(DATA, b"one two\n");
    guest.put(DATA + 0x1000, b"three");
    let chain = [(DATA, 4, false), (DATA + 4, 4, false), (DATA + 0x1000, 5, false)];
    assert_eq!(guest.run(&mut console, TRANSMIT, &chain).unwrap(), 0);
    let mut text = [0; 64];
    let count = reader.read(&mut text).unwrap();
    assert_eq!(&text[..count], b"one two\nthree");
    assert_eq!(output.tail(), ["one two", "three"]);
}

#[test]
fn a_chain_longer_than_any_console_writes_is_cut_off() {
    let mut console = Console::new(Output::new(Box::new(CountTo(MAX_CHAIN))), None);
    let mut guest = Guest::new(&mut console);
    guest.run(&mut console, TRANSMIT, &[(DATA, 1 << 20, false)]).unwrap();
}

struct CountTo(usize);

impl Write for CountTo {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = self.0.checked_sub(bytes.len()).expect("more was printed");
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn what_is_typed_waits_for_room_and_loses_nothing() {
    let (reader, mut writer) = pipe();
    let mut console = Console::new(Output::new(Box::new(io::sink())), Some(reader));
    let mut guest = Guest::new(&mut console);
    writer.write_all(b"typed ahead").unwrap();
    console.ready(INPUT, EventSet::IN, &mut guest.queues).unwrap();
    assert_eq!(guest.used(RECEIVE), 0);

    assert_eq!(guest.run(&mut console, RECEIVE, &[(DATA, 6, true)]).unwrap(), 6);
    assert_eq!(guest.run(&mut console, RECEIVE, &[(DATA + 6, 4, true), (DATA + 10, 9, true)]).unwrap(), 5);
    assert_eq!(guest.bytes(DATA, 11), b"typed ahead");

    // Nothing is left: the next buffer stays with the device until something comes.
    guest.offer(RECEIVE, &[(DATA, 16, true)]);
    console.notified(RECEIVE, &mut guest.queues).unwrap();
    assert_eq!(guest.used(RECEIVE), 2);
    writer.write_all(b"!").unwrap();
    console.ready(INPUT, EventSet::IN, &mut guest.queues).unwrap();
    assert_eq!((guest.used(RECEIVE), guest.bytes(DATA, 1)), (3, b"!".to_vec()));
}

#[test]
fn the_end_of_the_input_is_not_the_end_of_the_console() {
    let (reader, writer) = pipe();
    let mut console = Console::new(Output::new(Box::new(io::sink())), Some(reader));
    let mut guest = Guest::new(&mut console);
    drop(writer);
    guest.offer(RECEIVE, &[(DATA, 16, true)]);
    console.ready(INPUT, EventSet::IN | EventSet::HANG_UP, &mut guest.queues).unwrap();
    assert_eq!(guest.used(RECEIVE), 0);
    guest.run(&mut console, TRANSMIT, &[(DATA, 4, false)]).unwrap();
}
