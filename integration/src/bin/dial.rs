//! `lazaret-dial`: process 1 of a guest whose instructions are counted (`integration/instructions`). It becomes the agent,
//! and ends the guest at the moment the agent dials.
//!
//! QEMU by itself has neither a shared tree nor vsock. A seccomp filter stands in for both: the one mount without flags,
//! that of the shared tree, succeeds without being made, and the first `connect` kills process 1. The kernel panics then,
//! and the time of that message is the time of the dial.

use nix::errno::Errno;
use nix::libc::{self, sock_filter, sock_fprog};
use nix::sys::time::{TimeSpec, TimeValLike};
use nix::time::{ClockId, ClockNanosleepFlags, clock_nanosleep};
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::Command;

const AGENT: &str = "/sbin/lazaret-agent";
/// When the agent begins, on the guest's clock. All that the boot has left to do, and the read of the agent's file, is done
/// by then. While nothing runs the emulator's clock jumps, so this costs no time.
const BEGIN: i64 = 500_000_000;

/// Offsets in `struct seccomp_data` (linux/seccomp.h): the call's number, the low half of its fourth argument.
const NUMBER: u32 = 0;
const MOUNT_FLAGS: u32 = 16 + 3 * 8;

fn main() {
    let error = become_agent();
    eprintln!("lazaret-dial: {error}");
    std::process::exit(1);
}

/// Returns only if it cannot.
fn become_agent() -> io::Error {
    let prepared = || -> io::Result<()> {
        // A disk answers when it likes: what is read of it must be in memory before the count begins.
        drop(fs::read(AGENT)?);
        // Opened before the filter, and closed by the exec.
        let mut log = OpenOptions::new().write(true).open("/dev/kmsg")?;
        let begin = TimeSpec::nanoseconds(BEGIN);
        clock_nanosleep(ClockId::CLOCK_MONOTONIC, ClockNanosleepFlags::TIMER_ABSTIME, &begin)?;
        filter()?;
        // SAFETY: every processor of this target has the instruction, and the kernel leaves it to programs.
        let counter = unsafe { std::arch::x86_64::_rdtsc() };
        log.write_all(format!("lazaret-dial: the agent begins at {counter}").as_bytes())
    };
    match prepared() {
        Ok(()) => Command::new(AGENT).exec(),
        Err(error) => error,
    }
}

fn filter() -> io::Result<()> {
    let step = |code: u32, if_equal: u8, otherwise: u8, value: u32| -> io::Result<sock_filter> {
        let code = u16::try_from(code).map_err(io::Error::other)?;
        Ok(sock_filter { code, jt: if_equal, jf: otherwise, k: value })
    };
    let load = |offset| step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, offset);
    let equal = |value, skip| step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, skip, value);
    let answer = |value| step(libc::BPF_RET | libc::BPF_K, 0, 0, value);
    let number = |call: libc::c_long| u32::try_from(call).map_err(io::Error::other);
    let mut steps = [
        load(NUMBER)?,
        equal(number(libc::SYS_connect)?, 1)?,
        answer(libc::SECCOMP_RET_KILL_PROCESS)?,
        equal(number(libc::SYS_mount)?, 3)?,
        load(MOUNT_FLAGS)?,
        equal(0, 1)?,
        answer(libc::SECCOMP_RET_ERRNO)?,
        answer(libc::SECCOMP_RET_ALLOW)?,
    ];
    let length = u16::try_from(steps.len()).map_err(io::Error::other)?;
    let program = sock_fprog { len: length, filter: steps.as_mut_ptr() };
    // SAFETY: the kernel copies `program` and the steps it points to, which live until the call returns.
    let result = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    Errno::result(result).map(drop).map_err(io::Error::from)
}
