use super::*;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};

#[test]
fn the_loopback_interface_is_listed() {
    let links = Netlink::open().unwrap().dump(&RouteNetlinkMessage::GetLink(LinkMessage::default())).unwrap();
    let name = LinkAttribute::IfName("lo".into());
    let is_loopback = |link: &RouteNetlinkMessage| match link {
        RouteNetlinkMessage::NewLink(link) => link.attributes.contains(&name),
        _ => false,
    };
    assert_eq!(links.iter().filter(|link| is_loopback(link)).count(), 1);
}

#[test]
fn a_refusal_has_the_kernels_number() {
    let mut link = LinkMessage::default();
    link.header.index = u32::from(u16::MAX);
    let refused = Netlink::open().unwrap().request(RouteNetlinkMessage::SetLink(link), 0).unwrap_err();
    assert_eq!(refused.refused(), Some(Errno::ENODEV), "{refused}");
}
