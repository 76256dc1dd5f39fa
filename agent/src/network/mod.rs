//! The guest's network interfaces, set up as the sandbox's network namespace on the host has them.
//!
//! ```text
//!   boot ─► slots: devices without an interface, out of sight
//!   ConfigureNetwork ─► each device: name, MAC, MTU ─► up ─► addresses, neighbours ─► routes ─► rules
//! ```
//!
//! They are in the guest's own network namespace, and so is every container of the sandbox: the guest's network *is* the
//! sandbox's. The private Docker daemon is there, too, so its bridges reach the world through these interfaces as they would
//! on a host. A container's spec is therefore run without a network namespace (see `spec`).
//!
//! A device is known by the address that it had at boot, which Linux keeps as its permanent one: the order in which devices
//! were found is the kernel's business, and their names change here.
//!
//! The host has found the addresses to be free, so duplicate address detection is left out; it would take a second, and find
//! the namespace, which has them, too. The kernel adds no address and no route by itself: routes come from the namespace, with
//! what a metric or an MTU says of them.
//!
//! Two addresses of the namespace's loopback interface are the guest's, too: `localhost` carries the host's connections to
//! 127.0.0.1 and ::1, `names` the guest's queries to 127.0.0.11.

mod localhost;
mod messages;
mod names;
mod resolver;
mod slots;

use crate::sync::lock;
use crate::vsock;
use lazaret_agent_api::agent::{ConfigureNetworkRequest, Interface, Route};
use lazaret_agent_api::{FORWARD_PORT, NAMES_PORT};
use lazaret_netlink::packet::RouteNetlinkMessage;
use lazaret_netlink::packet::link::{LinkAttribute, LinkFlags, LinkMessage};
use lazaret_netlink::{NLM_F_CREATE, NLM_F_REPLACE, Netlink, NetlinkError};
use messages::Malformed;
use nix::errno::Errno;
use std::collections::HashMap;
use std::io;

pub(crate) use slots::{Slots, of_guest};

#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    #[error("cannot make a network namespace for unused devices: {0}")]
    Namespace(io::Error),
    #[error("cannot list the guest's network devices: {0}")]
    List(#[source] NetlinkError),
    #[error(
        "interface {interface}: the guest has no network device with the address {device}; \
         its kernel needs CONFIG_VIRTIO_NET"
    )]
    NoDevice { interface: String, device: String },
    #[error("interface {interface}: {source}")]
    Malformed { interface: String, source: Malformed },
    #[error("interface {interface}: cannot {what} in the guest: {source}")]
    Set { interface: String, what: String, source: NetlinkError },
    #[error("interface {interface}: cannot have the guest ignore router advertisements: {source}")]
    Advertisements { interface: String, source: io::Error },
    #[error("cannot {what} in the guest: {source}")]
    SetForAll { what: String, source: NetlinkError },
}

/// Takes the host's streams to the guest's localhost, and of its name queries, for as long as the guest lives.
///
/// # Errors
/// When a vsock port cannot be listened on.
pub(crate) fn listen() -> io::Result<()> {
    tokio::spawn(localhost::listen(vsock::bind(FORWARD_PORT)?));
    tokio::spawn(names::listen(vsock::bind(NAMES_PORT)?));
    Ok(())
}

/// A network device of the guest.
struct Device {
    index: u32,
    name: String,
    is_up: bool,
}

/// Makes the network of this thread's network namespace what `request` says, with devices from `slots`. What an earlier request
/// said and this one does not is taken away; what others have set up is left alone.
///
/// # Errors
/// [`NetworkError`]; what was done by then stays, and all of it is done anew by the next request.
pub(crate) fn configure(slots: &Slots, request: &ConfigureNetworkRequest) -> Result<(), NetworkError> {
    let mut configured = lock(&slots.configured);
    let changed = change(slots, &configured, request);
    if changed.is_ok() {
        configured.clone_from(request);
    } else {
        // No link is taken to be as it was.
        configured.interfaces.iter_mut().for_each(|interface| interface.mac.clear());
    }
    changed
}

