//! The machine's slots for network interfaces, and what the shim plugs into them.

use crate::control::send;
use crate::machine::{Machine, MachineError, Part, Placement};
use crate::virtio::net::{Link, Net, Parts, Tap};
use lazaret_vmm_wire::{Channel, Descriptors, Event, MAX_QUEUE_PAIRS, Name, Nic, NicState, VmConfig};
use std::sync::Arc;

/// The threads of the queue pairs. The first pairs of all slots share one, so that a spare slot costs no thread.
const THREADS: [&str; MAX_QUEUE_PAIRS as usize] = ["net0", "net1", "net2", "net3"];

/// Plugs the device of a slot into the machine; returns its link. The control queue has little to do, and is served by the
/// main loop.
///
/// # Errors
/// See [`MachineError`].
pub(crate) fn add(machine: &mut Machine, slot: u8, net: Net) -> Result<Link, MachineError> {
    let (link, shape) = (net.link(), net.shape());
    let Parts { pairs, control } = net.into_parts()?;
    let name = format!("nic{slot}");
    let part = |placement, device| Part { name: name.clone(), device, placement };
    let pairs = THREADS.into_iter().zip(pairs);
    let mut parts: Vec<_> = pairs.map(|(thread, pair)| part(Placement::Thread(thread), pair)).collect();
    parts.push(part(Placement::Shared, control));
    machine.add_parts(shape, parts)?;
    Ok(link)
}

/// The slots of a VM whose shim is at the other end of `channel`.
pub(crate) struct Nics {
    links: Vec<Link>,
    queue_pairs: u8,
    channel: Arc<Channel>,
}

impl Nics {
    /// Gives `machine` the slots that `config` asks for.
    ///
    /// # Errors
    /// See [`MachineError`].
    pub(crate) fn new(
        machine: &mut Machine,
        config: &VmConfig,
        channel: &Arc<Channel>,
    ) -> Result<Self, MachineError> {
        let queue_pairs = config.queue_pairs();
        let links = (0..config.nics).map(|slot| add(machine, slot, Net::new(slot, queue_pairs.into())?));
        Ok(Self { links: links.collect::<Result<_, _>>()?, queue_pairs, channel: Arc::clone(channel) })
    }

    /// [`Request::PlugNic`](lazaret_vmm_wire::Request::PlugNic); it is answered by this.
    pub(crate) fn plug(&self, slot: u8, nic: Nic, descriptors: Descriptors) {
        let state = match self.try_plug(slot, nic, descriptors) {
            Ok(()) => NicState::Plugged,
            Err(why) => NicState::Refused(why),
        };
        report(&self.channel, slot, state);
    }

    fn try_plug(&self, slot: u8, nic: Nic, mut descriptors: Descriptors) -> Result<(), String> {
        let link = self.link(slot)?;
        let mut taps = Vec::new();
        for queue in 0..self.queue_pairs {
            let name = Name::Tap(queue);
            let descriptor = descriptors.take(name).map_err(|error| error.to_string())?;
            let tap = Tap::from_descriptor(descriptor);
            taps.push(tap.map_err(|error| format!("the descriptor \"{name}\": {error}"))?);
        }
        descriptors.finish().map_err(|error| error.to_string())?;
        let channel = Arc::clone(&self.channel);
        let unplugged = move || report(&channel, slot, NicState::Unplugged);
        link.plug(taps, nic.mac, nic.mtu, unplugged).map_err(|error| error.to_string())
    }

    /// [`Request::UnplugNic`](lazaret_vmm_wire::Request::UnplugNic). The answer is sent when the tap is closed, by the last
    /// thread that has it.
    pub(crate) fn unplug(&self, slot: u8) {
        let refused = match self.link(slot) {
            Ok(link) if link.unplug() => return,
            Ok(_) => "nothing is plugged in".to_owned(),
            Err(why) => why,
        };
        report(&self.channel, slot, NicState::Refused(refused));
    }

    fn link(&self, slot: u8) -> Result<&Link, String> {
        let link = self.links.get(usize::from(slot));
        link.ok_or_else(|| format!("the VM has {} slots for network interfaces, from 0 on", self.links.len()))
    }
}

fn report(channel: &Channel, slot: u8, state: NicState) {
    if let Err(error) = send(channel, &Event::Nic { slot, state }) {
        log::warn!("network interface {slot}: {error}");
    }
}
