//! The host, which tests have in common: how much of it each takes, and how long it has it.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Instant;

/// Slots of the host: as many tests as this run beside each other. `LAZARET_TEST_THREADS` says how many; each test has a thread.
fn slots() -> usize {
    std::env::var("LAZARET_TEST_THREADS").ok().and_then(|slots| slots.parse().ok()).unwrap_or(3)
}

/// Held by every test that can run beside others.
pub fn beside_others() -> Share {
    Share::take(1)
}

/// Held by a test whose guest works hard for long: the limits that dockerd has within itself leave room for one or two such guests
/// on an emulated host.
pub fn beside_few() -> Share {
    Share::take(slots().div_ceil(2))
}

/// [`beside_few`] before all that wait: for a test whose turn it is with a sandbox that others of its module wait for, too.
pub fn next_beside_few() -> Share {
    Share::take_next(slots().div_ceil(2))
}

/// Held by a test that looks at, or changes, something of the whole host. It waits until no other test does: else all would wait for
/// the longest of those that run.
pub fn alone() -> Share {
    Share::take(slots())
}

struct Host {
    taken: usize,
    /// First come, first served.
    waiting: VecDeque<ThreadId>,
    /// Those that want the whole host.
    waiting_alone: VecDeque<ThreadId>,
}

impl Host {
    /// Whether it is the turn of the test of this thread, which wants so many slots.
    fn is_turn(&self, own: ThreadId, slots: usize) -> bool {
        if slots == self::slots() {
            self.taken == 0 && self.waiting.is_empty() && self.waiting_alone.front() == Some(&own)
        } else {
            self.waiting.front() == Some(&own) && self.taken + slots <= self::slots()
        }
    }

    fn queue(&mut self, slots: usize) -> &mut VecDeque<ThreadId> {
        if slots == self::slots() { &mut self.waiting_alone } else { &mut self.waiting }
    }
}

static HOST: Mutex<Host> =
    Mutex::new(Host { taken: 0, waiting: VecDeque::new(), waiting_alone: VecDeque::new() });
static CHANGED: Condvar = Condvar::new();

fn lock() -> MutexGuard<'static, Host> {
    // A test that failed while it held the lock has not broken anything the lock protects.
    HOST.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A test's part of the host. At its end it writes `time SECONDS SLOTS NAME`, which `integration/test` sums up.
pub struct Share {
    slots: usize,
    since: Instant,
}

impl Share {
    fn take(slots: usize) -> Self {
        lock().queue(slots).push_back(thread::current().id());
        Self::wait(slots)
    }

    fn take_next(slots: usize) -> Self {
        lock().queue(slots).push_front(thread::current().id());
        Self::wait(slots)
    }

    /// Waits for the turn of this thread's test.
    fn wait(slots: usize) -> Self {
        let own = thread::current().id();
        let mut host = lock();
        while !host.is_turn(own, slots) {
            host = CHANGED.wait(host).unwrap_or_else(PoisonError::into_inner);
        }
        host.queue(slots).pop_front();
        host.taken += slots;
        CHANGED.notify_all();
        Self { slots, since: Instant::now() }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let seconds = self.since.elapsed().as_secs_f32();
        let thread = thread::current();
        // Not by `eprintln!`, which the harness keeps to itself unless the test fails.
        let line = format!("time {seconds:.1} {} {}\n", self.slots, thread.name().unwrap_or("?"));
        let _ = std::io::stderr().write_all(line.as_bytes());
        lock().taken -= self.slots;
        CHANGED.notify_all();
    }
}
