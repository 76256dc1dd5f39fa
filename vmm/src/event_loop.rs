//! One thread that waits for descriptors and hands each event to whom it concerns.
//!
//! ```text
//!   epoll ── (subscriber, token) ──► Subscriber::event ── Watches: add, change, remove
//!     └───── stop ──► the loop ends
//! ```

use crate::stop::Stop;
use lazaret_vmm_wire::Cause;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// Something that lives on an event loop.
pub trait Subscriber: Send {
    /// Called once, on the loop's thread, to say what to watch from the start.
    ///
    /// # Errors
    /// When something cannot be watched; the VM ends.
    fn start(&mut self, watches: &mut Watches) -> io::Result<()>;

    /// The descriptor watched as `token` is ready.
    ///
    /// # Errors
    /// An error ends the VM; it is the cause.
    fn event(&mut self, token: u32, events: EventSet, watches: &mut Watches) -> Result<(), Cause>;

    /// The event loop has ended, and so has the VM. The subscriber releases the threads that wait for it. This must not block.
    fn ended(&mut self) {}
}

/// What one subscriber has watched.
pub struct Watches {
    epoll: Arc<Epoll>,
    subscriber: u32,
    live: Vec<(RawFd, u32)>,
}

impl Watches {
    /// Watches `fd` for `events`, or changes what it is watched for.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set(&mut self, fd: RawFd, token: u32, events: EventSet) -> io::Result<()> {
        let event = EpollEvent::new(events, u64::from(self.subscriber) << 32 | u64::from(token));
        if let Some(live) = self.live.iter_mut().find(|(watched, _)| *watched == fd) {
            self.epoll.ctl(ControlOperation::Modify, fd, event)?;
            live.1 = token;
        } else {
            self.epoll.ctl(ControlOperation::Add, fd, event)?;
            self.live.push((fd, token));
        }
        Ok(())
    }

    /// Stops watching `fd`. An event of it that is already on its way is not delivered.
    ///
    /// # Errors
    /// The kernel's.
    pub fn remove(&mut self, fd: RawFd) -> io::Result<()> {
        self.live.retain(|(watched, _)| *watched != fd);
        self.epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default())
    }

    /// Stops watching every descriptor whose token satisfies `concerned`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn remove_all(&mut self, concerned: impl Fn(u32) -> bool) -> io::Result<()> {
        let fds: Vec<_> =
            self.live.iter().filter(|(_, token)| concerned(*token)).map(|(fd, _)| *fd).collect();
        fds.into_iter().try_for_each(|fd| self.remove(fd))
    }
}

/// The loop; it runs on the thread that calls [`EventLoop::run`].
pub struct EventLoop {
    epoll: Arc<Epoll>,
    subscribers: Vec<(Box<dyn Subscriber>, Watches)>,
    stop: Stop,
}

/// Names the stop event among the subscribers' indices.
const STOP: u64 = u64::MAX;
/// Events taken from the kernel at a time.
const BATCH: usize = 32;

impl EventLoop {
    /// A loop that ends with `stop`.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn new(stop: Stop) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        epoll.ctl(ControlOperation::Add, stop.event().as_raw_fd(), EpollEvent::new(EventSet::IN, STOP))?;
        Ok(Self { epoll: Arc::new(epoll), subscribers: Vec::new(), stop })
    }

    pub fn add(&mut self, subscriber: Box<dyn Subscriber>) {
        let index = u32::try_from(self.subscribers.len()).unwrap_or(u32::MAX);
        let watches = Watches { epoll: Arc::clone(&self.epoll), subscriber: index, live: Vec::new() };
        self.subscribers.push((subscriber, watches));
    }

    /// Serves events until the VM stops, which an error of a subscriber or of the loop brings about. The loop is returned
    /// because dropping a device may take as long as its last request does.
    #[must_use]
    pub fn run(mut self) -> Self {
        if let Err(cause) = self.serve() {
            self.stop.end(cause);
        }
        self.subscribers.iter_mut().for_each(|(subscriber, _)| subscriber.ended());
        self
    }

    fn serve(&mut self) -> Result<(), Cause> {
        let failed = |error: io::Error| Cause::Error(format!("the event loop failed: {error}"));
        for (subscriber, watches) in &mut self.subscribers {
            subscriber.start(watches).map_err(failed)?;
        }
        let mut events = [EpollEvent::default(); BATCH];
        loop {
            let count = match self.epoll.wait(-1, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(failed(error)),
            };
            for event in events.iter().take(count) {
                if event.data() == STOP {
                    return Ok(());
                }
                self.dispatch(*event)?;
            }
        }
    }

    fn dispatch(&mut self, event: EpollEvent) -> Result<(), Cause> {
        let Ok(index) = usize::try_from(event.data() >> 32) else { return Ok(()) };
        let Ok(token) = u32::try_from(event.data() & u64::from(u32::MAX)) else { return Ok(()) };
        let Some((subscriber, watches)) = self.subscribers.get_mut(index) else { return Ok(()) };
        // An earlier event of this batch may have removed the watch of a later one.
        if !watches.live.iter().any(|(_, live)| *live == token) {
            return Ok(());
        }
        subscriber.event(token, event.event_set(), watches)
    }
}

#[cfg(test)]
#[path = "event_loop_test.rs"]
mod tests;
