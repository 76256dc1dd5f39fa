//! Where packets go: ingress qdiscs, and filters of u32 and mirred alone, which every distribution's kernel has.
//!
//! The filters of an interface, by priority; the first that matches decides:
//!
//! | interface | | goes to |
//! |---|---|---|
//! | 1 | ARP | the guest and the namespace |
//! | 2 | IPv6 neighbour discovery (ICMPv6 types 133 to 137) | the guest and the namespace |
//! | 2, 3 | TCP and UDP to [`PORTS`] | the namespace |
//! | 9 | everything else | the guest |
//!
//! | tap | with `anti_spoofing` | goes to |
//! |---|---|---|
//! | 1 | ARP from the interface's MAC address and one of its IPv4 addresses, or none | the interface |
//! | 2 | IPv6 from the interface's MAC address and one of its IPv6 addresses, or none | the interface |
//! | 3 | IPv4 from the interface's MAC address and one of its IPv4 addresses | the interface |
//! | 9 | everything else | nobody; without `anti_spoofing` the interface |
//!
//! Before them, on the tap of a user-mode network: IPv6 to `::/64` (2) and IPv4 to 127.0.0.0/8 and 0.0.0.0/8 (3) go to nobody.

use super::ports::{MASK, PORTS};
use lazaret_netlink::packet::RouteNetlinkMessage;
use lazaret_netlink::packet::tc::{
    TcAction, TcActionAttribute, TcActionMirrorOption, TcActionOption, TcActionType, TcAttribute,
    TcFilterU32Option, TcHandle, TcMessage, TcMirror, TcMirrorActionType, TcOption, TcU32Key, TcU32Selector,
    TcU32SelectorFlags,
};
use lazaret_netlink::{NLM_F_CREATE, NLM_F_EXCL, Netlink, NetlinkError};
use nix::errno::Errno;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// How long a qdisc may be busy with its predecessor's end, and how often it is tried meanwhile. There is no event for it.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);
const BUSY_INTERVAL: Duration = Duration::from_millis(20);

/// The handle of an ingress qdisc, which filters name as their parent.
const INGRESS: TcHandle = TcHandle { major: 0xffff, minor: 0 };

/// What the priorities of every other set of filters are higher by.
const TURN: u16 = 16;

/// EtherTypes (`linux/if_ether.h`).
const ALL: u16 = 0x0003;
const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;

const TCP_UDP: [u8; 2] = [6, 17];
const ICMPV6: u32 = 58;

/// An ingress qdisc. Its end, on which all filters of the interface end, too, is this guard's.
#[derive(Debug)]
pub(super) struct Ingress {
    netlink: Netlink,
    index: u32,
    /// What is added to the priorities of the filters that there are: they take turns, see [`Ingress::set_filters`].
    turn: u16,
    /// Their priorities and protocols.
    filters: BTreeSet<(u16, u16)>,
}

impl Ingress {
    /// Gives the interface an ingress qdisc. `EEXIST` when it has one.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn add(index: u32) -> Result<Self, NetlinkError> {
        let mut netlink = Netlink::open()?;
        let add = RouteNetlinkMessage::NewQueueDiscipline(qdisc(index));
        let begun = Instant::now();
        loop {
            match netlink.request(add.clone(), NLM_F_CREATE | NLM_F_EXCL) {
                Err(error) if error.refused() == Some(Errno::EBUSY) && begun.elapsed() < BUSY_TIMEOUT => {
                    std::thread::sleep(BUSY_INTERVAL);
                }
                added => {
                    return added.map(|()| Self { netlink, index, turn: TURN, filters: BTreeSet::new() });
                }
            }
        }
    }

    /// Has these filters, and no others. The last of them is to match every packet. The new ones are there before the old ones go,
    /// and those that go first are the last, so each packet meets the old ones or the new ones.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn set_filters(&mut self, filters: Vec<Filter>) -> Result<(), NetlinkError> {
        let turn = TURN - self.turn;
        let mut added = BTreeSet::new();
        for mut filter in filters {
            filter.priority += turn;
            added.insert((filter.priority, filter.protocol));
            let add = RouteNetlinkMessage::NewTrafficFilter(filter.message(self.index));
            if let Err(error) = self.netlink.request(add, NLM_F_CREATE | NLM_F_EXCL) {
                self.remove(&added);
                return Err(error);
            }
        }
        let replaced = std::mem::replace(&mut self.filters, added);
        self.remove(&replaced);
        self.turn = turn;
        Ok(())
    }

    fn remove(&mut self, filters: &BTreeSet<(u16, u16)>) {
        for (priority, protocol) in filters.iter().rev() {
            let mut message = TcMessage::with_index(self.index.cast_signed());
            message.header.parent = INGRESS;
            message.header.info = info(*priority, *protocol);
            let delete = RouteNetlinkMessage::DelTrafficFilter(message);
            if let Err(error) = self.netlink.request(delete, 0) {
                log::debug!("removing filters of interface {}: {error}", self.index);
            }
        }
    }
}

