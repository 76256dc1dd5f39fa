//! The seam to the hypervisor: nine methods, and the only place that names KVM is behind it.
//!
//! ```text
//!   Machine ──► dyn Vm ── cpuid, interrupt_line, doorbell, create_vcpu
//!   thread of a vCPU ──► dyn Vcpu ── set_cpuid, start_at, arm, run, was_paused ──► dyn Bus: the devices
//! ```

mod kvm;

pub use kvm::KvmVm;

use std::io;
use vmm_sys_util::eventfd::EventFd;

/// A virtual machine with its memory and interrupt controllers.
pub trait Vm: Send {
    /// What this machine's processors can offer a guest.
    ///
    /// # Errors
    /// The hypervisor's.
    fn cpuid(&self) -> Result<Vec<CpuidLeaf>, HypervisorError>;

    /// A descriptor whose every write pulses the interrupt line `irq` of the I/O APIC.
    ///
    /// # Errors
    /// The hypervisor's.
    fn interrupt_line(&self, irq: u32) -> Result<EventFd, HypervisorError>;

    /// A descriptor that counts the guest's 32-bit writes of `value` to the physical `address`, without an exit.
    ///
    /// # Errors
    /// The hypervisor's.
    fn doorbell(&self, address: u64, value: u32) -> Result<EventFd, HypervisorError>;

    /// The vCPU whose APIC id is `id`; 0 is the one that boots.
    ///
    /// # Errors
    /// The hypervisor's.
    fn create_vcpu(&self, id: u8) -> Result<Box<dyn Vcpu>, HypervisorError>;
}

/// One virtual processor, used by one thread.
pub trait Vcpu: Send {
    /// # Errors
    /// The hypervisor's.
    fn set_cpuid(&mut self, leaves: &[CpuidLeaf]) -> Result<(), HypervisorError>;

    /// Has the boot processor start at `entry` in flat 32-bit protected mode without paging, `ebx` holding `rbx`: the
    /// state the PVH boot protocol asks for (Xen's `docs/misc/pvh.pandoc`).
    ///
    /// # Errors
    /// The hypervisor's.
    fn start_at(&mut self, entry: u64, rbx: u64) -> Result<(), HypervisorError>;

    /// Makes [`kick`] work on the calling thread, which is the one that will call [`Vcpu::run`]. A kick works once: after it
    /// the thread arms again. Kicks that came before are forgotten, so the caller looks for their reason after this.
    fn arm(&mut self);

    /// Runs the guest until it touches a device, which `bus` serves, or something ends this stretch.
    ///
    /// # Errors
    /// The hypervisor's.
    fn run(&mut self, bus: &dyn Bus) -> Result<Exit, HypervisorError>;

    /// Has the guest know that this vCPU did not run for a while, so that its watchdog does not take that for a lockup.
    ///
    /// # Errors
    /// The hypervisor's.
    fn was_paused(&mut self) -> Result<(), HypervisorError>;
}

/// Gets an armed thread out of [`Vcpu::run`], now or when it next calls it.
pub use kvm::kick;

/// The devices as the guest sees them: ports and physical addresses that are not memory.
pub trait Bus: Sync {
    fn port_read(&self, port: u16, data: &mut [u8]);
    fn port_write(&self, port: u16, data: &[u8]);
    fn memory_read(&self, address: u64, data: &mut [u8]);
    fn memory_write(&self, address: u64, data: &[u8]);
}

/// Why the guest stopped running.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// A device was served; run on.
    Served,
    /// [`kick`], or a signal. No instruction of the guest is half done.
    Kicked,
    /// The guest faulted while it handled a fault while it handled a fault.
    TripleFault,
    /// The hypervisor cannot go on with this guest.
    Stuck(Stuck),
}

/// What the hypervisor could not do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Stuck {
    #[error("it cannot emulate the instruction at {rip:#x}")]
    Instruction { rip: u64 },
    #[error("internal error {suberror} at {rip:#x}")]
    Internal { suberror: u32, rip: u64 },
    #[error("the processor refused to enter the guest, reason {0:#x}")]
    Entry(u64),
    #[error("unexpected exit: {0}")]
    Unexpected(String),
}

/// One answer of the CPUID instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuidLeaf {
    pub function: u32,
    /// The subleaf; `None` where `ecx` is not looked at.
    pub index: Option<u32>,
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

#[derive(Debug, thiserror::Error)]
pub enum HypervisorError {
    #[error("the descriptor handed over is not /dev/kvm, or KVM's API is not version 12")]
    NotKvm,
    #[error("this machine's KVM lacks {0}")]
    Lacks(&'static str),
    #[error("KVM: cannot {what}: {source}")]
    Os { what: &'static str, source: io::Error },
}
