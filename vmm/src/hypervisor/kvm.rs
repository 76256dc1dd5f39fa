//! KVM on x86-64.

use super::{Bus, CpuidLeaf, Exit, HypervisorError, Stuck, Vcpu, Vm};
use crate::arch::layout;
use kvm_bindings::{
    CpuId, KVM_API_VERSION, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_INTERNAL_ERROR_EMULATION,
    KVM_MAX_CPUID_ENTRIES, Msrs, kvm_cpuid_entry2, kvm_msr_entry, kvm_regs, kvm_segment,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuExit, VcpuFd, VmFd};
use std::cell::Cell;
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::thread::JoinHandleExt;
use std::ptr;
use std::sync::{Arc, Once};
use std::thread::JoinHandle;
use vm_memory::{Address, GuestMemory, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

const REQUIRED: [(Cap, &str); 5] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// Enables fast string operations: without it Linux does not use `rep movs` on Intel's processors.
const MISC_ENABLE: (u32, u64) = (0x1a0, 1);
/// Memory is write-back unless page tables say otherwise, as firmware would have left it.
const MTRR_DEFAULT_TYPE: (u32, u64) = (0x2ff, 1 << 11 | 6);

const CR0_PE: u64 = 1;

/// A virtual machine of KVM.
pub struct KvmVm {
    kvm: Kvm,
    vm: VmFd,
    memory: Arc<GuestMemoryMmap>,
}

fn os(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> HypervisorError {
    move |error| HypervisorError::Os { what, source: error.into() }
}

impl KvmVm {
    /// A machine with all of `memory` and its interrupt controllers: two PICs, an I/O APIC, and a local APIC per vCPU.
    /// There is no PIT: the guest has the TSC deadline timer and kvm-clock, and destroying a PIT costs 8 ms.
    ///
    /// # Errors
    /// When `kvm` is not KVM, lacks something, or is out of memory.
    pub fn new(kvm: OwnedFd, memory: Arc<GuestMemoryMmap>) -> Result<Self, HypervisorError> {
        // SAFETY: the descriptor is owned and open; a wrong one is found by the API version.
        let kvm = unsafe { Kvm::from_raw_fd(kvm.into_raw_fd()) };
        if u32::try_from(kvm.get_api_version()) != Ok(KVM_API_VERSION) {
            return Err(HypervisorError::NotKvm);
        }
        if let Some((_, name)) = REQUIRED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
            return Err(HypervisorError::Lacks(name));
        }
        let vm = kvm.create_vm().map_err(os("create a VM"))?;

        // The order is worth 7 ms. KVM_SET_USER_MEMORY_REGION waits for an SRCU grace period, and whatever registers on
        // an I/O bus (the interrupt controllers, each doorbell) leaves one to be waited out. So: memory first, then the
        // TSS page (a memslot as well, on Intel), then the interrupt controllers, and doorbells last.
        for (slot, region) in memory.iter().enumerate() {
            let region = kvm_userspace_memory_region {
                slot: u32::try_from(slot).map_err(|_| HypervisorError::Lacks("enough memory slots"))?,
                flags: 0,
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the region is a mapping of its own, and lives as long as `memory`, which the VM and each vCPU hold.
            unsafe { vm.set_user_memory_region(region) }.map_err(os("give the guest its memory"))?;
        }
        vm.set_tss_address(layout::KVM_TSS).map_err(os("place the TSS"))?;
        vm.create_irq_chip().map_err(os("create interrupt controllers"))?;
        Ok(Self { kvm, vm, memory })
    }
}

impl Vm for KvmVm {
    fn cpuid(&self) -> Result<Vec<CpuidLeaf>, HypervisorError> {
        let supported = self.kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(os("ask for CPUID"))?;
        let mut leaves: Vec<_> = supported.as_slice().iter().map(CpuidLeaf::from).collect();
        // The local APIC is KVM's, so its deadline timer is there whatever the processor has (KVM's api.rst 4.13).
        if self.kvm.check_extension(Cap::TscDeadlineTimer) {
            const TSC_DEADLINE: u32 = 1 << 24;
            leaves.iter_mut().filter(|leaf| leaf.function == 1).for_each(|leaf| leaf.ecx |= TSC_DEADLINE);
        }
        Ok(leaves)
    }

    fn interrupt_line(&self, irq: u32) -> Result<EventFd, HypervisorError> {
        let line = EventFd::new(EFD_NONBLOCK)
            .map_err(|source| HypervisorError::Os { what: "make an event descriptor", source })?;
        self.vm.register_irqfd(&line, irq).map_err(os("wire an interrupt line"))?;
        Ok(line)
    }

    fn doorbell(&self, address: u64, value: u32) -> Result<EventFd, HypervisorError> {
        let bell = EventFd::new(EFD_NONBLOCK)
            .map_err(|source| HypervisorError::Os { what: "make an event descriptor", source })?;
        self.vm
            .register_ioevent(&bell, &IoEventAddress::Mmio(address), value)
            .map_err(os("wire a doorbell"))?;
        Ok(bell)
    }

    fn create_vcpu(&self, id: u8) -> Result<Box<dyn Vcpu>, HypervisorError> {
        let fd = self.vm.create_vcpu(u64::from(id)).map_err(os("create a vCPU"))?;
        let entries = [MISC_ENABLE, MTRR_DEFAULT_TYPE].map(|(index, data)| kvm_msr_entry {
            index,
            data,
            ..Default::default()
        });
        let msrs = Msrs::from_entries(&entries).map_err(|_| HypervisorError::Lacks("room for MSRs"))?;
        fd.set_msrs(&msrs).map_err(os("set MSRs"))?;
        Ok(Box::new(KvmVcpu { fd, _memory: Arc::clone(&self.memory) }))
    }
}

struct KvmVcpu {
    fd: VcpuFd,
    /// The guest runs in it.
    _memory: Arc<GuestMemoryMmap>,
}

impl Vcpu for KvmVcpu {
    fn set_cpuid(&mut self, leaves: &[CpuidLeaf]) -> Result<(), HypervisorError> {
        let entries: Vec<_> = leaves.iter().map(kvm_cpuid_entry2::from).collect();
        let cpuid = CpuId::from_entries(&entries).map_err(|_| HypervisorError::Lacks("room for CPUID"))?;
        self.fd.set_cpuid2(&cpuid).map_err(os("set CPUID"))
    }

    fn start_at(&mut self, entry: u64, rbx: u64) -> Result<(), HypervisorError> {
        let mut sregs = self.fd.get_sregs().map_err(os("read registers"))?;
        let code = kvm_segment {
            base: 0,
            limit: u32::MAX,
            selector: 0x8,
            type_: 0b1011, // code: execute, read, accessed
            present: 1,
            db: 1,
            s: 1,
            g: 1,
            ..Default::default()
        };
        let data = kvm_segment { selector: 0x10, type_: 0b0011, ..code }; // data: read, write, accessed
        sregs.cs = code;
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
        // A busy 32-bit TSS of the smallest size.
        sregs.tr = kvm_segment { limit: 0x67, type_: 0b1011, present: 1, ..Default::default() };
        sregs.cr0 |= CR0_PE;
        sregs.cr4 = 0;
        self.fd.set_sregs(&sregs).map_err(os("set segment registers"))?;
        let regs = kvm_regs { rip: entry, rbx, rflags: 0x2, ..Default::default() };
        self.fd.set_regs(&regs).map_err(os("set registers"))
    }

    fn arm(&mut self) {
        let immediate_exit = &raw mut self.fd.get_kvm_run().immediate_exit;
        IMMEDIATE_EXIT.set(immediate_exit);
        // SAFETY: it points into the kvm_run page of this vCPU, which is mapped for as long as the vCPU is there. The write is
        // volatile because a signal's handler writes it on this thread.
        unsafe { immediate_exit.write_volatile(0) };
    }

    fn run(&mut self, bus: &dyn Bus) -> Result<Exit, HypervisorError> {
        match self.fd.run() {
            Ok(VcpuExit::IoIn(port, data)) => bus.port_read(port, data),
            Ok(VcpuExit::IoOut(port, data)) => bus.port_write(port, data),
            Ok(VcpuExit::MmioRead(address, data)) => bus.memory_read(address, data),
            Ok(VcpuExit::MmioWrite(address, data)) => bus.memory_write(address, data),
            Ok(VcpuExit::Intr) => return Ok(Exit::Kicked),
            Ok(VcpuExit::Shutdown) => return Ok(Exit::TripleFault),
            Ok(VcpuExit::FailEntry(reason, _)) => return Ok(Exit::Stuck(Stuck::Entry(reason))),
            Ok(VcpuExit::InternalError) => return Ok(Exit::Stuck(self.internal_error())),
            Ok(other) => return Ok(Exit::Stuck(Stuck::Unexpected(format!("{other:?}")))),
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => return Ok(Exit::Kicked),
            Err(error) => return Err(os("run a vCPU")(error)),
        }
        Ok(Exit::Served)
    }

    fn was_paused(&mut self) -> Result<(), HypervisorError> {
        match self.fd.kvmclock_ctrl() {
            // The guest does not use kvm-clock.
            Err(error) if error.errno() == libc::EINVAL => Ok(()),
            told => told.map_err(os("tell a vCPU that it was paused")),
        }
    }
}

impl KvmVcpu {
    fn internal_error(&mut self) -> Stuck {
        let rip = self.fd.get_regs().map(|regs| regs.rip).unwrap_or_default();
        // SAFETY: KVM fills this member of the union for KVM_EXIT_INTERNAL_ERROR, the exit just taken.
        let suberror = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.internal.suberror };
        if suberror == KVM_INTERNAL_ERROR_EMULATION {
            Stuck::Instruction { rip }
        } else {
            Stuck::Internal { suberror, rip }
        }
    }
}

impl Drop for KvmVcpu {
    /// Its `kvm_run` page goes away: a later kick must not write there.
    fn drop(&mut self) {
        let own = &raw mut self.fd.get_kvm_run().immediate_exit;
        if IMMEDIATE_EXIT.get() == own {
            IMMEDIATE_EXIT.set(ptr::null_mut());
        }
    }
}

thread_local! {
    /// `immediate_exit` of the vCPU this thread runs.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

/// Gets a thread out of [`Vcpu::run`]: at once when it is there; else the next run returns at once, because the signal's
/// handler has set `immediate_exit`. No kick is lost between a thread's last look at a flag and its entering the guest.
///
/// # Errors
/// When the thread is gone.
pub fn kick<T>(thread: &JoinHandle<T>) -> io::Result<()> {
    // Without a handler the signal ends the process.
    static HANDLER: Once = Once::new();
    HANDLER.call_once(|| {
        // It fails for invalid signal numbers only.
        let _ = register_signal_handler(SIGRTMIN(), on_kick);
    });
    // SAFETY: a thread with a join handle has been neither joined nor detached, so its id is valid.
    match unsafe { libc::pthread_kill(thread.as_pthread_t(), SIGRTMIN()) } {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let immediate_exit = IMMEDIATE_EXIT.get();
    if !immediate_exit.is_null() {
        // SAFETY: it points into the kvm_run page of a vCPU that this thread owns, and is unset before that is unmapped.
        unsafe { immediate_exit.write_volatile(1) };
    }
}

impl From<&kvm_cpuid_entry2> for CpuidLeaf {
    fn from(entry: &kvm_cpuid_entry2) -> Self {
        let indexed = entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0;
        Self {
            function: entry.function,
            index: indexed.then_some(entry.index),
            eax: entry.eax,
            ebx: entry.ebx,
            ecx: entry.ecx,
            edx: entry.edx,
        }
    }
}

impl From<&CpuidLeaf> for kvm_cpuid_entry2 {
    fn from(leaf: &CpuidLeaf) -> Self {
        Self {
            function: leaf.function,
            index: leaf.index.unwrap_or_default(),
            flags: if leaf.index.is_some() { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 },
            eax: leaf.eax,
            ebx: leaf.ebx,
            ecx: leaf.ecx,
            edx: leaf.edx,
            ..Default::default()
        }
    }
}