impl Drop for Ingress {
    fn drop(&mut self) {
        remove(&mut self.netlink, self.index);
    }
}

/// Takes the ingress qdisc from an interface of this thread's network namespace.
pub(super) fn remove_ingress(index: u32) {
    match Netlink::open() {
        Ok(mut netlink) => remove(&mut netlink, index),
        Err(error) => log::warn!("{error}"),
    }
}

fn remove(netlink: &mut Netlink, index: u32) {
    match netlink.request(RouteNetlinkMessage::DelQueueDiscipline(qdisc(index)), 0) {
        Ok(()) => {}
        // It went with its interface.
        Err(error) if matches!(error.refused(), Some(Errno::ENODEV | Errno::ENOENT | Errno::EINVAL)) => {}
        Err(error) => log::warn!("cannot take the ingress qdisc from interface {index}: {error}"),
    }
}

fn qdisc(index: u32) -> TcMessage {
    let mut message = TcMessage::with_index(index.cast_signed());
    (message.header.handle, message.header.parent) = (INGRESS, TcHandle::INGRESS);
    message.attributes = vec![TcAttribute::Kind("ingress".into())];
    message
}

/// What a packet must have in the four bytes at an offset from its network header.
#[derive(Debug, Clone, Copy)]
struct Word {
    at: i32,
    value: u32,
    mask: u32,
}

/// What happens to a packet.
#[derive(Debug, Clone, Copy)]
enum Verdict {
    /// It goes to the namespace's own sockets.
    Pass,
    /// It goes there, and a copy to the interface with this index.
    MirrorAndPass(u32),
    /// It goes to the interface with this index.
    Redirect(u32),
    /// It goes nowhere. There is no action for that in mirred, and gact is not in every kernel. But a redirection ends in the
    /// verdict it was given when its interface is gone: the index is that of an interface that goes right after.
    Drop(u32),
}

/// A filter of an ingress qdisc.
#[derive(Debug)]
pub(super) struct Filter {
    priority: u16,
    protocol: u16,
    /// All of them; none matches every packet.
    words: Vec<Word>,
    verdict: Verdict,
}

impl Filter {
    fn message(&self, index: u32) -> TcMessage {
        let mut selector = TcU32Selector::default();
        selector.flags = TcU32SelectorFlags::Terminal;
        let any = Word { at: 0, value: 0, mask: 0 };
        let words = if self.words.is_empty() { std::slice::from_ref(&any) } else { &self.words };
        selector.keys = words.iter().copied().map(key).collect();
        // There are a dozen at most.
        selector.nkeys = u8::try_from(words.len()).unwrap_or(u8::MAX);
        let mut options = vec![TcOption::U32(TcFilterU32Option::Selector(selector))];
        let action = match self.verdict {
            // A filter without an action lets pass what it matches.
            Verdict::Pass => None,
            Verdict::MirrorAndPass(to) => Some((TcMirrorActionType::EgressMirror, TcActionType::Ok, to)),
            Verdict::Redirect(to) => Some((TcMirrorActionType::EgressRedir, TcActionType::Stolen, to)),
            Verdict::Drop(to) => Some((TcMirrorActionType::EgressRedir, TcActionType::Shot, to)),
        };
        let action = action
            .map(|(kind, then, to)| TcOption::U32(TcFilterU32Option::Action(vec![mirred(kind, then, to)])));
        options.extend(action);
        let mut message = TcMessage::with_index(index.cast_signed());
        message.header.parent = INGRESS;
        message.header.info = info(self.priority, self.protocol);
        message.attributes = vec![TcAttribute::Kind("u32".into()), TcAttribute::Options(options)];
        message
    }
}

/// `tcm_info`: the priority, and the protocol as the network has it.
fn info(priority: u16, protocol: u16) -> u32 {
    u32::from(priority) << 16 | u32::from(protocol.to_be())
}

fn key(word: Word) -> TcU32Key {
    let mut key = TcU32Key::default();
    (key.off, key.val, key.mask) = (word.at, word.value, word.mask);
    key
}

fn mirred(kind: TcMirrorActionType, then: TcActionType, to: u32) -> TcAction {
    let mut mirror = TcMirror::default();
    (mirror.eaction, mirror.generic.action, mirror.ifindex) = (kind, then, to);
    let options = vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))];
    let mut action = TcAction::default();
    action.attributes = vec![TcActionAttribute::Kind("mirred".into()), TcActionAttribute::Options(options)];
    action
}

