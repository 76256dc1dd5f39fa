//! A user-mode network: `pasta` of the package passt, one process for a sandbox.
//!
//! ```text
//!   the host's network namespace         the sandbox's network namespace
//!     sockets ◄──────── pasta ────────► eth0, a tap device ══ wired to the guest as any interface
//! ```
//!
//! pasta makes `eth0` with addresses and routes, and has it for as long as it runs. Each connection of the guest is a socket
//! of pasta in the host's network namespace.
//!
//! **Rights.** pasta is started as nobody, with the three capabilities that it needs to enter the namespace, to set up
//! `eth0`, and to bind low ports. It then gives up `CAP_NET_ADMIN` and its view of the host's files, and sets a seccomp
//! filter. If it were started as root, it would lose the right to enter the namespace when it becomes nobody.
//!
//! **Its end.** The kernel kills pasta when the shim ends, for whatever reason; it would forget to if pasta changed its user
//! by itself. The shim kills pasta with the guard.

use super::published::{Protocol, Published};
use super::{NetworkError, namespace};
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::unix::pipe;
use tokio::process::{Child, ChildStderr, Command};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

/// How long pasta may take until the interface is there; on an emulated host it takes a second.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// How long pasta may take to go when it is killed.
const END_TIMEOUT: Duration = Duration::from_secs(5);
/// What is read of pasta's standard error, in bytes. A guest can have pasta say something again and again.
const MAX_STDERR: u64 = 16 * 1024;

const PASTA: &str = "pasta";
/// What a pasta that is too old answers to an option, in `getopt_long`'s words.
const UNKNOWN_OPTION: &str = "unrecognized option";
/// The youngest of the options below.
const YOUNGEST_OPTION: &str = "--no-splice";

const TUN: &str = "/dev/net/tun";
/// User and group of pasta, as it chooses itself when it is started by root.
const NOBODY: u32 = 65534;
/// `CAP_NET_BIND_SERVICE`, `CAP_NET_ADMIN` and `CAP_SYS_ADMIN` (`linux/capability.h`).
const CAPABILITIES: [u32; 3] = [10, 12, 21];
/// Numbers above the last capability of a kernel are no error to drop.
const CAPABILITY_NUMBERS: u32 = 64;

/// Every sandbox has the same addresses: none of them is the host's, which so stay the host's for the guest, and none
/// changes when the host moves. pasta answers for all neighbours, so that only the guest's own address is hidden from it.
const ADDRESS: &str = "10.0.2.100";
const PREFIX_LENGTH: &str = "24";
const GATEWAY: &str = "10.0.2.2";
/// A unique local address (RFC 4193) is the last choice for a destination that has IPv4, too (RFC 6724). So it does no harm
/// where the host has no IPv6.
const ADDRESS6: &str = "fd6c:617a:6172::100";
const GATEWAY6: &str = "fe80::1";
/// Port 53 of these addresses is the host's first nameserver with an address of the family, also where that one listens on
/// the host's loopback interface.
pub(crate) const NAMESERVER: &str = "169.254.1.1";
pub(crate) const NAMESERVER6: &str = "fd6c:617a:6172::53";

/// A running pasta. Dropping it kills the process; its interface goes with it.
#[derive(Debug)]
pub(crate) struct Pasta {
    stop: Arc<Notify>,
    ended: watch::Receiver<bool>,
}

impl Pasta {
    /// Gives `namespace` an interface, and waits until it has its addresses and routes.
    ///
    /// # Errors
    /// [`NetworkError`], with what pasta said; nothing is left then.
    pub(crate) async fn start(
        namespace: Arc<OwnedFd>,
        published: &[Published],
    ) -> Result<Self, NetworkError> {
        Self::run(&find_pasta().ok_or(NetworkError::PastaAbsent)?, namespace, published).await
    }