/// Goes from what `before` asked for to what `request` asks for.
fn change(
    slots: &Slots,
    before: &ConfigureNetworkRequest,
    request: &ConfigureNetworkRequest,
) -> Result<(), NetworkError> {
    let mut netlink = Netlink::open().map_err(NetworkError::List)?;
    let is_asked_for =
        |earlier: &&Interface| request.interfaces.iter().any(|now| now.device == earlier.device);
    let gone: Vec<_> = before.interfaces.iter().filter(|earlier| !is_asked_for(earlier)).collect();
    slots.put_back(&mut netlink, &gone)?;
    slots.fetch(&request.interfaces)?;
    let devices = devices(&mut netlink)?;
    let mut links = HashMap::new();
    for interface in &request.interfaces {
        let index = find(&devices, interface)?;
        let same = |earlier: &&Interface| {
            (&earlier.device, &earlier.name, &earlier.mac, earlier.mtu)
                == (&interface.device, &interface.name, &interface.mac, interface.mtu)
        };
        // A link that has to be set up has none of its addresses and routes any more.
        let earlier = before.interfaces.iter().find(same);
        if earlier.is_none() {
            link(&mut netlink, index, interface)?;
        }
        links.insert(interface.name.as_str(), Link { index, earlier });
    }
    remove_routes(&mut netlink, before, request, &links);
    for interface in &request.interfaces {
        addresses(&mut netlink, interface, &links[interface.name.as_str()])?;
    }
    routes(&mut netlink, before, request, &links)?;
    for rule in request.rules.iter().filter(|rule| !before.rules.contains(rule)) {
        let malformed = |source| NetworkError::Malformed { interface: "(rules)".into(), source };
        let message = messages::rule(rule).map_err(malformed)?;
        let what = format!("add the rule of priority {}", rule.priority);
        match netlink.request(message, NLM_F_CREATE | lazaret_netlink::NLM_F_EXCL) {
            Err(error) if error.refused() == Some(Errno::EEXIST) => {}
            added => added.map_err(|source| NetworkError::SetForAll { what, source })?,
        }
    }
    Ok(())
}

/// A device that has been set up as an interface.
struct Link<'a> {
    index: u32,
    /// The interface as an earlier request had it, if its link is the same.
    earlier: Option<&'a Interface>,
}

/// Adds addresses and neighbours to an interface, and takes away those of an earlier request.
fn addresses(netlink: &mut Netlink, interface: &Interface, link: &Link<'_>) -> Result<(), NetworkError> {
    let index = link.index;
    let malformed = |source| NetworkError::Malformed { interface: interface.name.clone(), source };
    let nothing = Interface::default();
    let earlier = link.earlier.unwrap_or(&nothing);
    for address in earlier.addresses.iter().filter(|address| !interface.addresses.contains(address)) {
        remove(netlink, messages::address(index, address));
    }
    for neighbour in earlier.neighbours.iter().filter(|neighbour| !interface.neighbours.contains(neighbour)) {
        remove(netlink, messages::neighbour(index, neighbour));
    }
    let mut set = |what: String, message| {
        let failed = |source| NetworkError::Set { interface: interface.name.clone(), what, source };
        netlink.request(message, NLM_F_CREATE | NLM_F_REPLACE).map_err(failed)
    };
    for address in interface.addresses.iter().filter(|address| !earlier.addresses.contains(address)) {
        let text = messages::ip(&address.ip).map_err(malformed)?;
        if text.is_ipv6() && is_ipv6_off(&interface.name) {
            log::info!("network: {}: IPv6 is off, {text} is left out", interface.name);
            continue;
        }
        let message = messages::address(index, address).map_err(malformed)?;
        set(format!("add the address {text}/{}", address.prefix_length), message)?;
    }
    for neighbour in interface.neighbours.iter().filter(|neighbour| !earlier.neighbours.contains(neighbour)) {
        let text = messages::ip(&neighbour.ip).map_err(malformed)?;
        if text.is_ipv6() && is_ipv6_off(&interface.name) {
            continue;
        }
        let message = messages::neighbour(index, neighbour).map_err(malformed)?;
        set(format!("add the neighbour {text}"), message)?;
    }
    Ok(())
}

/// Takes away the routes and rules of an earlier request that are not in this one. Those of a link that has been set up anew are
/// gone already.
fn remove_routes(
    netlink: &mut Netlink,
    before: &ConfigureNetworkRequest,
    request: &ConfigureNetworkRequest,
    links: &HashMap<&str, Link<'_>>,
) {
    for rule in before.rules.iter().filter(|rule| !request.rules.contains(rule)) {
        remove(netlink, messages::rule(rule));
    }
    for route in before.routes.iter().filter(|route| !request.routes.contains(route)) {
        let link = links.get(route.interface.as_str());
        if route.interface.is_empty() || link.is_some_and(|link| link.earlier.is_some()) {
            remove(netlink, messages::route(link.map(|link| link.index), route));
        }
    }
}

/// Takes away what `message` would add. What cannot be taken away is gone, as what has to do with an address goes with it.
fn remove(netlink: &mut Netlink, message: Result<RouteNetlinkMessage, Malformed>) {
    let removal = match message {
        Ok(RouteNetlinkMessage::NewAddress(message)) => RouteNetlinkMessage::DelAddress(message),
        Ok(RouteNetlinkMessage::NewNeighbour(message)) => RouteNetlinkMessage::DelNeighbour(message),
        Ok(RouteNetlinkMessage::NewRoute(message)) => RouteNetlinkMessage::DelRoute(message),
        Ok(RouteNetlinkMessage::NewRule(message)) => RouteNetlinkMessage::DelRule(message),
        _ => return,
    };
    if let Err(error) = netlink.request(removal, 0) {
        log::debug!("network: {error}");
    }
}

