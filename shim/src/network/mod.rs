//! The network of a sandbox, on the host's side; README.md draws it.
//!
//! ```text
//!   namespace ─ a thread in the sandbox's network namespace
//!     ├ monitor ─ says when something changes there
//!     ├ journal ─ what the namespace was like, for `delete` when the shim was killed
//!     ├ wiring ─ step by step, each undone by its guard
//!     │   ├ inventory   what the namespace holds: interfaces, addresses, routes, rules, neighbours
//!     │   ├ tap         a tap for each interface: the VMM's end
//!     │   ├ filters     what goes from which to which, and what does not
//!     │   └ ports       the ports that stay the namespace's own
//!     ├ localhost  connections that are made in there to 127.0.0.1 and ::1
//!     │   └ steering    which of them go to its listeners, by an eBPF program
//!     └ names      the guest's queries to 127.0.0.11, asked in there
//!   pasta ─ the process that gives a namespace without interfaces a user-mode network
//!     └ published  the ports of such a network that the host has, too
//! ```

mod filters;
mod inventory;
mod journal;
mod localhost;
mod monitor;
mod names;
mod namespace;
mod pasta;
mod ports;
mod published;
mod steering;
mod tap;
mod wiring;

use inventory::Inventory;
pub(crate) use journal::{Journal, undo};
use lazaret_agent_api::agent::Address;
use lazaret_netlink::packet::RouteNetlinkMessage;
use lazaret_netlink::{Netlink, NetlinkError};
pub(crate) use localhost::{Localhost, reset};
pub(crate) use monitor::Monitor;
pub(crate) use names::Names;
pub(crate) use pasta::{NAMESERVER, NAMESERVER6, Pasta, find_pasta, is_young_enough};
pub(crate) use published::Published;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
pub(crate) use wiring::{Changes, Options, Wiring};

/// `RT_SCOPE_UNIVERSE` of `linux/rtnetlink.h`: valid everywhere.
const SCOPE_UNIVERSE: u32 = 0;

/// Why a sandbox has no network.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    #[error("cannot enter the sandbox's network namespace: {0}")]
    Namespace(io::Error),
    #[error("cannot watch the sandbox's network namespace: {0}")]
    Monitor(io::Error),
    #[error("cannot read the {what} of the sandbox's network namespace: {source}")]
    Read { what: &'static str, source: NetlinkError },
    #[error("interface {interface}: a sandbox has {most} network interfaces at most")]
    TooMany { interface: String, most: u8 },
    #[error("interface {interface}: its MAC address is not one of Ethernet's")]
    Mac { interface: String },
    #[error("interface {interface}: its MTU of {mtu} is too large for a guest, whose limit is 65535")]
    Mtu { interface: String, mtu: u32 },
    #[error(
        "interface {interface}: cannot make a tap device: {source}; lazaret needs /dev/net/tun (modprobe tun)"
    )]
    Tap { interface: String, source: io::Error },
    #[error(
        "interface {interface}: it is wired to another sandbox, and two VMs cannot have one interface: \
         use a network that both are in"
    )]
    Shared { interface: String },
    #[error("interface {interface}: cannot set up its tap device: {source}")]
    TapLink { interface: String, source: NetlinkError },
    #[error(
        "interface {interface}: its ingress is in use: it has an ingress or clsact qdisc (`tc qdisc show`), \
         which lazaret needs for itself"
    )]
    IngressInUse { interface: String },
    #[error(
        "interface {interface}: cannot redirect its traffic: {source}; \
         the host's kernel needs sch_ingress, cls_u32 and act_mirred"
    )]
    Filter { interface: String, source: NetlinkError },
    #[error("cannot write {}: {source}", path.display())]
    Journal { path: PathBuf, source: io::Error },
    #[error("cannot reserve ports for the sandbox's network namespace: {0}")]
    Ports(io::Error),
    #[error(
        "cannot carry connections to localhost of the sandbox's network namespace: {0}; \
         the host's kernel needs to be 5.9 or later, with CONFIG_BPF_SYSCALL and without a lockdown of eBPF"
    )]
    Localhost(io::Error),
    #[error(
        "a user-mode network needs pasta, which is not in PATH: install the package passt (`lazaret doctor` tells more)"
    )]
    PastaAbsent,
    #[error("a user-mode network needs /dev/net/tun (modprobe tun): {0}")]
    Tun(io::Error),
    #[error("cannot run {}: {source}", path.display())]
    PastaSpawn { path: PathBuf, source: io::Error },
    #[error("pasta is too old: lazaret needs the package passt of Debian 13 or newer ({0})")]
    PastaTooOld(String),
    #[error("pasta does not give the sandbox a user-mode network: {0}")]
    Pasta(String),
    #[error("the host's kernel does not answer in the sandbox's network namespace within {0} s")]
    Late(u64),
}

/// Takes the loopback interface of this thread's network namespace up: the first interface of every namespace.
///
/// # Errors
/// The kernel's.
pub(crate) fn take_loopback_up() -> Result<(), NetlinkError> {
    Netlink::open()?.request(RouteNetlinkMessage::SetLink(wiring::up(1)), 0)
}

/// The addresses that others reach a sandbox at: those of the interfaces of a process's network namespace, as `ADDRESS/PREFIX`,
/// but for IPv6's link-local ones.
///
/// # Errors
/// [`NetworkError`].
pub(crate) fn addresses(pid: i32) -> Result<Vec<String>, NetworkError> {
    let namespace = File::open(format!("/proc/{pid}/ns/net")).map_err(NetworkError::Namespace)?;
    let open = |source| NetworkError::Read { what: "addresses", source };
    let read = move || Inventory::read(&mut Netlink::open().map_err(open)?, |_| false);
    let inventory = namespace::run_and_wait(namespace.into(), read)?;
    let addresses = inventory.interfaces.values().flat_map(|interface| &interface.addresses);
    let outside = addresses.filter(|address| address.scope == SCOPE_UNIVERSE);
    let text = |address: &Address| Some(format!("{}/{}", ip(&address.ip)?, address.prefix_length));
    Ok(outside.filter_map(text).collect())
}

/// An address as the agent's API has it.
fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match *bytes {
        [a, b, c, d] => Some([a, b, c, d].into()),
        _ => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
    }
}
