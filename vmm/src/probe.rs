//! Can this machine's KVM run a kernel? Found out by running the instructions a kernel needs, in 64-bit mode with paging.
//!
//! Some KVMs open and answer, but interpret what the guest does in ring 0 and give up on instructions that their emulator
//! lacks: there a kernel dies seconds into its boot, with any VMM. The guest here takes milliseconds to find that out.

use crate::hypervisor::{Bus, Exit, HypervisorError, KvmVm, Stuck, Vm, kick};
use serde::Serialize;
use std::arch::global_asm;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// A good KVM takes a millisecond; one that interprets, or is itself emulated, some more.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// What KVM is worth on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    pub kvm: Kvm,
    /// One line.
    pub detail: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kvm {
    /// There is none, or we may not use it.
    Absent,
    /// It is there and cannot run a kernel.
    Unusable,
    Good,
}

/// Tries the KVM behind `/dev/kvm`.
#[must_use]
pub fn probe() -> Verdict {
    match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(kvm) => try_out(kvm.into(), guest()),
        Err(error) => {
            let what = match error.kind() {
                io::ErrorKind::NotFound => {
                    "/dev/kvm is not there: enable virtualisation in the firmware, or \
                                            nested virtualisation for this VM, and load kvm-intel or kvm-amd"
                        .to_owned()
                }
                io::ErrorKind::PermissionDenied => {
                    "/dev/kvm may not be opened: run as root or join its group".into()
                }
                _ => format!("/dev/kvm cannot be opened: {error}"),
            };
            Verdict { kvm: Kvm::Absent, detail: what }
        }
    }
}

fn try_out(kvm: OwnedFd, guest: &[u8]) -> Verdict {
    match run(kvm, guest) {
        Ok(()) => Verdict { kvm: Kvm::Good, detail: "/dev/kvm can run a guest kernel".to_owned() },
        Err(error) => Verdict { kvm: Kvm::Unusable, detail: format!("this machine's KVM {error}") },
    }
}

#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error("cannot run a guest kernel: {0}")]
    Stuck(Stuck),
    #[error("cannot run a guest kernel: a correct program faulted on it")]
    Fault,
    #[error("cannot be set up: {0}")]
    Hypervisor(#[from] HypervisorError),
    #[error("did not get through a few instructions in {} s", PROBE_TIMEOUT.as_secs())]
    Slow,
    #[error("could not be tried out: {0}")]
    Host(#[from] io::Error),
}

// Addresses in the probe's guest, which has 2 MiB.
const CODE: u64 = 0x10_0000;
/// The program begins with its descriptor table.
const GDTR: u64 = CODE + 24;
const ENTRY: u64 = CODE + 32;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PAGE_DIRECTORY: u64 = 0x3000;
const MEMORY: usize = 2 << 20;
/// Where the guest says that it is through.
const DONE_PORT: u16 = 0x501;

fn run(kvm: OwnedFd, guest: &[u8]) -> Result<(), Unusable> {
    let other = |error| Unusable::Host(io::Error::other(error));
    let memory: GuestMemoryMmap =
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).map_err(|e| other(e.to_string()))?;
    // Present and writable; the last one maps the first 2 MiB to themselves.
    let tables = [(PML4, PDPT | 3), (PDPT, PAGE_DIRECTORY | 3), (PAGE_DIRECTORY, 0x83)];
    for (place, entry) in tables {
        memory.write_obj(entry, GuestAddress(place)).map_err(|e| other(e.to_string()))?;
    }
    memory.write_slice(guest, GuestAddress(CODE)).map_err(|e| other(e.to_string()))?;
    let vm = KvmVm::new(kvm, Arc::new(memory))?;
    let mut vcpu = vm.create_vcpu(0)?;
    vcpu.set_cpuid(&vm.cpuid()?)?;
    vcpu.start_at(ENTRY, PML4)?;

    let (result, done) = mpsc::channel();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let runner = thread::spawn(move || {
        let port = DonePort::default();
        vcpu.arm();
        let outcome = loop {
            if stopped.load(Ordering::SeqCst) {
                break Err(Unusable::Slow);
            }
            match vcpu.run(&port) {
                Ok(Exit::Served) if port.0.load(Ordering::SeqCst) => break Ok(()),
                Ok(Exit::Served | Exit::Kicked) => {}
                Ok(Exit::TripleFault) => break Err(Unusable::Fault),
                Ok(Exit::Stuck(stuck)) => break Err(Unusable::Stuck(stuck)),
                Err(error) => break Err(error.into()),
            }
        };
        // The receiver has gone when the deadline has passed.
        let _ = result.send(outcome);
    });
    let outcome = done.recv_timeout(PROBE_TIMEOUT).unwrap_or_else(|_| {
        stop.store(true, Ordering::SeqCst);
        // An error says that it has just ended.
        let _ = kick(&runner);
        Err(Unusable::Slow)
    });
    // A panic there has been printed.
    let _ = runner.join();
    outcome
}

