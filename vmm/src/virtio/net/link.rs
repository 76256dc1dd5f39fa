//! What is behind a slot: nothing, or the queues of a tap. It is changed by the shim, by the driver's commands and by the
//! tap's end; the threads of the queue pairs follow.
//!
//! ```text
//!   shim ── plug, unplug ──►┐                    ┌──► config space: MAC, status, MTU
//!   control queue ── set ──►├ Link (one lock) ───┤
//!   pair ── lost ──────────►┘                    └──► wake: each pair takes its tap anew; an interrupt for the driver
//! ```

use super::features::Features;
use super::tap::Tap;
use crate::virtio::ConfigSpace;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};
use virtio_bindings::virtio_net::VIRTIO_NET_S_LINK_UP;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// An Ethernet address.
pub type Mac = [u8; 6];

/// MTUs of a tap: the least IPv4 allows (RFC 791), the largest a 16-bit field holds.
const MTU: std::ops::RangeInclusive<u16> = 68..=u16::MAX;

/// The settings of the host's tap that a guest may change at once, and how long it takes to earn one more. Each takes the
/// host's routing lock and waits for all of its processors, which a guest could otherwise have it do all day.
const HOST_CHANGES: u32 = 16;
const HOST_CHANGE_EVERY: Duration = Duration::from_secs(1);

/// Why a slot is not plugged.
#[derive(Debug, thiserror::Error)]
pub enum PlugError {
    #[error("the slot is in use")]
    InUse,
    #[error("the slot's former network interface is still being unplugged")]
    Unplugging,
    #[error("the slot takes {want} queues of a tap, not {got}")]
    Queues { got: usize, want: u16 },
    #[error("an MTU is from {} to {}, not {mtu}", MTU.start(), MTU.end())]
    Mtu { mtu: u16 },
    #[error("{0:02x?} is not the address of one network interface")]
    Mac(Mac),
    #[error("cannot set up the tap device: {0}")]
    Tap(#[from] io::Error),
}

/// Why a driver's command is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refused;

/// What is plugged into a slot. Its end, when the last pair has let go of it, closes the tap and then says so.
pub(super) struct Plug {
    taps: Vec<Tap>,
    gone: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl Plug {
    /// The tap's queue for `pair`. There are as many as pairs.
    pub(super) fn tap(&self, pair: u16) -> Option<&Tap> {
        self.taps.get(usize::from(pair))
    }
}

impl Drop for Plug {
    fn drop(&mut self) {
        self.taps.clear();
        if let Some(gone) = self.gone.take() {
            gone();
        }
    }
}

/// The link of one slot, shared by the threads of its pairs, the control queue's and the shim's.
#[derive(Clone)]
pub struct Link(Arc<Shared>);

struct Shared {
    pairs: u16,
    config: Arc<ConfigSpace>,
    state: Mutex<State>,
    /// One for each pair, then one for the control queue. They are written when what concerns them has changed.
    wakes: Vec<EventFd>,
}

/// What a saved device would have in it, but for the plug.
struct State {
    mac: Mac,
    mtu: u16,
    /// What the driver negotiated; `None` while there is none.
    features: Option<Features>,
    /// Pairs in use by the driver.
    enabled: u16,
    plug: Option<Arc<Plug>>,
    /// The plug before, as long as a pair has it.
    former: Weak<Plug>,
    /// What the tap is set to: `TUN_F_*` flags, and pairs that it delivers to.
    applied: (u32, u16),
    allowance: Allowance,
}

impl Link {
    /// A link that is down, of a device with `pairs` pairs of queues.
    pub(super) fn new(pairs: u16, mac: Mac) -> io::Result<Self> {
        let wakes = (0..=pairs).map(|_| EventFd::new(EFD_NONBLOCK)).collect::<io::Result<_>>()?;
        let state = State {
            mac,
            mtu: 0,
            features: None,
            enabled: 1,
            plug: None,
            former: Weak::new(),
            applied: (0, pairs),
            allowance: Allowance::new(Instant::now()),
        };
        let config = Arc::new(ConfigSpace::new(state.config(pairs)));
        Ok(Self(Arc::new(Shared { pairs, config, state: Mutex::new(state), wakes })))
    }