/// The filters of an interface whose guest's end is `tap`.
pub(super) fn of_interface(tap: u32) -> Vec<Filter> {
    let mirrored = Verdict::MirrorAndPass(tap);
    let mut filters = vec![Filter { priority: 1, protocol: ARP, words: Vec::new(), verdict: mirrored }];
    // ICMPv6 types 133, 134 to 135, 136 to 137.
    for (kind, mask) in [(133, 0xff), (134, 0xfe), (136, 0xfe)] {
        let words = vec![
            Word { at: 4, value: ICMPV6 << 8, mask: 0xff00 },
            Word { at: 40, value: kind << 24, mask: mask << 24 },
        ];
        filters.push(Filter { priority: 2, protocol: IPV6, words, verdict: mirrored });
    }
    let (port, mask) = (u32::from(*PORTS.start()), u32::from(MASK));
    for protocol in TCP_UDP.map(u32::from) {
        let words =
            vec![Word { at: 4, value: protocol << 8, mask: 0xff00 }, Word { at: 40, value: port, mask }];
        filters.push(Filter { priority: 2, protocol: IPV6, words, verdict: Verdict::Pass });
    }
    for protocol in TCP_UDP.map(u32::from) {
        let words = vec![
            // Without options, and not a fragment: the ports are where they are looked for.
            Word { at: 0, value: 0x4500_0000, mask: 0xff00_0000 },
            Word { at: 4, value: 0, mask: 0x3fff },
            Word { at: 8, value: protocol << 16, mask: 0x00ff_0000 },
            Word { at: 20, value: port, mask },
        ];
        filters.push(Filter { priority: 3, protocol: IPV4, words, verdict: Verdict::Pass });
    }
    filters.push(Filter { priority: 9, protocol: ALL, words: Vec::new(), verdict: Verdict::Redirect(tap) });
    filters
}

/// The filters that come first on the tap of a user-mode network: nothing goes to what a socket of the host takes for its
/// loopback interface. IPv6's loopback address, its unspecified one, and those that stand for IPv4's are all in `::/64`.
/// pasta of 2025 passes UDP to `::ffff:127.0.0.1` on. `sink` is as in [`of_tap_without_spoofing`].
pub(super) fn of_tap_to_host(sink: u32) -> Vec<Filter> {
    let filter = |priority, protocol, words: &[Word]| Filter {
        priority,
        protocol,
        words: words.into(),
        verdict: Verdict::Drop(sink),
    };
    let zero = |at| Word { at, value: 0, mask: u32::MAX };
    let network = |number: u32| Word { at: 16, value: number << 24, mask: 0xff00_0000 };
    vec![
        filter(2, IPV6, &[zero(24), zero(28)]),
        filter(3, IPV4, &[network(127)]),
        filter(3, IPV4, &[network(0)]),
    ]
}

/// The filters of the tap of an interface with index `to`.
pub(super) fn of_tap(to: u32) -> Vec<Filter> {
    vec![Filter { priority: 9, protocol: ALL, words: Vec::new(), verdict: Verdict::Redirect(to) }]
}

/// The same, that let pass what is sent under the interface's own addresses. `sink` is the index of an interface that is to
/// be taken away before the tap goes up.
pub(super) fn of_tap_without_spoofing(to: u32, mac: [u8; 6], addresses: &[IpAddr], sink: u32) -> Vec<Filter> {
    let [a, b, c, d, e, f] = mac;
    let (high, low) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, 0, 0]));
    // The source is the second address of an Ethernet header, which ends where the network header begins.
    let from_mac =
        [Word { at: -8, value: high, mask: u32::MAX }, Word { at: -4, value: low, mask: 0xffff_0000 }];
    let filter = |priority, protocol, words: &[Word]| Filter {
        priority,
        protocol,
        words: [&from_mac, words].concat(),
        verdict: Verdict::Redirect(to),
    };
    let mut filters = Vec::new();
    // A sender looks for others of its address from none (RFC 5227, RFC 4862).
    let none = [std::net::Ipv4Addr::UNSPECIFIED.into(), std::net::Ipv6Addr::UNSPECIFIED.into()];
    for address in addresses.iter().chain(&none) {
        match address {
            IpAddr::V4(address) => {
                let bits = address.to_bits();
                filters.push(filter(
                    1,
                    ARP,
                    &[
                        Word { at: 8, value: high, mask: u32::MAX },
                        Word { at: 12, value: low | bits >> 16, mask: u32::MAX },
                        Word { at: 16, value: bits << 16, mask: 0xffff_0000 },
                    ],
                ));
                if !address.is_unspecified() {
                    filters.push(filter(3, IPV4, &[Word { at: 12, value: bits, mask: u32::MAX }]));
                }
            }
            IpAddr::V6(address) => {
                let word = |(at, octets): (i32, &[u8; 4])| Word {
                    at,
                    value: u32::from_be_bytes(*octets),
                    mask: u32::MAX,
                };
                let octets = address.octets();
                let (words, _) = octets.as_chunks();
                let words: Vec<_> = (8..24).step_by(4).zip(words).map(word).collect();
                filters.push(filter(2, IPV6, &words));
            }
        }
    }
    filters.push(Filter { priority: 9, protocol: ALL, words: Vec::new(), verdict: Verdict::Drop(sink) });
    filters
}
