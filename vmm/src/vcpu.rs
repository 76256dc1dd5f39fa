//! The threads that run the guest.

use crate::bus::Bus;
use crate::hypervisor::{Exit, HypervisorError, Stuck, Vcpu, kick};
use crate::stop::Stop;
use lazaret_vmm_wire::Cause;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

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
const PATIENCE: Duration = Duration::from_secs(1);

/// The running vCPUs of a VM. Dropping them stops them.
pub struct Vcpus {
    threads: Vec<JoinHandle<()>>,
    /// Disconnected when all threads have ended: each holds a sender.
    ended: Receiver<Infallible>,
    stop: Stop,
}

impl Vcpus {
    /// Runs each of `vcpus` on a thread of its own until `stop`.
    ///
    /// # Errors
    /// When a thread cannot be made; those that were are stopped.
    pub fn run(vcpus: Vec<Box<dyn Vcpu>>, bus: &Arc<Bus>, stop: &Stop) -> io::Result<Self> {
        let (alive, ended) = channel();
        let mut running = Self { threads: Vec::with_capacity(vcpus.len()), ended, stop: stop.clone() };
        for (index, vcpu) in vcpus.into_iter().enumerate() {
            let (bus, stop, alive) = (Arc::clone(bus), stop.clone(), alive.clone());
            let thread = Builder::new().name(format!("vcpu{index}")).spawn(move || {
                if let Err(error) = run_one(vcpu, &bus, &stop) {
                    stop.end(Cause::Error(error.to_string()));
                }
                drop(alive);
            })?;
            running.threads.push(thread);
        }
        Ok(running)
    }
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        // Before the kicks: a kicked vCPU looks whether it is to stop.
        if self.stop.cause().is_none() {
            self.stop.end(Cause::Requested);
        }
        for thread in &self.threads {
            // An error says that it has ended by itself.
            let _ = kick(thread);
        }
        if self.ended.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
            log::warn!("a vCPU does not stop: it waits for a device");
            return;
        }
        for thread in self.threads.drain(..) {
            // A panic on it has been printed, and the VM is over anyway.
            let _ = thread.join();
        }
    }
}

fn run_one(mut vcpu: Box<dyn Vcpu>, bus: &Bus, stop: &Stop) -> Result<(), VcpuError> {
    // Armed before the first look at `stop`: a kick after that look gets it out of `run`.
    vcpu.arm();
    while stop.cause().is_none() {
        match vcpu.run(bus)? {
            Exit::Served | Exit::Kicked => {}
            Exit::TripleFault => return Err(VcpuError::TripleFault),
            Exit::Stuck(stuck) => return Err(VcpuError::Stuck(stuck)),
        }
    }
    Ok(())
}
