//! A process of the host that stands for one container of several, so that its pid is that container's alone.
//!
//! ```text
//!   the anchor is killed      ─► the container is killed in the guest
//!   the container has ended   ─► the anchor is killed and reaped, then the exit is published
//!   the shim ends             ─► the kernel kills the anchor (PR_SET_PDEATHSIG)
//! ```
//!
//! It is in the network namespace and the cgroup of the VMM, which is where clients of containerd look for them. It is a program of
//! three system calls that is made here: 8 KiB of memory, no descriptor, and nothing of the shim's.

use crate::error::{Error, Result};
use std::arch::global_asm;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// How long the kernel may take to end a killed process that does nothing.
const END_TIMEOUT: Duration = Duration::from_secs(2);
/// Where the program is loaded: as far as linkers put those that are not relocated.
const BASE: u64 = 0x40_0000;
/// The length of the ELF header and of the two program headers.
const HEADERS: u64 = 64 + 2 * 56;

// What it runs (Linux, arch/x86/entry/syscalls/syscall_64.tbl). At its entry the stack has argc, then argv.
global_asm!(
    ".pushsection .rodata.lazaret_anchor, \"a\"",
    ".globl lazaret_anchor",
    ".globl lazaret_anchor_end",
    ".hidden lazaret_anchor",
    ".hidden lazaret_anchor_end",
    "lazaret_anchor:",
    "mov rsi, [rsp + 8]", // argv[0]
    "mov edi, 15",        // PR_SET_NAME, which takes 15 bytes of it
    "mov eax, 157",       // prctl
    "syscall",
    "xor edi, edi",
    "mov esi, -1",
    "xor edx, edx",
    "mov eax, 436", // close_range: every descriptor
    "syscall",
    "2:",
    "mov eax, 34", // pause, again after each signal
    "syscall",
    "jmp 2b",
    "lazaret_anchor_end:",
    ".popsection",
);

unsafe extern "C" {
    safe static lazaret_anchor: u8;
    safe static lazaret_anchor_end: u8;
}

/// The process of a container. It ends with this.
#[derive(Debug)]
pub(crate) struct Anchor {
    pid: u32,
    ended: watch::Receiver<bool>,
    kill: Arc<Notify>,
}

impl Anchor {
    /// Starts the process of container `id` in this network namespace and cgroup (its `cgroup.procs`). It ends with the thread that
    /// starts it, so that must be one that stays. Until its end it keeps `counted`.
    ///
    /// # Errors
    /// [`Error::Internal`].
    pub(crate) fn start(id: &str, network: &OwnedFd, cgroup: Option<File>, counted: Arc<()>) -> Result<Self> {
        let failed = |error: io::Error| {
            Error::Internal(format!("container {id}: its process on the host cannot be started: {error}"))
        };
        let network = network.try_clone().map_err(failed)?;
        let file = program_file().map_err(failed)?;
        let mut command = tokio::process::Command::from(command(id, &file, network));
        command.kill_on_drop(true);
        let mut child = command.spawn().map_err(failed)?;
        let pid = child.id().unwrap_or_default();
        // Not by itself before it is run: in a cgroup that is frozen it would stop there, and who waits for it with it.
        cgroup.map_or(Ok(()), |mut procs| procs.write_all(pid.to_string().as_bytes())).map_err(failed)?;
        let (told, ended) = watch::channel(false);
        let kill = Arc::new(Notify::new());
        let killed = kill.clone();
        tokio::spawn(async move {
            let _counted = counted;
            tokio::select! {
                _ = child.wait() => {}
                () = killed.notified() => {
                    if let Err(error) = child.kill().await {
                        log::debug!("process {pid}: {error}");
                    }
                }
            }
            told.send_replace(true);
        });
        Ok(Self { pid, ended, kill })
    }

    #[must_use]
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until it has ended.
    pub(crate) fn ended(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut ended = self.ended.clone();
        async move {
            // A sender that is gone has seen its end.
            let _ = ended.wait_for(|ended| *ended).await;
        }
    }

    /// Ends it and waits until it is reaped.
    pub(crate) async fn end(&self) {
        self.kill.notify_one();
        if tokio::time::timeout(END_TIMEOUT, self.ended()).await.is_err() {
            log::error!("process {} does not end when it is killed", self.pid);
        }
    }
}

impl Drop for Anchor {
    fn drop(&mut self) {
        self.kill.notify_one();
    }
}

fn command(id: &str, program: &File, network: OwnedFd) -> Command {
    let mut command = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()));
    command.arg0(format!("lazaret:{id}")).env_clear().current_dir("/").process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let shim = nix::unistd::getpid();
    let enter = move || {
        // SAFETY: plain system calls, on a descriptor we own.
        let done = unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == 0
                && libc::setns(network.as_raw_fd(), libc::CLONE_NEWNET) == 0
        };
        if !done {
            return Err(io::Error::last_os_error());
        }
        // The shim may have ended before the first of them.
        if nix::unistd::getppid() == shim { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
    };
    // SAFETY: `enter` runs between fork and exec, where only async-signal-safe calls are allowed: it makes plain system calls, and
    // neither allocates nor locks.
    unsafe { command.pre_exec(enter) };
    command
}

/// A file without a name that holds the program. It goes with its last user.
fn program_file() -> io::Result<File> {
    const NAME: &std::ffi::CStr = c"lazaret-anchor";
    // Kernels from 6.3 on want to be told that it is to be run; older ones do not know the flag.
    let create = |flags: u32| {
        // SAFETY: the name is a terminated string that outlives the call.
        unsafe { libc::memfd_create(NAME.as_ptr(), libc::MFD_CLOEXEC | flags) }
    };
    let mut raw = create(libc::MFD_EXEC);
    if raw < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL) {
        raw = create(0);
    }
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us; nothing else owns it.
    let mut file = File::from(unsafe { OwnedFd::from_raw_fd(raw) });
    file.write_all(&program())?;
    Ok(file)
}

/// The program as an ELF executable (elf(5)): its headers and its code in one segment.
fn program() -> Vec<u8> {
    let (begin, end) = (&raw const lazaret_anchor, &raw const lazaret_anchor_end);
    // SAFETY: both are in one section of this program that nothing writes to, in this order.
    let code = unsafe { std::slice::from_raw_parts(begin, end.addr() - begin.addr()) };
    let size = HEADERS + code.len() as u64;
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let (executable, x86_64, version) = (2u16, 62u16, 1u32);
    elf.extend([executable.to_le_bytes(), x86_64.to_le_bytes()].concat());
    elf.extend(version.to_le_bytes());
    let (entry, program_headers, section_headers) = (BASE + HEADERS, 64u64, 0u64);
    elf.extend([entry, program_headers, section_headers].map(u64::to_le_bytes).concat());
    elf.extend(0u32.to_le_bytes());
    // The sizes of this header and of a program header, the number of those; no section.
    elf.extend([64u16, 56, 2, 0, 0, 0].map(u16::to_le_bytes).concat());
    // All of it, to be read and run.
    elf.extend([libc::PT_LOAD, libc::PF_R | libc::PF_X].map(u32::to_le_bytes).concat());
    elf.extend([0, BASE, BASE, size, size, 0x1000].map(u64::to_le_bytes).concat());
    // The stack, not to be run.
    elf.extend([libc::PT_GNU_STACK, libc::PF_R | libc::PF_W].map(u32::to_le_bytes).concat());
    elf.extend([0u64; 6].map(u64::to_le_bytes).concat());
    elf.extend(code);
    elf
}

#[cfg(test)]
#[path = "anchor_test.rs"]
mod tests;