    pub(super) fn config(&self) -> &Arc<ConfigSpace> {
        &self.0.config
    }

    /// The descriptor that tells `pair` to look again, or, after the last pair, the control queue to tell the driver.
    pub(super) fn wake(&self, pair: u16) -> io::Result<EventFd> {
        let wake = self.0.wakes.get(usize::from(pair));
        wake.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?.try_clone()
    }

    /// The MTU, if something is plugged in.
    pub(super) fn mtu(&self) -> Option<u16> {
        let state = self.state();
        state.plug.as_ref().map(|_| state.mtu)
    }

    /// Takes the link up: `taps` are the queues of one tap, one for each pair. `gone` is called, by any thread, when they
    /// are closed, be it by [`Link::unplug`] or because the tap has gone.
    ///
    /// # Errors
    /// [`PlugError`]; nothing has changed then, and `gone` is not called.
    pub fn plug(
        &self,
        taps: Vec<Tap>,
        mac: Mac,
        mtu: u16,
        gone: impl FnOnce() + Send + Sync + 'static,
    ) -> Result<(), PlugError> {
        let mut state = self.state();
        if state.plug.is_some() {
            return Err(PlugError::InUse);
        }
        if state.former.strong_count() > 0 {
            return Err(PlugError::Unplugging);
        }
        if taps.len() != usize::from(self.0.pairs) {
            return Err(PlugError::Queues { got: taps.len(), want: self.0.pairs });
        }
        if !MTU.contains(&mtu) {
            return Err(PlugError::Mtu { mtu });
        }
        if !is_unicast(mac) {
            return Err(PlugError::Mac(mac));
        }
        let mut plug = Plug { taps, gone: None };
        // Whoever had the tap before may have left it set to anything.
        for tap in &plug.taps {
            tap.attach(true)?;
        }
        if let Some(first) = plug.taps.first() {
            first.set_offloads(0)?;
        }
        state.applied = (0, self.0.pairs);
        state.apply(&plug)?;
        plug.gone = Some(Box::new(gone));
        (state.mac, state.mtu, state.plug) = (mac, mtu, Some(Arc::new(plug)));
        self.changed(&state);
        Ok(())
    }

    /// Takes the link down; false when it is. The tap is closed a moment later, by the last pair that lets go of it.
    pub fn unplug(&self) -> bool {
        let mut state = self.state();
        let plug = state.plug.take();
        if let Some(plug) = &plug {
            state.former = Arc::downgrade(plug);
            self.changed(&state);
        }
        drop(state);
        // Not under the lock: it may be the last.
        plug.is_some()
    }

    /// The tap of `pair` has failed: the link is down unless that is because the pair is not in use.
    pub(super) fn lost(&self, pair: u16, plug: &Arc<Plug>) {
        let lost = {
            let state = self.state();
            let current = state.plug.as_ref().is_some_and(|current| Arc::ptr_eq(current, plug));
            // The failure may be from before the queue was attached again, so it is asked again.
            let attached = pair < state.applied.1;
            current && attached && !plug.tap(pair).is_some_and(Tap::is_attached)
        };
        if lost && self.unplug() {
            log::warn!("virtio-net: the tap device has gone; the link is down");
        }
    }

    /// What is plugged in.
    pub(super) fn plugged(&self) -> Option<Arc<Plug>> {
        self.state().plug.clone()
    }

    /// The driver is ready. Each pair and the control queue say so; the first to say so has it done, before any of them
    /// reads a frame that the driver might not expect.
    pub(super) fn activate(&self, features: Features) -> Result<(), Refused> {
        let mut state = self.state();
        if state.features == Some(features) {
            return Ok(());
        }
        // A driver begins with one pair (VIRTIO 1.2, 5.1.6.5.5).
        (state.features, state.enabled) = (Some(features), 1);
        state.reapply()
    }

    pub(super) fn reset(&self) {
        self.state().features = None;
    }