    async fn run(
        binary: &Path,
        namespace: Arc<OwnedFd>,
        published: &[Published],
    ) -> Result<Self, NetworkError> {
        // This has the kernel load the driver, too.
        OpenOptions::new().read(true).write(true).open(TUN).map_err(NetworkError::Tun)?;
        let failed = |source| NetworkError::PastaSpawn { path: binary.into(), source };
        let ipv6 = namespace::run(namespace.clone(), || Ok(has_ipv6())).await?;
        let (mut child, ready) = spawn(binary, &namespace, arguments(ipv6, published)).map_err(failed)?;
        let said = tokio::spawn(log_stderr(child.stderr.take()));
        let ready = tokio::time::timeout(START_TIMEOUT, says_its_pid(ready)).await;
        if ready != Ok(true) {
            let _ = child.start_kill();
            let status = child.wait().await;
            let how = match ready {
                Ok(_) => describe(status),
                Err(_) => format!("pasta is not ready within {} s", START_TIMEOUT.as_secs()),
            };
            let said = said.await.ok().flatten();
            // What it says of a port that it cannot have does not always name the port.
            let ports: Vec<_> = published.iter().flat_map(|entry| port_arguments(entry, ipv6)).collect();
            let ports =
                if ports.is_empty() { String::new() } else { format!(" (ports: {})", ports.join(", ")) };
            return Err(match said {
                Some(line) if line.contains(UNKNOWN_OPTION) => NetworkError::PastaTooOld(line),
                line => NetworkError::Pasta(line.unwrap_or(how) + &ports),
            });
        }
        let stop = Arc::new(Notify::new());
        let (ended_to, ended) = watch::channel(false);
        tokio::spawn(supervise(child, said, stop.clone(), ended_to));
        Ok(Self { stop, ended })
    }

    /// Kills pasta, and waits until it is gone.
    pub(crate) async fn end(self) {
        let mut ended = self.ended.clone();
        self.stop.notify_one();
        if tokio::time::timeout(END_TIMEOUT, ended.wait_for(|ended| *ended)).await.is_err() {
            log::warn!("pasta does not end when it is killed");
        }
    }
}

impl Drop for Pasta {
    fn drop(&mut self) {
        self.stop.notify_one();
    }
}

/// The first pasta in `PATH`.
#[must_use]
pub(crate) fn find_pasta() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(PASTA)).find(|file| file.is_file())
}

/// Whether a pasta has every option that is used here. Its list of them is not whole, but it reads them in order.
///
/// # Errors
/// When it cannot be run.
pub(crate) fn is_young_enough(pasta: &Path) -> io::Result<bool> {
    let help = std::process::Command::new(pasta).args([YOUNGEST_OPTION, "--help"]).output()?;
    Ok(help.status.success())
}

/// Whether an interface that is made in this thread's network namespace can have an IPv6 address. Docker turns that off where
/// it has none to give.
fn has_ipv6() -> bool {
    let disabled = std::fs::read_to_string("/proc/sys/net/ipv6/conf/default/disable_ipv6");
    // A kernel without IPv6 has no such file.
    disabled.is_ok_and(|disabled| disabled.trim() == "0")
}

