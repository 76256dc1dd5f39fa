//! The wiring of a network namespace, step by step.

use super::filters::{Ingress, of_interface, of_tap, of_tap_to_host, of_tap_without_spoofing};
use super::inventory::Inventory;
use super::namespace;
use super::ports::EphemeralPorts;
use super::tap::{TAP_PREFIX, Tap};
use super::{Journal, NetworkError, ip};
use crate::sync::lock;
use lazaret_agent_api::SLOT_ADDRESS;
use lazaret_agent_api::agent::{ConfigureNetworkRequest, Interface, Route};
use lazaret_netlink::packet::RouteNetlinkMessage;
use lazaret_netlink::packet::link::{LinkAttribute, LinkFlags, LinkMessage};
use lazaret_netlink::{Netlink, NetlinkError};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

/// How to wire.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    /// The most interfaces the guest can have.
    pub slots: u8,
    /// Pairs of queues of each of the guest's network devices.
    pub queue_pairs: u16,
    /// The guest can send only under the addresses of the namespace's interface.
    pub anti_spoofing: bool,
    /// The interface leads to sockets of the host: nothing goes to the host's loopback interface.
    pub to_host: bool,
}

/// The interfaces of a namespace, and what joins each to a tap. Dropping it undoes that: the interfaces are the namespace's
/// again.
#[derive(Debug, Default)]
pub(crate) struct Wiring {
    // In the order in which they are undone. By the index of the interface.
    wired: BTreeMap<u32, WiredInterface>,
    ports: Option<EphemeralPorts>,
    /// What was said before of what the guest does not have.
    warned: BTreeSet<String>,
    /// Where the namespace outlives the sandbox.
    journal: Option<Journal>,
}

#[derive(Debug)]
struct WiredInterface {
    slot: u8,
    /// As the guest was given it.
    interface: Interface,
    /// Taken from the namespace's interface when this goes.
    _to_guest: Ingress,
    from_guest: Ingress,
}

/// What is to be done about the VM, in this order.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// Slots whose interface has gone, or is another one now. When there are some, nothing else was done: the next update does.
    pub unplug: Vec<u8>,
    pub plug: Vec<Nic>,
    /// All that the guest is to have.
    pub network: ConfigureNetworkRequest,
    /// Why interfaces are not wired.
    pub failed: Vec<NetworkError>,
}

/// The guest's end of an interface that has been wired.
#[derive(Debug)]
pub(crate) struct Nic {
    pub slot: u8,
    /// The interface's name in the namespace.
    pub name: String,
    pub mac: [u8; 6],
    pub mtu: u16,
    /// The tap's queues, one for each pair. The tap goes when all of them are closed.
    pub queues: Vec<OwnedFd>,
}