    /// The driver's choice of pairs.
    pub(super) fn set_pairs(&self, pairs: u16) -> Result<(), Refused> {
        if !(1..=self.0.pairs).contains(&pairs) {
            return Err(Refused);
        }
        let mut state = self.state();
        let before = std::mem::replace(&mut state.enabled, pairs);
        if let Err(refused) = state.reapply() {
            state.enabled = before;
            return Err(refused);
        }
        // A queue that is delivered to again is to be read again.
        self.wake_all();
        Ok(())
    }

    /// The driver's choice of an address. It is not what the tap's frames are checked against: whether a guest may send
    /// under an address is for the host's side of the tap to enforce, where the guest cannot change the rules.
    pub(super) fn set_mac(&self, mac: Mac) -> Result<(), Refused> {
        if !is_unicast(mac) {
            return Err(Refused);
        }
        let mut state = self.state();
        state.mac = mac;
        self.0.config.replace(&state.config(self.0.pairs));
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self, state: &State) {
        self.0.config.replace(&state.config(self.0.pairs));
        self.wake_all();
    }

    fn wake_all(&self) {
        for wake in &self.0.wakes {
            // It fails only when 2^64 - 1 are pending, and one is enough.
            let _ = wake.write(1);
        }
    }
}

impl State {
    /// `struct virtio_net_config` (5.1.4).
    fn config(&self, pairs: u16) -> Vec<u8> {
        let up = if self.plug.is_some() { VIRTIO_NET_S_LINK_UP } else { 0 };
        let [a, b, ..] = up.to_le_bytes();
        [&self.mac[..], &[a, b], &pairs.to_le_bytes(), &self.mtu.to_le_bytes()].concat()
    }

    /// Has the tap do what the driver asked for, at the cost of the guest's allowance.
    fn reapply(&mut self) -> Result<(), Refused> {
        let Some(plug) = self.plug.clone() else { return Ok(()) };
        if self.wanted() == self.applied {
            return Ok(());
        }
        if !self.allowance.take(Instant::now()) {
            log::warn!("virtio-net: the guest changes the tap's settings too often");
            return Err(Refused);
        }
        self.apply(&plug).map_err(|error| {
            log::warn!("virtio-net: cannot set up the tap device: {error}");
            Refused
        })
    }

    /// What the tap should be set to. Without a driver it stays as it is: nobody reads it.
    fn wanted(&self) -> (u32, u16) {
        self.features.map_or(self.applied, |features| (features.offloads(), self.enabled))
    }

    fn apply(&mut self, plug: &Plug) -> io::Result<()> {
        let (offloads, pairs) = self.wanted();
        if offloads != self.applied.0
            && let Some(first) = plug.taps.first()
        {
            first.set_offloads(offloads)?;
            self.applied.0 = offloads;
        }
        // A frame that goes to a queue nobody reads is lost.
        let (from, to) = (self.applied.1.min(pairs), self.applied.1.max(pairs));
        for tap in plug.taps.iter().take(to.into()).skip(from.into()) {
            tap.attach(pairs == to)?;
        }
        self.applied.1 = pairs;
        Ok(())
    }
}

/// An address of one station, and not of none.
fn is_unicast(mac: Mac) -> bool {
    mac[0] & 1 == 0 && mac != [0; 6]
}

/// A number of changes at once, and one more now and then.
struct Allowance {
    left: u32,
    since: Instant,
}

impl Allowance {
    fn new(now: Instant) -> Self {
        Self { left: HOST_CHANGES, since: now }
    }

    fn take(&mut self, now: Instant) -> bool {
        while self.left < HOST_CHANGES && now.duration_since(self.since) >= HOST_CHANGE_EVERY {
            self.left += 1;
            self.since += HOST_CHANGE_EVERY;
        }
        if self.left == HOST_CHANGES {
            self.since = now;
        }
        let taken = self.left.checked_sub(1);
        self.left = taken.unwrap_or(0);
        taken.is_some()
    }
}

#[cfg(test)]
#[path = "link_test.rs"]
mod tests;