fn arguments(ipv6: bool, published: &[Published]) -> Vec<OsString> {
    let mut arguments = vec![
        "--foreground",
        "--quiet",
        // All other descriptors are closed by pasta before it looks at its options.
        "--netns",
        "/proc/self/fd/0",
        "--no-netns-quit",
        // The pid is written when the interface is there.
        "--pid",
        "/proc/self/fd/1",
        // No address and no route is taken from an interface of the host's.
        "--interface",
        "lo",
        "--config-net",
        "--ns-ifname",
        "eth0",
        "--address",
        ADDRESS,
        "--netmask",
        PREFIX_LENGTH,
        "--gateway",
        GATEWAY,
        "--dns-forward",
        NAMESERVER,
        // Without this the gateway's address is the host's loopback interface.
        "--no-map-gw",
        // Without this a local connection to a published port ends in the namespace instead of the guest.
        YOUNGEST_OPTION,
        // No port of the namespace's loopback interface is the host's. The default is all that listen.
        "--tcp-ns",
        "none",
        "--udp-ns",
        "none",
    ];
    if ipv6 {
        arguments.extend(["--address", ADDRESS6, "--gateway", GATEWAY6, "--dns-forward", NAMESERVER6]);
    } else {
        arguments.push("--ipv4-only");
    }
    let mut arguments: Vec<OsString> = arguments.into_iter().map(OsString::from).collect();
    for (protocol, option) in [(Protocol::Tcp, "--tcp-ports"), (Protocol::Udp, "--udp-ports")] {
        let of_protocol = published.iter().filter(|entry| entry.protocol == protocol);
        let mut ports: Vec<_> = of_protocol.flat_map(|entry| port_arguments(entry, ipv6)).collect();
        if ports.is_empty() {
            // The default is all that the namespace listens to.
            ports.push("none".into());
        }
        arguments.extend(ports.into_iter().flat_map(|port| [option.into(), port.into()]));
    }
    arguments
}

/// One for each address. Without one, pasta would be content with the family whose port is free.
fn port_arguments(published: &Published, ipv6: bool) -> Vec<String> {
    let any = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    let any = if ipv6 { &any[..] } else { &any[..1] };
    let addresses = published.address.as_ref().map_or(any, std::slice::from_ref);
    let (host_port, guest_port) = (published.host_port, published.guest_port);
    addresses.iter().map(|address: &IpAddr| format!("{address}/{host_port}:{guest_port}")).collect()
}

/// Starts pasta. It writes its pid to the second value when the interface is there.
fn spawn(
    binary: &Path,
    namespace: &OwnedFd,
    arguments: Vec<OsString>,
) -> io::Result<(Child, pipe::Receiver)> {
    let (ready, ready_to) = io::pipe()?;
    // pasta opens it by its path, for which it has to be its own.
    std::os::unix::fs::fchown(&ready_to, Some(NOBODY), Some(NOBODY))?;
    let mut command = std::process::Command::new(binary);
    command.args(arguments).env_clear().current_dir("/").process_group(0);
    command.stdin(File::from(namespace.try_clone()?)).stdout(ready_to).stderr(Stdio::piped());
    let parent = libc::pid_t::try_from(std::process::id()).map_err(io::Error::other)?;
    let enter = move || enter(parent);
    // SAFETY: `enter` runs between fork and exec, where only async-signal-safe calls are allowed: it makes plain
    // system calls, and neither allocates nor locks.
    unsafe { command.pre_exec(enter) };
    let child = Command::from(command).kill_on_drop(true).spawn()?;
    Ok((child, pipe::Receiver::from_owned_fd(ready.into())?))
}

