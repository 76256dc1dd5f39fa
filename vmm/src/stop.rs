//! How a VM ends: once, for the first cause given, by any thread.

use lazaret_vmm_wire::Cause;
use std::io;
use std::sync::{Arc, OnceLock};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// The end of one VM, shared by its threads.
#[derive(Debug, Clone)]
pub struct Stop(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    cause: OnceLock<Cause>,
    event: EventFd,
}

impl Stop {
    /// # Errors
    /// When no descriptor is left.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(Shared { cause: OnceLock::new(), event: EventFd::new(EFD_NONBLOCK)? })))
    }

    /// Ends the VM. Only the first cause counts: what follows is a consequence.
    pub fn end(&self, cause: Cause) {
        // An error means that a cause is there, or that the counter is at its maximum: either way it is readable.
        let _ = self.0.cause.set(cause);
        let _ = self.0.event.write(1);
    }

    #[must_use]
    pub fn cause(&self) -> Option<&Cause> {
        self.0.cause.get()
    }

    /// Readable from the end on. Never read it.
    #[must_use]
    pub fn event(&self) -> &EventFd {
        &self.0.event
    }
}
