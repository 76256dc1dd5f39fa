//! `/etc/resolv.conf` of a container whose sandbox has a user-mode network: the nameserver that pasta has there, and the host's
//! other lines. Whoever makes a network otherwise has such a file mounted, too.

use super::mode::{NetworkMode, is_host};
use crate::network::{NAMESERVER, NAMESERVER6};
use crate::sandbox::container::spec::NetworkNamespace;
use crate::state::StateDir;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// The host's, and the container's. A host's that is bind mounted names nameservers that a guest may not reach, such as
/// 127.0.0.53.
pub(in crate::sandbox) const PATH: &str = "/etc/resolv.conf";

/// Writes the file for the containers of a sandbox, and returns its path. `None` where the sandbox may have another network:
/// only Start sees what the namespace holds.
///
/// # Errors
/// Of the file.
pub(crate) fn write(
    mode: &NetworkMode,
    network: &NetworkNamespace,
    state: &StateDir,
) -> io::Result<Option<PathBuf>> {
    let NetworkMode::User(user) = mode else { return Ok(None) };
    if user.asked_by.is_none() && !is_host(network) {
        return Ok(None);
    }
    let path = state.resolv_conf();
    // A host without one has no nameserver.
    let host = fs::read_to_string(PATH).unwrap_or_default();
    fs::write(&path, translate(&host))?;
    // For every user of the container, whatever the umask. On the host the directory is root's alone.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
    Ok(Some(path))
}

/// The host's file with pasta's nameservers instead of the host's, one for each family that the host has one of.
fn translate(host: &str) -> String {
    let (mut v4, mut v6) = (false, false);
    let mut others = String::new();
    for line in host.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            // An IPv6 address may have a zone, which is the host's own matter.
            Some("nameserver") => match words.next().and_then(|word| word.split('%').next()?.parse().ok()) {
                Some(IpAddr::V4(_)) => v4 = true,
                Some(IpAddr::V6(_)) => v6 = true,
                None => {}
            },
            Some("search" | "domain" | "options") => others += &format!("{line}\n"),
            _ => {}
        }
    }
    let nameserver = |there, address| if there { format!("nameserver {address}\n") } else { String::new() };
    nameserver(v4, NAMESERVER) + &nameserver(v6, NAMESERVER6) + &others
}

#[cfg(test)]
#[path = "resolv_conf_test.rs"]
mod tests;
