//! What a network namespace holds, as the guest is to have it.

use super::NetworkError;
use super::tap::TAP_PREFIX;
use lazaret_agent_api::agent::{Address, Interface, Neighbour, Route, Rule};
use lazaret_netlink::Netlink;
use lazaret_netlink::packet::address::{AddressAttribute, AddressFlags, AddressMessage};
use lazaret_netlink::packet::link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage};
use lazaret_netlink::packet::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use lazaret_netlink::packet::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteProtocol, RouteType, RouteVia,
};
use lazaret_netlink::packet::rule::{RuleAttribute, RuleFlags, RuleMessage};
use lazaret_netlink::packet::{AddressFamily, RouteNetlinkMessage};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The table of the host's own addresses, which every kernel keeps itself.
const TABLE_LOCAL: u32 = 255;
/// The rules that every namespace has: priority and table.
const DEFAULT_RULES: [(u32, u32); 3] = [(0, TABLE_LOCAL), (32766, 254), (32767, 253)];

/// What is to be wired, by the index of the interface, and what goes with it.
#[derive(Debug, Default)]
pub(super) struct Inventory {
    pub interfaces: BTreeMap<u32, Interface>,
    pub routes: Vec<Route>,
    pub rules: Vec<Rule>,
    /// What the guest will not have, one line each.
    pub missing: Vec<String>,
}

