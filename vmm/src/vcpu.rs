//! The threads that run the guest, and the gate at which they wait while it is paused.

use crate::hypervisor::{Bus, Exit, HypervisorError, Stuck, Vcpu, kick};
use crate::pause::{Pause, Phase, Refusal};
use crate::stop::Stop;
use crate::sync::{lock, wait};
use lazaret_vmm_wire::Cause;
use std::convert::Infallible;
use std::io;
use std::mem;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Why a vCPU cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    #[error("the guest's kernel crashed (triple fault)")]
    TripleFault,
    #[error("this machine's KVM cannot run a guest kernel ({0}): run `lazaret doctor`")]
    Stuck(Stuck),
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
}

/// How long a vCPU may take to stop. It leaves the guest at once, but may be waiting for a device to be reset that waits
/// for the host's disk; the end of the VM is not held back for that.
const VCPU_STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// Where the vCPUs of a VM are stopped for a while, and let go on. Only they stop: a device ends the requests that it has, and
/// puts what comes from the host into buffers that the guest has given it. Without vCPUs there are no new requests. The
/// guest's clocks go on.
#[derive(Clone)]
pub struct Gate(Arc<Shared>);

struct Shared {
    inner: Mutex<Inner>,
    /// Notified when vCPUs may go on.
    opened: Condvar,
    /// Written when the last vCPU has left the guest.
    paused: EventFd,
}

struct Inner {
    pause: Pause,
    /// Those of the vCPUs, from their start to the VM's end.
    threads: Vec<JoinHandle<()>>,
}

impl Gate {
    /// # Errors
    /// When no descriptor is left.
    pub fn new() -> io::Result<Self> {
        let inner = Mutex::new(Inner { pause: Pause::new(0), threads: Vec::new() });
        Ok(Self(Arc::new(Shared { inner, opened: Condvar::new(), paused: EventFd::new(EFD_NONBLOCK)? })))
    }

    /// Has every vCPU leave the guest. [`Gate::event`] says when all have; a vCPU that waits for a device may take long, so
    /// whoever asks has a deadline, and then calls [`Gate::give_up`].
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn pause(&self) -> Result<(), Refusal> {
        let mut inner = lock(&self.0.inner);
        inner.pause.pause()?;
        for thread in &inner.threads {
            // An error says that it has ended by itself, which ends the VM.
            let _ = kick(thread);
        }
        if inner.pause.phase() == Phase::Paused {
            self.tell();
        }
        Ok(())
    }

    /// Has the vCPUs go on after a pause.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn resume(&self) -> Result<(), Refusal> {
        lock(&self.0.inner).pause.resume()?;
        self.0.opened.notify_all();
        Ok(())
    }

    /// Has the vCPUs go on if the pause is not complete. False when it is, or when there is none.
    pub fn give_up(&self) -> bool {
        let given_up = lock(&self.0.inner).pause.give_up();
        self.0.opened.notify_all();
        given_up
    }

    /// Whether no vCPU is in the guest, and none enters it.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        lock(&self.0.inner).pause.phase() == Phase::Paused
    }

    /// Readable when a pause has become complete; to be read.
    #[must_use]
    pub fn event(&self) -> &EventFd {
        &self.0.paused
    }

    fn tell(&self) {
        // It fails only when 2^64 - 1 pauses are unread, and is readable then.
        let _ = self.0.paused.write(1);
    }

    /// Called by a vCPU outside the guest: waits while the guest is paused. True when it has waited.
    fn pass(&self) -> bool {
        let mut inner = lock(&self.0.inner);
        if !inner.pause.holds() {
            return false;
        }
        inner.pause.left();
        if inner.pause.phase() == Phase::Paused {
            self.tell();
        }
        while inner.pause.holds() {
            inner = wait(&self.0.opened, inner);
        }
        inner.pause.enters();
        true
    }

    /// Lets every vCPU go, for good.
    fn end(&self) -> Vec<JoinHandle<()>> {
        let mut inner = lock(&self.0.inner);
        inner.pause.end();
        self.0.opened.notify_all();
        mem::take(&mut inner.threads)
    }
}

/// The running vCPUs of a VM. Dropping them stops them.
pub struct Vcpus {
    gate: Gate,
    /// Disconnected when all threads have ended: each holds a sender.
    ended: Receiver<Infallible>,
    stop: Stop,
}

impl Vcpus {
    /// Runs each of `vcpus` on a thread of its own until `stop`.
    ///
    /// # Errors
    /// When a thread cannot be made; those that were are stopped.
    pub fn run<B: Bus + Send + 'static>(
        vcpus: Vec<Box<dyn Vcpu>>,
        bus: &Arc<B>,
        gate: &Gate,
        stop: &Stop,
    ) -> io::Result<Self> {
        let (alive, ended) = channel();
        let running = Self { gate: gate.clone(), ended, stop: stop.clone() };
        lock(&gate.0.inner).pause = Pause::new(vcpus.len());
        for (index, vcpu) in vcpus.into_iter().enumerate() {
            let (bus, gate, stop, alive) = (Arc::clone(bus), gate.clone(), stop.clone(), alive.clone());
            let thread = Builder::new().name(format!("vcpu{index}")).spawn(move || {
                if let Err(error) = run_one(vcpu, bus.as_ref(), &gate, &stop) {
                    stop.end(Cause::Error(error.to_string()));
                }
                drop(alive);
            })?;
            lock(&running.gate.0.inner).threads.push(thread);
        }
        Ok(running)
    }
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        // Before the kicks: a kicked vCPU looks whether it is to stop, and so does one that is let go.
        if self.stop.cause().is_none() {
            self.stop.end(Cause::Requested);
        }
        let threads = self.gate.end();
        for thread in &threads {
            // An error says that it has ended by itself.
            let _ = kick(thread);
        }
        if self.ended.recv_timeout(VCPU_STOP_TIMEOUT) == Err(RecvTimeoutError::Timeout) {
            log::warn!("a vCPU does not stop: it waits for a device");
            return;
        }
        for thread in threads {
            // A panic on it has been printed, and the VM is over anyway.
            let _ = thread.join();
        }
    }
}

fn run_one(mut vcpu: Box<dyn Vcpu>, bus: &dyn Bus, gate: &Gate, stop: &Stop) -> Result<(), VcpuError> {
    // Armed before each look at the gate, which comes before the look at `stop`: a kick after such a look gets the vCPU out of
    // `run`.
    vcpu.arm();
    gate.pass();
    while stop.cause().is_none() {
        match vcpu.run(bus)? {
            // A vCPU does not wait here, though it is outside the guest. KVM ends the instruction that touched the device, with
            // the data of the device, when it is next entered (KVM's api.rst, "The kvm_run structure"), and until then the
            // guest is in the middle of it. A vCPU that was kicked meanwhile goes in once more: KVM ends the instruction, runs
            // no other, and returns `Kicked`.
            Exit::Served => {}
            Exit::Kicked => {
                vcpu.arm();
                if gate.pass() {
                    vcpu.was_paused()?;
                }
            }
            Exit::TripleFault => return Err(VcpuError::TripleFault),
            Exit::Stuck(stuck) => return Err(VcpuError::Stuck(stuck)),
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "vcpu_test.rs"]
mod tests;
