//! A pair of queues, on a thread that it shares with no other pair of its device.

use super::features::Features;
use super::header::HEADER_LEN;
use super::link::{Link, Plug};
use super::rx::{RX, Rest, Rx};
use super::tx::{TX, Tx};
use crate::virtio::{DeviceError, Queues, VirtioDevice, Watch};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

/// Linux's own default elsewhere. With buffers of 1.5 KiB, six of the longest frames.
pub(super) const QUEUE_SIZES: [u16; 2] = [256, 256];
/// Tokens of the descriptors.
const WAKE: u32 = 0;
const TAP: u32 = 1;
/// The most frames of a former driver that are thrown away: as many as a tap's queue holds, and more.
const STALE_FRAMES: usize = 4096;

/// One pair.
pub(super) struct Pair {
    number: u16,
    link: Link,
    /// Written when the link has changed, and when this pair has more to do than a turn.
    wake: EventFd,
    features: Features,
    /// Since the first tap; until then a slot costs nothing. It outlives a tap: the driver's buffers wait in it.
    halves: Option<(Rx, Tx)>,
    plug: Option<Arc<Plug>>,
    /// No longer used, but watched until this call returns.
    former: Option<Arc<Plug>>,
    /// The tap may have a frame. It says so once (edge-triggered), so that a frame that waits for room wakes nobody.
    readable: bool,
    /// The tap may hold frames for a driver that was reset.
    stale: bool,
}

impl Pair {
    pub(super) fn new(number: u16, link: Link) -> io::Result<Self> {
        Ok(Self {
            number,
            wake: link.wake(number)?,
            link,
            features: Features::default(),
            halves: None,
            plug: None,
            former: None,
            readable: false,
            stale: false,
        })
    }

    /// Takes what is plugged in now.
    fn follow(&mut self, queues: &mut Queues) -> Result<Vec<Watch>, DeviceError> {
        // Nothing of it is watched any more.
        self.former = None;
        let current = self.link.plugged();
        let same = match (&self.plug, &current) {
            (Some(plug), Some(current)) => Arc::ptr_eq(plug, current),
            (None, None) => true,
            _ => false,
        };
        if same {
            // A queue that the kernel delivers to again may have frames.
            self.readable = self.plug.is_some();
            self.receive(queues)?;
            return Ok(Vec::new());
        }
        if let Some(former) = self.plug.take() {
            self.readable = false;
            let fd = former.tap(self.number).map(AsRawFd::as_raw_fd);
            self.former = Some(former);
            // Once more, when the watch is gone.
            self.again()?;
            return Ok(fd.map(|fd| Watch::Remove { fd }).into_iter().collect());
        }
        self.plug = current;
        let Some(fd) = self.tap_fd() else { return Ok(Vec::new()) };
        let (rx, _) = self.halves.get_or_insert_with(|| {
            (Rx::new(queues.memory(), self.features), Tx::new(queues.memory(), self.features))
        });
        rx.set_mtu(self.link.mtu().unwrap_or(u16::MAX));
        self.readable = true;
        self.receive(queues)?;
        self.send(queues)?;
        Ok(vec![Watch::Set { fd, token: TAP, events: EventSet::IN | EventSet::EDGE_TRIGGERED }])
    }

    fn tap_fd(&self) -> Option<i32> {
        self.plug.as_ref().and_then(|plug| plug.tap(self.number)).map(AsRawFd::as_raw_fd)
    }

    /// Has this thread come back to this pair after the others have had their turn.
    fn again(&self) -> io::Result<()> {
        self.wake.write(1)
    }

    fn receive(&mut self, queues: &mut Queues) -> Result<(), DeviceError> {
        let (Some(plug), Some((rx, _)), true) = (&self.plug, &mut self.halves, self.readable) else {
            return Ok(());
        };
        let Some(tap) = plug.tap(self.number) else { return Ok(()) };
        match rx.turn(tap, queues)? {
            Rest::Tap => self.readable = false,
            Rest::Ring => {}
            Rest::None => self.again()?,
            Rest::Gone => {
                self.readable = false;
                self.link.lost(self.number, plug);
            }
        }
        Ok(())
    }

    fn send(&mut self, queues: &mut Queues) -> Result<(), DeviceError> {
        if self.plug.is_none() && self.link.plugged().is_some() {
            // The driver was told of the link before this pair was: the packets wait for `follow`.
            return Ok(());
        }
        let plug = self.plug.as_ref();
        let tap = plug.and_then(|plug| plug.tap(self.number));
        match &mut self.halves {
            Some((_, tx)) => {
                if !tx.turn(tap, queues)?
                    && let Some(plug) = plug
                {
                    self.link.lost(self.number, plug);
                }
            }
            // The link was never up: the packets are lost.
            None => {
                while let Some(chain) = queues.pop(TX)? {
                    queues.complete(TX, &[(chain.head_index(), 0)])?;
                }
                queues.interrupt(TX)?;
            }
        }
        Ok(())
    }

    /// Throws away what the tap holds for the driver before this one, which may not be made for this one.
    fn drain(&mut self) {
        if !std::mem::take(&mut self.stale) {
            return;
        }
        let Some(plug) = self.link.plugged() else { return };
        let Some(tap) = plug.tap(self.number) else { return };
        let mut byte = [0u8; HEADER_LEN];
        let vector = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: byte.len() };
        for _ in 0..STALE_FRAMES {
            // SAFETY: the vector names an array that is looked at by nobody.
            if unsafe { tap.read(&[vector]) }.is_err() {
                return;
            }
        }
    }
}

impl VirtioDevice for Pair {
    fn id(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn activate(&mut self, features: u64) -> Result<Vec<Watch>, DeviceError> {
        self.features = Features(features);
        self.link.activate(self.features).map_err(|_| TOO_OFTEN)?;
        self.drain();
        self.again()?;
        Ok(vec![Watch::Set { fd: self.wake.as_raw_fd(), token: WAKE, events: EventSet::IN }])
    }

    fn notified(&mut self, index: usize, queues: &mut Queues) -> Result<(), DeviceError> {
        if index == RX { self.receive(queues) } else { self.send(queues) }
    }

    fn ready(&mut self, token: u32, _: EventSet, queues: &mut Queues) -> Result<Vec<Watch>, DeviceError> {
        if token == WAKE {
            // An error says that another event has taken it.
            let _ = self.wake.read();
            return self.follow(queues);
        }
        self.readable = true;
        self.receive(queues)?;
        Ok(Vec::new())
    }

    fn reset(&mut self) {
        self.stale = self.plug.is_some();
        // The driver's buffers that wait in it are the driver's again.
        (self.halves, self.plug, self.former) = (None, None, None);
        self.readable = false;
    }
}

/// Why a driver that resets its device in a loop ends its VM.
pub(super) const TOO_OFTEN: DeviceError =
    DeviceError::Driver("it changes the network device's settings all the time");
