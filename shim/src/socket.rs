//! The socket containerd reaches the shim at.

use nix::sys::stat::{Mode, umask};
use sha2::{Digest, Sha256};
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Where containerd's shims have their sockets.
pub(crate) const SOCKET_DIR: &str = "/run/containerd/s";
/// The longest path of a socket, in bytes (`sun_path`, less its terminator).
pub(crate) const MAX_PATH: usize = 107;

/// The outcome of binding.
#[derive(Debug)]
pub(crate) enum Bound {
    Listener(UnixListener),
    /// A shim answers at the socket already.
    Taken,
}

/// The socket of a sandbox. Its name is a hash, as with containerd's own shims, so that any id fits a socket's path.
#[must_use]
pub(crate) fn path(directory: &Path, containerd_address: &str, namespace: &str, sandbox: &str) -> PathBuf {
    let hash = Sha256::digest(format!("{containerd_address}/{namespace}/{sandbox}"));
    directory.join(hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

/// How containerd writes that path.
#[must_use]
pub(crate) fn address(path: &Path) -> String {
    format!("unix://{}", path.display())
}

/// Listens at `path`, for root alone. A socket that no process answers at is replaced.
///
/// # Errors
/// The kernel's, with the path.
pub(crate) fn bind(path: &Path) -> io::Result<Bound> {
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("socket {}: {error}", path.display()));
    if path.as_os_str().len() > MAX_PATH {
        return Err(named(io::Error::new(ErrorKind::InvalidInput, "the path is too long for a socket")));
    }
    if let Some(directory) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(named)?;
    }
    for _ in 0..2 {
        let before = umask(Mode::from_bits_truncate(0o177));
        let bound = UnixListener::bind(path);
        umask(before);
        match bound {
            Ok(listener) => return Ok(Bound::Listener(listener)),
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            Err(error) => return Err(named(error)),
        }
        if UnixStream::connect(path).is_ok() {
            return Ok(Bound::Taken);
        }
        fs::remove_file(path)
            .or_else(|e| if e.kind() == ErrorKind::NotFound { Ok(()) } else { Err(named(e)) })?;
    }
    Err(named(ErrorKind::AddrInUse.into()))
}

#[cfg(test)]
#[path = "socket_test.rs"]
mod tests;