/// Gives the device the interface's address, MTU and name, and takes it up.
fn link(netlink: &mut Netlink, index: u32, interface: &Interface) -> Result<(), NetworkError> {
    let mut set = |what: &str, message| {
        let failed =
            |source| NetworkError::Set { interface: interface.name.clone(), what: what.to_owned(), source };
        netlink.request(RouteNetlinkMessage::SetLink(message), 0).map_err(failed)
    };
    // A name can only be changed while the interface is down.
    set("take the device down", messages::down(index))?;
    set("set the MAC address", messages::with(index, LinkAttribute::Address(interface.mac.clone())))?;
    set("set the MTU", messages::with(index, LinkAttribute::Mtu(interface.mtu)))?;
    set("set the name", messages::with(index, LinkAttribute::IfName(interface.name.clone())))?;
    match set("keep the kernel from making addresses", messages::without_own_addresses(index)) {
        // A kernel without IPv6 makes none.
        Err(NetworkError::Set { source, .. })
            if matches!(source.refused(), Some(Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP)) => {}
        result => result?,
    }
    // Router advertisements come to the guest, too, and the routes are the namespace's.
    let sysctl = format!("/proc/sys/net/ipv6/conf/{}/accept_ra", interface.name);
    match std::fs::write(sysctl, "0") {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(NetworkError::Advertisements { interface: interface.name.clone(), source: error });
        }
        _ => {}
    }
    set("take the device up", messages::up(index))
}

/// Adds the routes: first those to what is on a link, then those by a gateway, which must be on one.
fn routes(
    netlink: &mut Netlink,
    before: &ConfigureNetworkRequest,
    request: &ConfigureNetworkRequest,
    links: &HashMap<&str, Link<'_>>,
) -> Result<(), NetworkError> {
    let is_there = |route: &&Route| {
        let link = links.get(route.interface.as_str());
        before.routes.contains(route) && link.is_none_or(|link| link.earlier.is_some())
    };
    let mut routes: Vec<_> = request.routes.iter().filter(|route| !is_there(route)).collect();
    routes.sort_by_key(|route| !route.gateway.is_empty());
    for route in routes {
        let malformed = |source| NetworkError::Malformed { interface: route.interface.clone(), source };
        let to = messages::ip(&route.destination).map_err(malformed)?;
        if to.is_ipv6() && !route.interface.is_empty() && is_ipv6_off(&route.interface) {
            continue;
        }
        let index = links.get(route.interface.as_str()).map(|link| link.index);
        let message = messages::route(index, route).map_err(malformed)?;
        let what = format!("add the route to {to}/{}", route.prefix_length);
        netlink.request(message, NLM_F_CREATE | NLM_F_REPLACE).map_err(|source| NetworkError::Set {
            interface: route.interface.clone(),
            what,
            source,
        })?;
    }
    Ok(())
}

/// The guest's network devices, by the address that each had at boot.
fn devices(netlink: &mut Netlink) -> Result<HashMap<Vec<u8>, Device>, NetworkError> {
    let links =
        netlink.dump(&RouteNetlinkMessage::GetLink(LinkMessage::default())).map_err(NetworkError::List)?;
    let device = |link: LinkMessage| {
        let is_up = link.header.flags.contains(LinkFlags::Up);
        let (mut name, mut now, mut permanent) = (String::new(), None, None);
        for attribute in link.attributes {
            match attribute {
                LinkAttribute::IfName(text) => name = text,
                LinkAttribute::Address(address) => now = Some(address),
                LinkAttribute::PermAddress(address) => permanent = Some(address),
                _ => {}
            }
        }
        Some((permanent.or(now)?, Device { index: link.header.index, name, is_up }))
    };
    let links = links.into_iter().filter_map(|link| match link {
        RouteNetlinkMessage::NewLink(link) => device(link),
        _ => None,
    });
    Ok(links.collect())
}

fn find(devices: &HashMap<Vec<u8>, Device>, interface: &Interface) -> Result<u32, NetworkError> {
    let device = devices.get(&interface.device).ok_or_else(|| NetworkError::NoDevice {
        interface: interface.name.clone(),
        device: interface.device.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":"),
    })?;
    Ok(device.index)
}

/// Whether the sandbox's sysctls forbid IPv6 on the interface.
fn is_ipv6_off(interface: &str) -> bool {
    let sysctl = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
    std::fs::read_to_string(sysctl).map_or(true, |value| value.trim() == "1")
}

#[cfg(test)]
#[path = "network_test.rs"]
mod tests;
