//! The way in for the host: connections to the guest are asked for from any thread.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Connects host sockets to ports of the guest. Clones speak to the same device.
#[derive(Debug, Clone)]
pub struct Connector(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    asked: Mutex<VecDeque<(u32, OwnedFd)>>,
    wake: EventFd,
}

impl Connector {
    pub(super) fn new() -> io::Result<Self> {
        let wake = EventFd::new(EFD_NONBLOCK)?;
        Ok(Self(Arc::new(Shared { asked: Mutex::default(), wake })))
    }

    /// Connects `socket`, a connected stream socket, to the guest's `port`. The socket may be written at once. There is
    /// no answer: a guest that refuses, or does not answer within [`super::Timeouts::connect`], shows as end of file.
    /// A guest whose driver is not there yet is waited for.
    pub fn connect(&self, port: u32, socket: OwnedFd) {
        self.0.asked.lock().unwrap_or_else(PoisonError::into_inner).push_back((port, socket));
        // It fails only when 2^64 - 1 wakes are pending, and one is enough.
        let _ = self.0.wake.write(1);
    }

    pub(super) fn take(&self) -> Option<(u32, OwnedFd)> {
        self.0.asked.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    pub(super) fn event(&self) -> &EventFd {
        &self.0.wake
    }

    /// Takes the pending wakes back, before looking at what they are about.
    pub(super) fn quiet(&self) {
        // It fails only when there is none.
        let _ = self.0.wake.read();
    }
}
