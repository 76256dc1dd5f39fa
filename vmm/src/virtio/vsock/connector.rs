//! The way in for the host: connections to the guest are asked for from any thread.

use crate::sync::lock;
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Connects host sockets to ports of the guest. Clones speak to the same device.
#[derive(Debug, Clone)]
pub struct Connector(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    requests: Mutex<VecDeque<(u32, OwnedFd)>>,
    wake: EventFd,
}

impl Connector {
    pub(super) fn new() -> io::Result<Self> {
        let wake = EventFd::new(EFD_NONBLOCK)?;
        Ok(Self(Arc::new(Shared { requests: Mutex::default(), wake })))
    }

    /// Connects `socket`, a connected stream socket, to the guest's `port`. The socket may be written at once. There is
    /// no answer: a guest that refuses, or does not answer within [`super::Timeouts::connect`], shows as end of file.
    /// A guest whose driver is not there yet is waited for.
    pub fn connect(&self, port: u32, socket: OwnedFd) {
        lock(&self.0.requests).push_back((port, socket));
        // It fails only when 2^64 - 1 wakes are pending, and one is enough.
        let _ = self.0.wake.write(1);
    }

    pub(super) fn take(&self) -> Option<(u32, OwnedFd)> {
        lock(&self.0.requests).pop_front()
    }

    pub(super) fn event(&self) -> &EventFd {
        &self.0.wake
    }

    /// Clears the pending wakes, before the requests are looked at.
    pub(super) fn acknowledge(&self) {
        // Reading fails only when no wake is pending.
        let _ = self.0.wake.read();
    }
}
