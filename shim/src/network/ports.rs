//! The ports that stay the namespace's own.
//!
//! What comes in on a wired interface goes to the guest. A program of the host in the namespace, such as dockerd's resolver,
//! would never have an answer. So a block of ports is the namespace's: the filters let it pass, and the kernel takes the
//! ports of the namespace's outgoing connections from it.

use super::NetworkError;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::RangeInclusive;
use std::os::unix::fs::FileExt;

/// The block. It is above the ports that Linux gives a guest's own connections (32768 to 60999), so that an answer to one of
/// those is never taken for the namespace's.
pub(super) const PORTS: RangeInclusive<u16> = 61440..=61951;
/// The bits of a port that say whether it is in [`PORTS`].
pub(super) const MASK: u16 = 0xfe00;
const _: () = assert!(*PORTS.start() & !MASK == 0 && *PORTS.end() == *PORTS.start() | !MASK);

const SYSCTL: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// The namespace's range of ports for outgoing connections is [`PORTS`] while this lives.
#[derive(Debug)]
pub(super) struct EphemeralPorts {
    /// An open file of `/proc/sys/net` belongs to the namespace it was opened in, whoever writes to it.
    sysctl: File,
    pub before: String,
}

impl EphemeralPorts {
    /// Sets the range in this thread's network namespace. It holds for IPv6, too. What it was is told `record` first.
    ///
    /// # Errors
    /// [`NetworkError::Ports`]; those of `record`.
    pub(super) fn reserve(
        record: impl FnOnce(&str) -> Result<(), NetworkError>,
    ) -> Result<Self, NetworkError> {
        let opened = OpenOptions::new().read(true).write(true).open(SYSCTL);
        let sysctl = opened.map_err(NetworkError::Ports)?;
        let mut before = [0; 64];
        let length = sysctl.read_at(&mut before, 0).map_err(NetworkError::Ports)?;
        let before = String::from_utf8_lossy(&before[..length]).into_owned();
        record(&before)?;
        // Made first: a write that fails half done is undone, too.
        let ports = Self { sysctl, before };
        write(&ports.sysctl, &format!("{} {}", PORTS.start(), PORTS.end())).map_err(NetworkError::Ports)?;
        Ok(ports)
    }
}

impl Drop for EphemeralPorts {
    fn drop(&mut self) {
        if let Err(error) = write(&self.sysctl, &self.before) {
            log::warn!("cannot restore {SYSCTL} of the sandbox's network namespace: {error}");
        }
    }
}

/// Sets the range of this thread's network namespace to what it was.
pub(super) fn restore_range(before: &str) {
    let restored = OpenOptions::new().write(true).open(SYSCTL).and_then(|sysctl| write(&sysctl, before));
    if let Err(error) = restored {
        log::warn!("cannot restore {SYSCTL} of the sandbox's network namespace: {error}");
    }
}

fn write(sysctl: &File, value: &str) -> io::Result<()> {
    // Whole, from the start: the kernel ignores a write that continues another.
    let written = sysctl.write_at(value.as_bytes(), 0)?;
    if written == value.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}