/// Runs in pasta's process before its binary does.
fn enter(parent: libc::pid_t) -> io::Result<()> {
    open_tun_to_all()?;
    become_nobody()?;
    // After the user has changed, which would undo it. The signal comes at the end of the thread that forked: the shim has
    // one for everything it starts.
    // SAFETY: a plain system call.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })?;
    // SAFETY: as above.
    if unsafe { libc::getppid() } == parent { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
}

/// Gives this process a view of the host's files in which everybody can open the driver of tap devices. Where udev does not
/// run, root alone can.
fn open_tun_to_all() -> io::Result<()> {
    let private = libc::MS_REC | libc::MS_PRIVATE;
    let limited = libc::MS_NOSUID | libc::MS_NOEXEC;
    let (null, tun) = (std::ptr::null(), c"/dev/net/tun");
    // SAFETY: plain system calls on constant strings.
    unsafe {
        check(libc::unshare(libc::CLONE_NEWNS))?;
        check(libc::mount(null, c"/".as_ptr(), null, private, null.cast()))?;
        let (tmpfs, options) = (c"tmpfs".as_ptr(), c"mode=755".as_ptr());
        check(libc::mount(tmpfs, c"/dev/net".as_ptr(), tmpfs, limited, options.cast()))?;
        check(libc::mknod(tun.as_ptr(), libc::S_IFCHR | 0o666, libc::makedev(10, 200)))?;
        // mknod leaves out what the umask says.
        check(libc::chmod(tun.as_ptr(), 0o666))
    }
}

/// Changes the user, and keeps [`CAPABILITIES`] alone. They are ambient, so that the binary has them.
fn become_nobody() -> io::Result<()> {
    for number in 0..CAPABILITY_NUMBERS {
        if !CAPABILITIES.contains(&number) {
            // SAFETY: a plain system call.
            let dropped = check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) });
            if dropped.as_ref().is_err_and(|error| error.raw_os_error() != Some(libc::EINVAL)) {
                return dropped;
            }
        }
    }
    // As the kernel has it, not as the C library does, which would stop this process's threads under a lock.
    let call = |number, id: u32| {
        // SAFETY: a plain system call on numbers.
        let result = unsafe { libc::syscall(number, id, id, id) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: a plain system call.
    check(unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0) })?;
    // SAFETY: as above; the list of groups has no entry.
    let cleared = unsafe { libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()) };
    if cleared < 0 {
        return Err(io::Error::last_os_error());
    }
    call(libc::SYS_setresgid, NOBODY)?;
    call(libc::SYS_setresuid, NOBODY)?;
    let kept = CAPABILITIES.iter().fold(0, |mask, number| mask | 1 << number);
    // `struct __user_cap_header_struct` of version 3, this process; `__user_cap_data_struct`: effective, permitted,
    // inheritable, of the low 32 and the high 32 capabilities.
    let (header, data) = ([0x2008_0522_u32, 0], [kept, kept, kept, 0, 0, 0_u32]);
    // SAFETY: the kernel reads both, which are as large as it expects and outlive the call.
    if unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    for number in CAPABILITIES {
        // SAFETY: a plain system call.
        check(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, number, 0, 0) })?;
    }
    Ok(())
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// True when a whole line comes before the end.
async fn says_its_pid(ready: pipe::Receiver) -> bool {
    let mut line = String::new();
    let read = BufReader::new(ready.take(32)).read_line(&mut line).await;
    read.is_ok() && line.ends_with('\n')
}

/// Waits for pasta's end, or causes it.
async fn supervise(
    mut child: Child,
    said: JoinHandle<Option<String>>,
    stop: Arc<Notify>,
    ended: watch::Sender<bool>,
) {
    tokio::select! {
        status = child.wait() => {
            let said = said.await.ok().flatten().map(|line| format!(": {line}")).unwrap_or_default();
            log::error!("the sandbox has no user-mode network any more: {}{said}", describe(status));
        }
        () = stop.notified() => {
            let _ = child.start_kill();
            if let Err(error) = child.wait().await {
                log::warn!("cannot wait for pasta: {error}");
            }
        }
    }
    ended.send_replace(true);
}

fn describe(status: io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => match status.signal() {
            Some(signal) => format!("pasta was ended by signal {signal}"),
            None => format!("pasta ended with status {}", status.code().unwrap_or_default()),
        },
        Err(error) => format!("the shim cannot wait for pasta: {error}"),
    }
}

/// Logs what pasta says until its end. The line that tells most: an option that it does not know, else the last.
async fn log_stderr(stderr: Option<ChildStderr>) -> Option<String> {
    let mut lines = BufReader::new(stderr?.take(MAX_STDERR)).lines();
    let mut last = None;
    while let Ok(Some(line)) = lines.next_line().await {
        log::warn!("pasta: {line}");
        let telling = line.contains(UNKNOWN_OPTION);
        last = Some(line);
        if telling {
            // Its options follow, all of them.
            break;
        }
    }
    last
}

#[cfg(test)]
#[path = "pasta_test.rs"]
pub(super) mod tests;
