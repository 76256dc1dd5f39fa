//! The guest's ports and device addresses, and the devices behind them.

use crate::arch::layout;
use crate::hypervisor;
use crate::serial::Serial;
use crate::stop::Stop;
use crate::sync::lock;
use crate::virtio::Transport;
use lazaret_vmm_wire::Cause;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use vm_superio::{I8042Device, Trigger};

/// Every device a vCPU can reach. A device's lock is held while it serves one access.
pub struct Bus {
    serial: Arc<Mutex<Serial>>,
    i8042: Mutex<I8042Device<Reset>>,
    virtio: Vec<Mutex<Transport>>,
    stop: Stop,
}

/// The reset line of the machine.
struct Reset(Stop);

impl Trigger for Reset {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.end(Cause::Reset);
        Ok(())
    }
}

/// The register of a device at `start` that `port` names.
fn register(port: u16, start: u16, ports: u16) -> Option<u8> {
    let offset = port.checked_sub(start).filter(|offset| *offset < ports)?;
    u8::try_from(offset).ok()
}

impl Bus {
    #[must_use]
    pub fn new(serial: Arc<Mutex<Serial>>, virtio: Vec<Transport>, stop: Stop) -> Self {
        let i8042 = Mutex::new(I8042Device::new(Reset(stop.clone())));
        Self { serial, i8042, virtio: virtio.into_iter().map(Mutex::new).collect(), stop }
    }

    /// The virtio device at `address`, and the offset in its registers.
    fn virtio_at(&self, address: u64) -> Option<(&Mutex<Transport>, u64)> {
        let offset = address.checked_sub(layout::VIRTIO_MMIO)?;
        let index = usize::try_from(offset / layout::VIRTIO_MMIO_SIZE).ok()?;
        Some((self.virtio.get(index)?, offset % layout::VIRTIO_MMIO_SIZE))
    }
}

/// Where there is no device, reads give ones and writes do nothing, as on a bus that floats high.
impl hypervisor::Bus for Bus {
    fn port_read(&self, port: u16, data: &mut [u8]) {
        // Devices of a PC's ports have byte-wide registers; a string instruction repeats them.
        for byte in data {
            *byte = if let Some(offset) = register(port, layout::SERIAL, layout::SERIAL_PORTS) {
                lock(&self.serial).read(offset)
            } else if let Some(offset) = register(port, layout::I8042, layout::I8042_PORTS) {
                lock(&self.i8042).read(offset)
            } else {
                0xff
            };
        }
    }

    fn port_write(&self, port: u16, data: &[u8]) {
        for byte in data {
            if let Some(offset) = register(port, layout::SERIAL, layout::SERIAL_PORTS) {
                lock(&self.serial).write(offset, *byte);
            } else if let Some(offset) = register(port, layout::I8042, layout::I8042_PORTS) {
                let Ok(()) = lock(&self.i8042).write(offset, *byte);
            }
        }
    }

    fn memory_read(&self, address: u64, data: &mut [u8]) {
        match self.virtio_at(address) {
            Some((transport, offset)) => lock(transport).read(offset, data),
            None => data.fill(0xff),
        }
    }

    fn memory_write(&self, address: u64, data: &[u8]) {
        let Some((transport, offset)) = self.virtio_at(address) else { return };
        if let Err(error) = lock(transport).write(offset, data) {
            self.stop.end(Cause::Error(error.to_string()));
        }
    }
}

#[cfg(test)]
#[path = "bus_test.rs"]
mod tests;
