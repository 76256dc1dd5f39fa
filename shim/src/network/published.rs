//! Ports of a sandbox that the host has, too, as `io.lazaret.net.publish` lists them.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv6Addr};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
}

/// A port of the host whose connections go to a port of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Published {
    pub protocol: Protocol,
    /// The host's address that has the port; `None` is all of them.
    pub address: Option<IpAddr>,
    pub host_port: u16,
    pub guest_port: u16,
}

impl Published {
    /// Reads a list with commas: `8080:80`, `127.0.0.1:8080:80`, `[::1]:8080:80`, each with `/tcp` or `/udp` at its end or
    /// neither, which is TCP.
    ///
    /// # Errors
    /// What is wrong, in one line that names the entry.
    pub(crate) fn parse_list(list: &str) -> Result<Vec<Self>, String> {
        let published: Vec<Self> = list.split(',').map(Self::parse).collect::<Result<_, _>>()?;
        let mut ports = HashSet::new();
        // pasta has one guest's port for each port of the host, whatever the address.
        match published.iter().find(|entry| !ports.insert((entry.protocol, entry.host_port))) {
            Some(entry) => Err(format!("the host's port {} is published twice", entry.host_port)),
            None => Ok(published),
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        let refuse = |what: &str| format!("{text:?}: {what}");
        let entry = text.trim();
        let (ports, protocol) = match entry.rsplit_once('/') {
            None => (entry, Protocol::Tcp),
            Some((ports, "tcp")) => (ports, Protocol::Tcp),
            Some((ports, "udp")) => (ports, Protocol::Udp),
            Some(_) => return Err(refuse("expected /tcp or /udp after the ports")),
        };
        let form = "expected HOST-PORT:PORT or ADDRESS:HOST-PORT:PORT, with an IPv6 address in brackets";
        let (rest, guest_port) = ports.rsplit_once(':').ok_or_else(|| refuse(form))?;
        let (address, host_port) = match rest.rsplit_once(':') {
            None => (None, rest),
            Some((address, host_port)) => {
                let bare = address.strip_prefix('[').and_then(|address| address.strip_suffix(']'));
                let parsed = match bare {
                    Some(bare) => bare.parse::<Ipv6Addr>().ok().map(IpAddr::from),
                    None => address.parse().ok().filter(IpAddr::is_ipv4),
                };
                (Some(parsed.ok_or_else(|| refuse(form))?), host_port)
            }
        };
        let port = |digits: &str| {
            let digits_only = digits.bytes().all(|byte| byte.is_ascii_digit());
            let number = digits_only.then(|| digits.parse::<u16>().ok()).flatten();
            number.filter(|number| *number > 0).ok_or_else(|| refuse("expected ports from 1 to 65535"))
        };
        Ok(Self { protocol, address, host_port: port(host_port)?, guest_port: port(guest_port)? })
    }
}

#[cfg(test)]
#[path = "published_test.rs"]
mod tests;