/// What `step` says before each step of the wiring: an error has the step fail.
type Step<'a> = &'a dyn Fn(&'static str) -> Result<(), NetworkError>;

impl Wiring {
    #[must_use]
    pub(crate) fn new(journal: Option<Journal>) -> Self {
        Self { journal, ..Self::default() }
    }

    /// What there is to undo, which the caller drops. This can wire anew.
    #[must_use]
    pub(crate) fn take(&mut self) -> Self {
        let unwired = Self::new(self.journal.clone());
        std::mem::replace(self, unwired)
    }

    /// Brings `wiring` to what `namespace` holds now. Nothing is changed in a namespace without interfaces.
    ///
    /// # Errors
    /// [`NetworkError`] when the namespace cannot be looked at in time; those of single interfaces are in [`Changes::failed`].
    pub(crate) async fn update(
        wiring: Arc<Mutex<Self>>,
        namespace: Arc<OwnedFd>,
        options: Options,
    ) -> Result<Changes, NetworkError> {
        let work = move || lock(&wiring).update_here(options, &|_| Ok(()));
        namespace::run(namespace, work).await
    }

    /// The slots that hold an interface.
    pub(crate) fn slots(&self) -> Vec<u8> {
        self.wired.values().map(|wired| wired.slot).collect()
    }

    /// The names of the interfaces of `namespace` that would be wired.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub(crate) async fn interfaces(namespace: Arc<OwnedFd>) -> Result<Vec<String>, NetworkError> {
        let read = || {
            let open = |source| NetworkError::Read { what: "interfaces", source };
            let inventory = Inventory::read(&mut Netlink::open().map_err(open)?, |_| false)?;
            Ok(inventory.interfaces.into_values().map(|interface| interface.name).collect())
        };
        namespace::run(namespace, read).await
    }

    /// Wires a tap device in a network namespace that goes with it. Whether this host can wire at all.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub(crate) fn try_out() -> Result<(), NetworkError> {
        let wire = || {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| NetworkError::Namespace(errno.into()))?;
            let interface = String::from("eth0");
            let no_tap = |source| NetworkError::Tap { interface: interface.clone(), source };
            let no_link = |source| NetworkError::TapLink { interface: interface.clone(), source };
            let tap = Tap::create(interface.clone(), 1).map_err(no_tap)?;
            let up = RouteNetlinkMessage::SetLink(up(tap.index));
            Netlink::open().and_then(|mut netlink| netlink.request(up, 0)).map_err(no_link)?;
            let options = Options { slots: 1, queue_pairs: 1, anti_spoofing: true, to_host: true };
            let mut changes = Self::default().update_here(options, &|_| Ok(()))?;
            changes.failed.pop().map_or(Ok(()), Err)
        };
        let failed = |_| NetworkError::Namespace(io::Error::other("its thread failed"));
        std::thread::spawn(wire).join().map_err(failed)?
    }

    /// [`Wiring::update`] in this thread's network namespace.
    fn update_here(&mut self, options: Options, step: Step<'_>) -> Result<Changes, NetworkError> {
        let open = |source| NetworkError::Read { what: "interfaces", source };
        let mut netlink = Netlink::open().map_err(open)?;
        let inventory = Inventory::read(&mut netlink, |index| self.wired.contains_key(&index))?;
        for line in inventory.missing {
            if self.warned.insert(line.clone()) {
                log::warn!("network: {line}");
            }
        }
        let mut found = inventory.interfaces;
        let mut unplug = Vec::new();
        self.wired.retain(|index, WiredInterface { slot, interface, .. }| {
            let same = |now: &Interface| now.mac == interface.mac && now.mtu == interface.mtu;
            let stays = found.get(index).is_some_and(same);
            if !stays {
                unplug.push(*slot);
            }
            stays
        });
        if !unplug.is_empty() {
            return Ok(Changes { unplug, ..Changes::default() });
        }
        if !found.is_empty() {
            step("reserve ports")?;
            self.reserve_ports(found.keys().copied().collect())?;
        }
        let mut changes = Changes::default();
        for (&index, interface) in &mut found {
            let wired = match self.wired.get_mut(&index) {
                Some(wired) => wired.refresh(index, interface, options),
                None => {
                    self.wire(&mut netlink, index, interface, options, step).map(|nic| changes.plug.push(nic))
                }
            };
            match wired {
                Ok(()) => changes.network.interfaces.push(self.wired[&index].interface.clone()),
                Err(error) => changes.failed.push(error),
            }
        }
        step("hand over")?;
        let is_wired = |route: &Route| {
            let mut interfaces = changes.network.interfaces.iter();
            route.interface.is_empty() || interfaces.any(|interface| interface.name == route.interface)
        };
        changes.network.routes = inventory.routes.into_iter().filter(is_wired).collect();
        changes.network.rules = inventory.rules;
        Ok(changes)
    }

    /// Reserves the namespace's ports, and has the journal tell of that and of `interfaces`.
    fn reserve_ports(&mut self, interfaces: BTreeSet<u32>) -> Result<(), NetworkError> {
        let journal = self.journal.clone();
        let write = |range: &str| match &journal {
            Some(journal) => journal
                .write(interfaces, range)
                .map_err(|source| NetworkError::Journal { path: journal.file.clone(), source }),
            None => Ok(()),
        };
        match &self.ports {
            Some(ports) => write(&ports.before),
            None => {
                self.ports = Some(EphemeralPorts::reserve(write)?);
                Ok(())
            }
        }
    }

    /// Wires an interface to a slot that is free.
    fn wire(
        &mut self,
        netlink: &mut Netlink,
        index: u32,
        interface: &Interface,
        options: Options,
        step: Step<'_>,
    ) -> Result<Nic, NetworkError> {
        let (name, most) = (interface.name.clone(), options.slots);
        let taken = |slot: &u8| self.wired.values().any(|wired| wired.slot == *slot);
        let slot = (0..most).find(|slot| !taken(slot));
        let slot = slot.ok_or_else(|| NetworkError::TooMany { interface: name.clone(), most })?;
        let mac =
            interface.mac.as_slice().try_into().map_err(|_| NetworkError::Mac { interface: name.clone() })?;
        let mtu = u16::try_from(interface.mtu)
            .map_err(|_| NetworkError::Mtu { interface: name.clone(), mtu: interface.mtu })?;
        let mut interface = interface.clone();
        interface.device = [&SLOT_ADDRESS[..], &[slot]].concat();
        let (tap, wired) = WiredInterface::wire(netlink, slot, index, interface, options, step)?;
        self.wired.insert(index, wired);
        Ok(Nic { slot, name, mac, mtu, queues: tap.queues })
    }
}

