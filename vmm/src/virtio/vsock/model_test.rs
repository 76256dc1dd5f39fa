//! An honest guest and an honest host under any schedule: nothing is lost, doubled or out of order, and every end arrives.

use super::credit::BUFFER;
use super::guest::{ACCEPTED, Guest, WINDOW, data, packet, shutdown};
use super::packet::{Header, Op, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use proptest::collection::vec;
use proptest::prelude::*;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

const PORT: u32 = 2000;

#[derive(Debug, Clone, Copy)]
enum Step {
    GuestSends(usize),
    /// The guest's application takes this much out of its buffer.
    GuestTakes(u32),
    GuestShuts,
    GuestOffers(usize),
    HostWrites(usize),
    HostReads(usize),
    HostShuts,
    DeviceRuns,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => (1..65_000_usize).prop_map(Step::GuestSends),
        10 => (1..200_000_u32).prop_map(Step::GuestTakes),
        1 => Just(Step::GuestShuts),
        10 => (1..30_usize).prop_map(Step::GuestOffers),
        10 => (1..100_000_usize).prop_map(Step::HostWrites),
        10 => (1..300_000_usize).prop_map(Step::HostReads),
        1 => Just(Step::HostShuts),
        10 => Just(Step::DeviceRuns),
    ]
}

/// Byte `at` of either stream.
fn bytes(at: usize, len: usize) -> Vec<u8> {
    (at..at + len).map(|i| u8::try_from((i * 31 + i / 251) % 256).unwrap()).collect()
}

/// One direction: what went in, what came out, and whether each end has ended.
#[derive(Default)]
struct Stream {
    sent: usize,
    shut: bool,
    received: usize,
    ended: bool,
}

impl Stream {
    fn receive(&mut self, got: &[u8]) {
        assert!(!self.ended, "data after the end");
        assert_eq!(got, bytes(self.received, got.len()), "at {}", self.received);
        self.received += got.len();
        assert!(self.received <= self.sent);
    }

    fn end(&mut self) {
        assert!(self.shut, "an end nobody made");
        assert_eq!(self.received, self.sent, "the end before the last byte");
        self.ended = true;
    }
}

struct Model {
    guest: Guest,
    host: UnixStream,
    to_host: Stream,
    to_guest: Stream,
    /// What the device said it passed on, and what the guest's application has taken.
    forwarded: u32,
    taken: u32,
    /// The guest has room for so many receive buffers.
    room: usize,
    both_told: bool,
}

impl Model {
    fn new() -> Self {
        let mut guest = Guest::new();
        guest.offer(2);
        let host = guest.connect(PORT);
        host.set_nonblocking(true).unwrap();
        let (to_host, to_guest) = (Stream::default(), Stream::default());
        Self { guest, host, to_host, to_guest, forwarded: 0, taken: 0, room: 127, both_told: false }
    }

    fn header(&self, header: Header) -> Header {
        Header { fwd_cnt: self.taken, ..header }
    }

    fn perform(&mut self, step: Step) {
        match step {
            Step::GuestSends(len) => {
                let credit = BUFFER as usize - (self.to_host.sent - self.forwarded as usize);
                let payload = bytes(self.to_host.sent, len.min(credit));
                if !self.to_host.shut && !payload.is_empty() {
                    self.to_host.sent += payload.len();
                    let header = self.header(data(PORT, ACCEPTED, &payload));
                    self.guest.send(header, &payload);
                }
            }
            Step::GuestTakes(len) => {
                let held = u32::try_from(self.to_guest.received).unwrap() - self.taken;
                self.taken += len.min(held);
                if !self.both_told {
                    let header = self.header(packet(PORT, ACCEPTED, Op::CreditUpdate));
                    self.guest.send(header, &[]);
                }
            }
            Step::GuestShuts => {
                if !self.to_host.shut && !self.both_told {
                    self.to_host.shut = true;
                    let header = self.header(shutdown(PORT, ACCEPTED, SHUTDOWN_SEND));
                    self.guest.send(header, &[]);
                }
            }
            Step::GuestOffers(count) => {
                let count = count.min(self.room);
                self.room -= count;
                self.guest.offer(count);
            }
            Step::HostWrites(len) => {
                if !self.to_guest.shut {
                    match self.host.write(&bytes(self.to_guest.sent, len)) {
                        Ok(written) => self.to_guest.sent += written,
                        Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                    }
                }
            }
            Step::HostReads(len) => {
                let mut buffer = vec![0; len];
                match self.host.read(&mut buffer) {
                    Ok(0) => self.to_host.end(),
                    Ok(read) => self.to_host.receive(&buffer[..read]),
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                }
            }
            Step::HostShuts => {
                self.to_guest.shut = true;
                self.host.shutdown(Shutdown::Write).unwrap();
            }
            Step::DeviceRuns => {}
        }
        self.run();
    }

    fn run(&mut self) {
        for (header, payload) in self.guest.receive() {
            self.room += 1;
            self.forwarded = header.fwd_cnt;
            match Op::from_wire(header.op).unwrap() {
                Op::Data => self.to_guest.receive(&payload),
                Op::Shutdown => {
                    if header.flags & SHUTDOWN_SEND != 0 && !self.to_guest.ended {
                        self.to_guest.end();
                    }
                    // The host never refuses: it is told only when both directions are over.
                    self.both_told = header.flags & SHUTDOWN_RECEIVE != 0;
                    assert!(!self.both_told || (self.to_guest.ended && self.to_host.shut));
                }
                Op::CreditUpdate | Op::CreditRequest => {}
                op => panic!("unexpected {op:?}"),
            }
            assert!(
                self.to_guest.received - self.taken as usize <= WINDOW as usize,
                "beyond the guest's credit"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn streams_are_whole_under_any_schedule(steps in vec(step(), 1..150)) {
        let mut model = Model::new();
        for step in steps {
            model.perform(step);
        }
        // Whatever was left undone, when both sides go on, all arrives and both ends are seen.
        model.perform(Step::GuestShuts);
        model.perform(Step::HostShuts);
        for _ in 0..1000 {
            for step in [Step::GuestOffers(20), Step::GuestTakes(WINDOW), Step::HostReads(300_000)] {
                if !(matches!(step, Step::HostReads(_)) && model.to_host.ended) {
                    model.perform(step);
                }
            }
            if model.to_host.ended && model.to_guest.ended && model.both_told {
                break;
            }
        }
        prop_assert!(model.to_host.ended && model.to_guest.ended && model.both_told);
        // The guest forgets it, and that is the end.
        model.guest.send(packet(PORT, ACCEPTED, Op::Reset), &[]);
        model.guest.offer(1);
        prop_assert!(model.guest.receive().is_empty());
    }
}