/// A bus on which there is nothing but the port where the guest says that it is through.
#[derive(Default)]
struct DonePort(AtomicBool);

impl Bus for DonePort {
    fn port_read(&self, _: u16, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn port_write(&self, port: u16, _: &[u8]) {
        if port == DONE_PORT {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    fn memory_read(&self, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn memory_write(&self, _: u64, _: &[u8]) {}
}

unsafe extern "C" {
    static lazaret_probe_start: u8;
    static lazaret_probe_end: u8;
}

/// The probe's program.
fn guest() -> &'static [u8] {
    let (start, end) = (&raw const lazaret_probe_start, &raw const lazaret_probe_end);
    // SAFETY: both symbols are defined below, in this order, in one section; between them are the program's bytes.
    unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
}

// It starts as a PVH kernel does: flat 32-bit mode, ebx = the page tables. It ends with `out` to DONE_PORT, or a triple
// fault. Labels are relative to where it is loaded: position = label - start + CODE.
global_asm!(
    ".pushsection .rodata.lazaret_probe, \"a\"",
    ".balign 16",
    ".globl lazaret_probe_start",
    "lazaret_probe_start:",
    // The descriptor table: none, 64-bit code, data; and its register, at GDTR.
    ".quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff",
    ".word 23",
    ".long {code}",
    ".balign 16",
    // ENTRY
    ".code32",
    // Long mode: PAE and the SSE bits, the page tables, EFER.LME, paging.
    "mov eax, cr4",
    "or eax, (1 << 5) | (1 << 9) | (1 << 10)",
    "mov cr4, eax",
    "mov cr3, ebx",
    "mov ecx, 0xc0000080",
    "rdmsr",
    "or eax, 1 << 8",
    "wrmsr",
    "mov eax, cr0",
    "or eax, (1 << 31) | (1 << 1) | 1",
    "and eax, 0xfffffffb",
    "mov cr0, eax",
    "lgdt [{gdtr}]",
    // jmp 0x8:2f
    ".byte 0xea",
    ".long {code} + 2f - lazaret_probe_start",
    ".word 8",
    ".code64",
    "2:",
    "mov esp, {stack}",
    // An IDT with one gate, #BP's.
    "lea rax, [rip + 3f]",
    "mov edi, {idt} + 3 * 16",
    "mov [rdi], ax",
    "mov word ptr [rdi + 2], 8",
    "mov word ptr [rdi + 4], 0x8e00",
    "shr eax, 16",
    "mov [rdi + 6], ax",
    "lidt [rip + 6f]",
    "xor r8d, r8d",
    "int3",
    "cmp r8d, 1",
    "jne 9f",
    // From here on what the processor says it has, as a kernel does: r9 = its features.
    "mov eax, 1",
    "xor ecx, ecx",
    "cpuid",
    "mov r9d, ecx",
    "mov edi, {scratch}",
    // cmpxchg16b, as the slab allocator does.
    "bt r9d, 13",
    "jnc 7f",
    "xor eax, eax",
    "xor edx, edx",
    "mov ebx, 1",
    "mov ecx, 2",
    "lock cmpxchg16b [rdi]",
    "jne 9f",
    "7:",
    "bt r9d, 23",
    "jnc 8f",
    "mov ebx, 0x00f0f0f0",
    "popcnt ecx, ebx",
    "cmp ecx, 12",
    "jne 9f",
    "8:",
    // The FPU's state, as a context switch saves and restores it, with XSAVE where there is one.
    "fninit",
    "fxsave64 [rdi + 64]",
    "fxrstor64 [rdi + 64]",
    "bt r9d, 26",
    "jnc 4f",
    "mov rax, cr4",
    "or rax, 1 << 18",
    "mov cr4, rax",
    "xor ecx, ecx",
    "xgetbv",
    "or eax, 3",
    "xsetbv",
    "mov eax, 3",
    "xor edx, edx",
    "xsave64 [rdi + 1024]",
    "mov eax, 3",
    "xor edx, edx",
    "xrstor64 [rdi + 1024]",
    "4:",
    "mov dx, {port}",
    "mov al, 1",
    "out dx, al",
    "9:",
    // Wrong results and the end alike: a fault without a handler.
    "ud2",
    // #BP.
    "3:",
    "inc r8d",
    "iretq",
    "6:",
    ".word 4 * 16 - 1",
    ".quad {idt}",
    ".globl lazaret_probe_end",
    "lazaret_probe_end:",
    ".popsection",
    code = const CODE,
    gdtr = const GDTR,
    stack = const 0x9000,
    idt = const 0x5000,
    scratch = const 0x6000,
    port = const DONE_PORT,
);

#[cfg(test)]
#[path = "probe_test.rs"]
mod tests;