impl WiredInterface {
    /// Joins the interface with that index to a new tap.
    fn wire(
        netlink: &mut Netlink,
        slot: u8,
        index: u32,
        interface: Interface,
        options: Options,
        step: Step<'_>,
    ) -> Result<(Tap, Self), NetworkError> {
        let name = || interface.name.clone();
        let no_tap = |source: io::Error| match source.kind() {
            io::ErrorKind::ResourceBusy => NetworkError::Shared { interface: name() },
            _ => NetworkError::Tap { interface: name(), source },
        };
        let no_link = |source| NetworkError::TapLink { interface: name(), source };
        let no_filter = |source: NetlinkError| match source.refused() {
            Some(Errno::EEXIST) => NetworkError::IngressInUse { interface: name() },
            _ => NetworkError::Filter { interface: name(), source },
        };
        step("make the tap")?;
        let tap = Tap::create(format!("{TAP_PREFIX}{slot}"), options.queue_pairs).map_err(no_tap)?;
        step("keep the tap quiet")?;
        // The tap is a wire's end: the namespace is to have no address on it, and nothing to say.
        disable_ipv6(&tap.name).map_err(no_tap)?;

        step("tap's qdisc")?;
        let mut from_guest = Ingress::add(tap.index).map_err(no_filter)?;
        step("tap's filters")?;
        filter_guest(&mut from_guest, index, &interface, options)?;
        // After the tap's filters, so that nothing the guest sends can reach the namespace; before the interface's, whose
        // packets it takes.
        step("tap up")?;
        let mut up = up(tap.index);
        up.attributes = vec![LinkAttribute::Mtu(interface.mtu)];
        netlink.request(RouteNetlinkMessage::SetLink(up), 0).map_err(no_link)?;

        step("interface's qdisc")?;
        let mut to_guest = Ingress::add(index).map_err(no_filter)?;
        step("interface's filters")?;
        to_guest.set_filters(of_interface(tap.index)).map_err(no_filter)?;
        Ok((tap, Self { slot, interface, _to_guest: to_guest, from_guest }))
    }

    /// Takes over what may change of an interface that stays: name, addresses, neighbours.
    fn refresh(&mut self, index: u32, now: &mut Interface, options: Options) -> Result<(), NetworkError> {
        now.device.clone_from(&self.interface.device);
        if addresses(now) != addresses(&self.interface) {
            filter_guest(&mut self.from_guest, index, now, options)?;
        }
        self.interface.clone_from(now);
        Ok(())
    }
}

/// Sets the filters of the tap that is joined to the interface with index `to`.
fn filter_guest(
    from_guest: &mut Ingress,
    to: u32,
    interface: &Interface,
    options: Options,
) -> Result<(), NetworkError> {
    let name = || interface.name.clone();
    let sink = Tap::create(format!("{TAP_PREFIX}-sink"), 1)
        .map_err(|source| NetworkError::Tap { interface: name(), source })?;
    let mut filters = if options.to_host { of_tap_to_host(sink.index) } else { Vec::new() };
    if options.anti_spoofing {
        let mac = interface.mac.as_slice().try_into().unwrap_or_default();
        filters.extend(of_tap_without_spoofing(to, mac, &addresses(interface), sink.index));
    } else {
        filters.extend(of_tap(to));
    }
    let set = from_guest.set_filters(filters);
    set.map_err(|source| NetworkError::Filter { interface: name(), source })
}

pub(super) fn up(index: u32) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = index;
    (link.header.flags, link.header.change_mask) = (LinkFlags::Up, LinkFlags::Up);
    link
}

fn disable_ipv6(interface: &str) -> io::Result<()> {
    match std::fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6"), "1") {
        // A host without IPv6.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn addresses(interface: &Interface) -> Vec<IpAddr> {
    interface.addresses.iter().filter_map(|address| ip(&address.ip)).collect()
}

#[cfg(test)]
#[path = "wiring_test.rs"]
mod tests;
