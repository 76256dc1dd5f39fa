//! A 16550 at the usual place, for kernels that have no virtio yet: early boot messages, micro-guests.

use crate::console::Output;
use std::io;
use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial as Uart};
use vmm_sys_util::eventfd::EventFd;

/// The interrupt line of the port.
struct Line(EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// The port.
pub struct Serial(Uart<Line, NoEvents, Output>);

impl Serial {
    /// A port that raises `line` and prints to `output`.
    #[must_use]
    pub fn new(line: EventFd, output: Output) -> Self {
        Self(Uart::new(Line(line), output))
    }

    pub fn read(&mut self, offset: u8) -> u8 {
        self.0.read(offset)
    }

    /// A byte that cannot be printed is lost.
    pub fn write(&mut self, offset: u8, value: u8) {
        if let Err(error) = self.0.write(offset, value) {
            log::debug!("serial port: {error:?}");
        }
    }

    /// Bytes typed by the user; what does not fit into the port's buffer is lost.
    pub fn type_in(&mut self, bytes: &[u8]) {
        if let Err(error) = self.0.enqueue_raw_bytes(bytes) {
            log::debug!("serial port: {error:?}");
        }
    }
}