impl Inventory {
    /// Looks at this thread's network namespace. An interface that is down counts when `is_wired` says so of its index.
    ///
    /// # Errors
    /// [`NetworkError::Read`].
    pub(super) fn read(netlink: &mut Netlink, is_wired: impl Fn(u32) -> bool) -> Result<Self, NetworkError> {
        let mut inventory = Self::default();
        let mut list = |what, get| netlink.dump(&get).map_err(|source| NetworkError::Read { what, source });
        for message in list("interfaces", RouteNetlinkMessage::GetLink(LinkMessage::default()))? {
            if let RouteNetlinkMessage::NewLink(link) = message {
                let is_wired = is_wired(link.header.index);
                inventory.link(link, is_wired);
            }
        }
        if inventory.interfaces.is_empty() {
            return Ok(inventory);
        }
        for message in list("addresses", RouteNetlinkMessage::GetAddress(AddressMessage::default()))? {
            if let RouteNetlinkMessage::NewAddress(address) = message {
                inventory.address(&address);
            }
        }
        for message in list("routes", RouteNetlinkMessage::GetRoute(RouteMessage::default()))? {
            if let RouteNetlinkMessage::NewRoute(route) = message {
                inventory.route(&route);
            }
        }
        for message in list("rules", RouteNetlinkMessage::GetRule(RuleMessage::default()))? {
            if let RouteNetlinkMessage::NewRule(rule) = message {
                inventory.rule(&rule);
            }
        }
        for message in list("neighbours", RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()))? {
            if let RouteNetlinkMessage::NewNeighbour(neighbour) = message {
                inventory.neighbour(&neighbour);
            }
        }
        Ok(inventory)
    }

    fn link(&mut self, link: LinkMessage, is_wired: bool) {
        let header = &link.header;
        // Tunnels that a kernel gives every namespace are down, and so is what nobody uses.
        let is_up = header.flags.contains(LinkFlags::Up) || is_wired;
        if header.flags.contains(LinkFlags::Loopback) || !is_up {
            return;
        }
        let mut interface = Interface::default();
        for attribute in link.attributes {
            match attribute {
                LinkAttribute::IfName(name) => interface.name = name,
                LinkAttribute::Address(mac) => interface.mac = mac,
                LinkAttribute::Mtu(mtu) => interface.mtu = mtu,
                _ => {}
            }
        }
        if interface.name.starts_with(TAP_PREFIX) {
            return;
        }
        // By what it does, not by its driver: veth, macvlan and ipvlan in L2 mode all carry Ethernet frames.
        if header.link_layer_type != LinkLayerType::Ether || interface.mac.len() != 6 {
            self.missing.push(format!(
                "interface {}: the guest does not have it: it carries no Ethernet frames ({:?})",
                interface.name, header.link_layer_type
            ));
            return;
        }
        self.interfaces.insert(header.index, interface);
    }

    fn address(&mut self, message: &AddressMessage) {
        let Some(interface) = self.interfaces.get_mut(&message.header.index) else { return };
        let mut address = Address {
            prefix_length: message.header.prefix_len.into(),
            scope: u8::from(message.header.scope).into(),
            ..Default::default()
        };
        let (mut local, mut other) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Local(ip) => local = Some(bytes(*ip)),
                AddressAttribute::Address(ip) => other = Some(bytes(*ip)),
                AddressAttribute::Broadcast(ip) => address.broadcast = ip.octets().into(),
                AddressAttribute::Flags(flags) if flags.contains(AddressFlags::Dadfailed) => {
                    self.missing.push(format!(
                        "interface {}: an address that another host has (duplicate address detection) is left out",
                        interface.name
                    ));
                    return;
                }
                _ => {}
            }
        }
        // IPv6 has a local address only where it differs from the other (`inet6_fill_ifaddr`).
        address.ip = local.clone().or_else(|| other.clone()).unwrap_or_default();
        address.peer = other.filter(|_| local.is_some()).filter(|ip| *ip != address.ip).unwrap_or_default();
        interface.addresses.push(address);
    }

    fn route(&mut self, message: &RouteMessage) {
        let header = &message.header;
        let length = match header.address_family {
            AddressFamily::Inet => 4,
            AddressFamily::Inet6 => 16,
            _ => return,
        };
        let unicast = header.kind == RouteType::Unicast;
        let leads_nowhere = matches!(
            header.kind,
            RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit | RouteType::Throw
        );
        if !unicast && (!leads_nowhere || header.protocol == RouteProtocol::Kernel)
            || header.flags.contains(RouteFlags::Cloned)
        {
            return;
        }
        let mut route = Route {
            destination: vec![0; length],
            prefix_length: header.destination_prefix_length.into(),
            table: header.table.into(),
            scope: u8::from(header.scope).into(),
            protocol: u8::from(header.protocol).into(),
            type_: u8::from(header.kind).into(),
            onlink: header.flags.contains(RouteFlags::Onlink),
            ..Default::default()
        };
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(to) => route.destination = route_address(to),
                RouteAttribute::Gateway(gateway) => route.gateway = route_address(gateway),
                RouteAttribute::Via(RouteVia::Inet(gateway)) => route.gateway = gateway.octets().into(),
                RouteAttribute::Via(RouteVia::Inet6(gateway)) => route.gateway = gateway.octets().into(),
                RouteAttribute::PrefSource(source) => route.source = route_address(source),
                RouteAttribute::Priority(priority) => route.priority = *priority,
                RouteAttribute::Table(table) => route.table = *table,
                RouteAttribute::Oif(index) => match self.interfaces.get(index) {
                    Some(interface) if unicast => route.interface.clone_from(&interface.name),
                    None if unicast => return,
                    _ => {}
                },
                RouteAttribute::Metrics(metrics) => {
                    let mtu = metrics.iter().find_map(|metric| match metric {
                        RouteMetric::Mtu(mtu) => Some(*mtu),
                        _ => None,
                    });
                    route.mtu = mtu.unwrap_or_default();
                }
                RouteAttribute::MultiPath(_) => {
                    self.missing.push("a route with several next hops is left out".into());
                    return;
                }
                RouteAttribute::Encap(_) => {
                    self.missing.push("a route that encapsulates is left out".into());
                    return;
                }
                _ => {}
            }
        }
        if route.table != TABLE_LOCAL && route.interface.is_empty() != unicast {
            self.routes.push(route);
        }
    }

    fn rule(&mut self, message: &RuleMessage) {
        let header = &message.header;
        let ipv6 = match header.family {
            AddressFamily::Inet => false,
            AddressFamily::Inet6 => true,
            // Of multicast routing, which every kernel that has it sets itself.
            _ => return,
        };
        let mut rule = Rule {
            ipv6,
            source_prefix_length: header.src_len.into(),
            destination_prefix_length: header.dst_len.into(),
            table: header.table.into(),
            action: u8::from(header.action).into(),
            invert: header.flags.contains(RuleFlags::Invert),
            ..Default::default()
        };
        let mut strange = header.tos != 0;
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Source(ip) => rule.source = bytes(*ip),
                RuleAttribute::Destination(ip) => rule.destination = bytes(*ip),
                RuleAttribute::Iifname(name) => rule.input_interface.clone_from(name),
                RuleAttribute::Oifname(name) => rule.output_interface.clone_from(name),
                RuleAttribute::Priority(priority) => rule.priority = *priority,
                RuleAttribute::FwMark(mark) => rule.mark = *mark,
                RuleAttribute::FwMask(mask) => rule.mark_mask = *mask,
                RuleAttribute::Table(table) => rule.table = *table,
                // All ones: no such condition.
                RuleAttribute::SuppressPrefixLen(u32::MAX) | RuleAttribute::SuppressIfGroup(u32::MAX) => {}
                RuleAttribute::Protocol(_) => {}
                _ => strange = true,
            }
        }
        let known = DEFAULT_RULES.contains(&(rule.priority, rule.table));
        let for_all = rule.source.is_empty() && rule.destination.is_empty() && rule.mark_mask == 0;
        if known && for_all && rule.input_interface.is_empty() && rule.output_interface.is_empty() && !strange
        {
            return;
        }
        if strange {
            let family = if rule.ipv6 { "IPv6" } else { "IPv4" };
            let priority = rule.priority;
            self.missing.push(format!("the {family} rule of priority {priority} is left out: it has a condition that lazaret does not know"));
            return;
        }
        self.rules.push(rule);
    }

    fn neighbour(&mut self, message: &NeighbourMessage) {
        let Some(interface) = self.interfaces.get_mut(&message.header.ifindex) else { return };
        if message.header.state != NeighbourState::Permanent {
            return;
        }
        let mut neighbour = Neighbour::default();
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => {
                    neighbour.ip = ip.octets().into();
                }
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => {
                    neighbour.ip = ip.octets().into();
                }
                NeighbourAttribute::LinkLayerAddress(mac) => neighbour.mac.clone_from(mac),
                _ => {}
            }
        }
        if !neighbour.ip.is_empty() && neighbour.mac.len() == 6 {
            interface.neighbours.push(neighbour);
        }
    }
}

fn bytes(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().into(),
        IpAddr::V6(ip) => ip.octets().into(),
    }
}

fn route_address(address: &RouteAddress) -> Vec<u8> {
    match address {
        RouteAddress::Inet(ip) => ip.octets().into(),
        RouteAddress::Inet6(ip) => ip.octets().into(),
        _ => Vec::new(),
    }
}
