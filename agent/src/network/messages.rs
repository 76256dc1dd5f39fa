//! From the host's messages to the kernel's.

use lazaret_agent_api::agent::{Address, Neighbour, Route, Rule};
use lazaret_netlink::packet::address::{AddressAttribute, AddressFlags, AddressMessage};
use lazaret_netlink::packet::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage,
};
use lazaret_netlink::packet::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use lazaret_netlink::packet::route::{RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteVia};
use lazaret_netlink::packet::rule::{RuleAttribute, RuleFlags, RuleMessage};
use lazaret_netlink::packet::{AddressFamily, RouteNetlinkMessage};
use std::net::IpAddr;

/// Why a message of the host cannot be made the kernel's.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("{0} bytes are no IP address")]
    Ip(usize),
    #[error("the {0} {1} is out of range")]
    Range(&'static str, u32),
    #[error("it is not among the interfaces that are set up")]
    NoInterface,
}

/// # Errors
/// [`Malformed::Ip`].
pub(super) fn ip(bytes: &[u8]) -> Result<IpAddr, Malformed> {
    let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    four.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).map_err(|_| Malformed::Ip(bytes.len()))
}

fn some_ip(bytes: &[u8]) -> Result<Option<IpAddr>, Malformed> {
    if bytes.is_empty() { Ok(None) } else { ip(bytes).map(Some) }
}

fn byte(what: &'static str, number: u32) -> Result<u8, Malformed> {
    u8::try_from(number).map_err(|_| Malformed::Range(what, number))
}

fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet }
}

/// A change of a link's attribute.
pub(super) fn with(index: u32, attribute: LinkAttribute) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.attributes = vec![attribute];
    link
}

pub(super) fn up(index: u32) -> LinkMessage {
    let mut link = down(index);
    link.header.flags = LinkFlags::Up;
    link
}

pub(super) fn down(index: u32) -> LinkMessage {
    let mut link = LinkMessage::default();
    (link.header.index, link.header.change_mask) = (index, LinkFlags::Up);
    link
}

/// Has the kernel make no link-local address by itself: the namespace's comes with the others.
pub(super) fn without_own_addresses(index: u32) -> LinkMessage {
    let none = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
    with(index, LinkAttribute::AfSpecUnspec(vec![none]))
}

/// # Errors
/// [`Malformed`].
pub(super) fn address(index: u32, address: &Address) -> Result<RouteNetlinkMessage, Malformed> {
    let own = ip(&address.ip)?;
    let peer = some_ip(&address.peer)?;
    let mut message = AddressMessage::default();
    message.header.family = family(own);
    message.header.index = index;
    message.header.prefix_len = byte("prefix length", address.prefix_length)?;
    message.header.scope = byte("scope", address.scope)?.into();
    let flags = AddressFlags::Noprefixroute | AddressFlags::Nodad | AddressFlags::Permanent;
    message.attributes = vec![
        AddressAttribute::Local(own),
        AddressAttribute::Address(peer.unwrap_or(own)),
        AddressAttribute::Flags(flags),
    ];
    if let Some(IpAddr::V4(broadcast)) = some_ip(&address.broadcast)? {
        message.attributes.push(AddressAttribute::Broadcast(broadcast));
    }
    Ok(RouteNetlinkMessage::NewAddress(message))
}

/// # Errors
/// [`Malformed`].
pub(super) fn neighbour(index: u32, neighbour: &Neighbour) -> Result<RouteNetlinkMessage, Malformed> {
    let to = ip(&neighbour.ip)?;
    let mut message = NeighbourMessage::default();
    (message.header.family, message.header.ifindex) = (family(to), index);
    message.header.state = NeighbourState::Permanent;
    message.attributes = vec![
        NeighbourAttribute::Destination(match to {
            IpAddr::V4(to) => NeighbourAddress::Inet(to),
            IpAddr::V6(to) => NeighbourAddress::Inet6(to),
        }),
        NeighbourAttribute::LinkLayerAddress(neighbour.mac.clone()),
    ];
    Ok(RouteNetlinkMessage::NewNeighbour(message))
}

/// `index` is that of the route's interface.
///
/// # Errors
/// [`Malformed`].
pub(super) fn route(index: Option<u32>, route: &Route) -> Result<RouteNetlinkMessage, Malformed> {
    let to = ip(&route.destination)?;
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = family(to);
    header.destination_prefix_length = byte("prefix length", route.prefix_length)?;
    header.scope = byte("scope", route.scope)?.into();
    header.protocol = byte("protocol", route.protocol)?.into();
    header.kind = byte("type", route.type_)?.into();
    if route.onlink {
        header.flags = RouteFlags::Onlink;
    }
    let attributes = &mut message.attributes;
    if route.prefix_length > 0 {
        attributes.push(RouteAttribute::Destination(to.into()));
    }
    // The header's field of the table has eight bits.
    attributes.push(RouteAttribute::Table(route.table));
    match index {
        Some(index) => attributes.push(RouteAttribute::Oif(index)),
        None if route.interface.is_empty() => {}
        None => return Err(Malformed::NoInterface),
    }
    match some_ip(&route.gateway)? {
        Some(gateway) if gateway.is_ipv6() == to.is_ipv6() => {
            attributes.push(RouteAttribute::Gateway(gateway.into()));
        }
        Some(IpAddr::V6(gateway)) => attributes.push(RouteAttribute::Via(RouteVia::Inet6(gateway))),
        Some(IpAddr::V4(gateway)) => attributes.push(RouteAttribute::Via(RouteVia::Inet(gateway))),
        None => {}
    }
    if let Some(source) = some_ip(&route.source)? {
        attributes.push(RouteAttribute::PrefSource(source.into()));
    }
    if route.priority != 0 {
        attributes.push(RouteAttribute::Priority(route.priority));
    }
    if route.mtu != 0 {
        attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(route.mtu)]));
    }
    Ok(RouteNetlinkMessage::NewRoute(message))
}

/// # Errors
/// [`Malformed`].
pub(super) fn rule(rule: &Rule) -> Result<RouteNetlinkMessage, Malformed> {
    let mut message = RuleMessage::default();
    message.header.family = if rule.ipv6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    message.header.action = byte("action", rule.action)?.into();
    if rule.invert {
        message.header.flags = RuleFlags::Invert;
    }
    let attributes = &mut message.attributes;
    attributes.extend([RuleAttribute::Priority(rule.priority), RuleAttribute::Table(rule.table)]);
    if let Some(source) = some_ip(&rule.source)? {
        message.header.src_len = byte("prefix length", rule.source_prefix_length)?;
        attributes.push(RuleAttribute::Source(source));
    }
    if let Some(destination) = some_ip(&rule.destination)? {
        message.header.dst_len = byte("prefix length", rule.destination_prefix_length)?;
        attributes.push(RuleAttribute::Destination(destination));
    }
    if !rule.input_interface.is_empty() {
        attributes.push(RuleAttribute::Iifname(rule.input_interface.clone()));
    }
    if !rule.output_interface.is_empty() {
        attributes.push(RuleAttribute::Oifname(rule.output_interface.clone()));
    }
    if rule.mark_mask != 0 {
        attributes.extend([RuleAttribute::FwMark(rule.mark), RuleAttribute::FwMask(rule.mark_mask)]);
    }
    Ok(RouteNetlinkMessage::NewRule(message))
}
