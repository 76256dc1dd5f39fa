//! Where dockerd runs: in the file system of a container, as if it had been installed there. `-v /work:/work` is the
//! container's `/work`, whatever is mounted on it.
//!
//! ```text
//!   /                   the container's, with all that is mounted in it
//!   /proc, /sys, /dev   the guest's
//!   /run                what the container has there at the start, in a directory of dockerd's own: its containerd puts sockets there
//!   /proc/driver        docker.erofs: the one place that is in every root and nobody's, and short enough for a loader's path
//!       /data           the disk of the sandbox, for images and containers
//!       /run            run-time state
//! ```
//!
//! All of this is in a mount namespace of dockerd's own; the container sees none of it.

use crate::cgroup::Cgroup;
use crate::paths::CGROUP_ROOT;
use nix::errno::Errno;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getpid};
use std::ffi::CString;
use std::fs::{self, DirEntry, File};
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

/// The argument that makes the agent's binary this program.
pub(crate) const COMMAND: &str = "launch-docker";

/// The disks, in the order the host plugs them in: after the root.
const IMAGE: &str = "/dev/vdb";
const DATA: &str = "/dev/vdc";

/// What the data's disk is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Disk {
    /// The disk lives no longer than the guest: it needs no journal, and nothing has to reach the host's disk.
    Scratch,
    /// Another guest will read it, however this one ends.
    Volume,
}

impl Disk {
    pub(super) fn of(keep: bool) -> Self {
        if keep { Self::Volume } else { Self::Scratch }
    }

    /// As an argument.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Scratch => "scratch",
            Self::Volume => "volume",
        }
    }

    /// The step that fails on one that is damaged.
    fn mounting(self) -> &'static str {
        match self {
            Self::Scratch => "mounting the disk",
            Self::Volume => "mounting the volume, which can be removed with `lazaret volume rm`",
        }
    }

    /// Of ext4, for mke2fs. Nobody will make it larger, and two copies of the superblock are enough: with 20 GiB that is 25
    /// writes instead of a thousand.
    fn features(self) -> &'static str {
        match self {
            Self::Scratch => "^has_journal,^resize_inode,sparse_super2",
            Self::Volume => "has_journal,^resize_inode,sparse_super2",
        }
    }

    /// Of ext4, for mount. What is pruned goes back to the host.
    fn mount_options(self) -> &'static str {
        match self {
            Self::Scratch => "discard,nobarrier",
            Self::Volume => "discard",
        }
    }
}

const HOME: &str = "/proc/driver";
const CONTAINERD: &str = "/proc/driver/usr/bin/containerd";
const DOCKERD: &str = "/proc/driver/usr/sbin/dockerd";
/// Where dockerd looks for the first socket it is handed (sd_listen_fds(3)).
pub(super) const SOCKET: i32 = 3;
/// Magic number of ext4 and its place on the disk (Linux, `fs/ext4/ext4.h`).
const EXT4_MAGIC: [u8; 2] = 0xEF53_u16.to_le_bytes();
const EXT4_MAGIC_AT: u64 = 1024 + 0x38;

#[derive(Debug, thiserror::Error)]
enum LaunchError {
    #[error("usage: {COMMAND} PID scratch|volume, with the pid of a container")]
    Usage,
    #[error("{0}: {1}")]
    Step(&'static str, #[source] io::Error),
    #[error("dockerd's containerd has ended")]
    Containerd,
    #[error("making a file system on the disk failed with {0}")]
    Format(std::process::ExitStatus),
}

/// Names the step that an error belongs to.
trait At<T> {
    fn at(self, step: &'static str) -> Result<T, LaunchError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, step: &'static str) -> Result<T, LaunchError> {
        self.map_err(|error| LaunchError::Step(step, error.into()))
    }
}

/// Runs dockerd and its containerd to the end of one of them, for the container whose first process has the pid that is the
/// first of `arguments`; the second names the kind of [`Disk`]. The socket is at descriptor 3. Returns the exit status.
pub(crate) fn main(arguments: impl Iterator<Item = String>) -> i32 {
    launch(arguments).unwrap_or_else(|error| {
        eprintln!("{error}");
        1
    })
}

fn launch(mut arguments: impl Iterator<Item = String>) -> Result<i32, LaunchError> {
    let pid = arguments.next().and_then(|pid| pid.parse::<u32>().ok()).ok_or(LaunchError::Usage)?;
    let kind = arguments.next();
    let disk = [Disk::Scratch, Disk::Volume].into_iter().find(|disk| kind.as_deref() == Some(disk.name()));
    let disk = disk.ok_or(LaunchError::Usage)?;
    let begun = Instant::now();
    own_cgroups().at("entering dockerd's cgroup")?;
    let namespace =
        File::open(format!("/proc/{pid}/ns/mnt")).at("opening the container's mount namespace")?;
    let guests = ["/proc", "/sys", "/dev"].map(Path::new);
    let guests = guests.map(|path| clone_tree(path).map(|tree| (tree, path)));
    setns(namespace, CloneFlags::CLONE_NEWNS).at("entering the container's mount namespace")?;
    unshare(CloneFlags::CLONE_NEWNS).at("making a mount namespace")?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).at("making the mounts private")?;

    for guest in guests {
        let (tree, path) = guest.at("copying the mounts of the guest's /proc, /sys and /dev")?;
        move_tree(&tree, path).at("mounting the guest's /proc, /sys and /dev")?;
    }
    let read_only = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // The kernel does not put a file system on itself.
    umount2(CGROUP_ROOT, MntFlags::MNT_DETACH).at("unmounting the guest's cgroups")?;
    mount(Some("cgroup2"), CGROUP_ROOT, Some("cgroup2"), flags, none).at("mounting dockerd's cgroups")?;
    mount(Some(IMAGE), HOME, Some("erofs"), read_only, none).at("mounting docker.erofs")?;
    read_ahead();
    let state = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("docker"), "/proc/driver/run", Some("tmpfs"), state, Some("mode=0711"))
        .at("mounting dockerd's run-time state")?;
    own_run().at("mounting /run")?;
    let mounted = begun.elapsed();
    format_if_new(disk)?;
    let noatime = MsFlags::MS_NOATIME;
    mount(Some(DATA), "/proc/driver/data", Some("ext4"), noatime, Some(disk.mount_options()))
        .at(disk.mounting())?;
    let [mounted, disk] = [mounted, begun.elapsed()].map(|time| time.as_millis());
    eprintln!("starting after {disk} ms: file system {mounted} ms, then the disk");

    let mut containerd = program(CONTAINERD);
    containerd.args(["--config", "/proc/driver/etc/containerd.toml"]);
    let mut dockerd = program(DOCKERD);
    dockerd.args(["--config-file", "/proc/driver/etc/docker.json", "--host", "fd://"]).env("LISTEN_FDS", "1");
    let containerd = fork_exec(containerd, false).at("starting containerd")?;
    let dockerd = fork_exec(dockerd, true).at("starting dockerd")?;
    // Whichever ends first is the end of both: dockerd does nothing without its containerd, and would not say so. The agent
    // kills what is left.
    loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, status)) if pid == dockerd => return Ok(status),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == dockerd => return Ok(128 + signal as i32),
            Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..)) if pid == containerd => {
                return Err(LaunchError::Containerd);
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(LaunchError::Step("waiting for dockerd", errno.into())),
        }
    }
}

/// Starts a program, with or without the Docker socket, which is descriptor 3 of this process. It forks by hand, because a program
/// that is handed a socket must find its own pid in LISTEN_PID (sd_listen_fds(3)).
fn fork_exec(mut command: Command, with_socket: bool) -> io::Result<Pid> {
    // SAFETY: this process has one thread, so its child may do whatever it could.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            if with_socket {
                command.env("LISTEN_PID", getpid().to_string());
            } else {
                // SAFETY: nothing in this process owns the descriptor.
                drop(unsafe { OwnedFd::from_raw_fd(SOCKET) });
            }
            let error = command.exec();
            eprintln!("{}: {error}", command.get_program().display());
            std::process::exit(1);
        }
    }
}

/// A program of docker.erofs, with what it and its children need to find each other.
fn program(path: &str) -> Command {
    let mut command = Command::new(path);
    command
        .env("PATH", "/proc/driver/usr/sbin:/proc/driver/usr/bin")
        .env("LD_LIBRARY_PATH", "/proc/driver/usr/lib/x86_64-linux-gnu")
        .env("XTABLES_LIBDIR", "/proc/driver/usr/lib/x86_64-linux-gnu/xtables")
        .env("TMPDIR", "/proc/driver/run")
        .env("HOME", "/root");
    command
}

/// Enters a cgroup that is the root of all that can be named from here on: no container of Docker's is outside it, whatever
/// `--cgroup-parent` says. Its root has no processes of its own, so that containers below it can be limited.
fn own_cgroups() -> io::Result<()> {
    let docker = Cgroup::docker();
    docker.enter()?;
    unshare(CloneFlags::CLONE_NEWCGROUP)?;
    docker.below("daemon").enter()
}

/// Has the kernel read the two programs, nearly all of which they touch at once, in large pieces and beside what comes next.
/// Without it they are read as they are touched, and each time they wait.
fn read_ahead() {
    // Reading ahead only saves time. A program that cannot be read is an error when it is started.
    let _ = fs::write("/sys/block/vdb/queue/read_ahead_kb", "1024");
    for path in [CONTAINERD, DOCKERD] {
        let Ok(program) = File::open(path) else { return };
        let _ = posix_fadvise(program, 0, 0, PosixFadviseAdvice::POSIX_FADV_WILLNEED);
    }
}

/// Makes an ext4 on the disk, unless it has one.
fn format_if_new(disk: Disk) -> Result<(), LaunchError> {
    let mut magic = [0; 2];
    File::open(DATA).and_then(|disk| disk.read_exact_at(&mut magic, EXT4_MAGIC_AT)).at("reading the disk")?;
    if magic == EXT4_MAGIC {
        return Ok(());
    }
    let options = "nodiscard,assume_storage_prezeroed=1,lazy_itable_init=1,lazy_journal_init=1";
    let status = program("/proc/driver/usr/sbin/mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-m", "0", "-G", "256", "-O", disk.features(), "-E", options, DATA])
        .status()
        .at("running mke2fs of docker.erofs")?;
    if status.success() { Ok(()) } else { Err(LaunchError::Format(status)) }
}

/// A `/run` that can be written without the container's seeing it: what the container has there now is found there, too.
fn own_run() -> io::Result<()> {
    let own = Path::new("/proc/driver/run/run");
    fs::create_dir(own)?;
    match fs::create_dir("/run") {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    for entry in fs::read_dir("/run")? {
        match copy_entry(&entry?, own) {
            // The container takes away what it likes meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            result => result?,
        }
    }
    move_tree(&clone_tree(own)?, Path::new("/run"))
}

/// Has what `entry` is in `directory`, too: a link as a link, all else as a mount of the same.
fn copy_entry(entry: &DirEntry, directory: &Path) -> io::Result<()> {
    let (kind, target) = (entry.file_type()?, directory.join(entry.file_name()));
    if kind.is_symlink() {
        return symlink(fs::read_link(entry.path())?, target);
    }
    let tree = clone_tree(&entry.path())?;
    if kind.is_dir() {
        fs::create_dir(&target)?;
    } else {
        File::create(&target)?;
    }
    move_tree(&tree, &target)
}

/// The mounts at and below `path`, as they are now. The shim makes this call, too (`sandbox/bind.rs`): the crate that the two
/// share is a contract, not a place for system calls.
fn clone_tree(path: &Path) -> io::Result<OwnedFd> {
    let (here, path) = (libc::AT_FDCWD, c_string(path)?);
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_RECURSIVE.unsigned_abs();
    // SAFETY: the path outlives the call, which returns a new descriptor or -1.
    let raw = unsafe { libc::syscall(libc::SYS_open_tree, here, path.as_ptr(), flags) };
    let raw = i32::try_from(Errno::result(raw)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Mounts what [`clone_tree`] has given on `target`.
fn move_tree(tree: &OwnedFd, target: &Path) -> io::Result<()> {
    let (empty, target) = (c"", c_string(target)?);
    let (flags, here) = (libc::MOVE_MOUNT_F_EMPTY_PATH, libc::AT_FDCWD);
    // SAFETY: both paths outlive the call.
    let moved = unsafe {
        libc::syscall(libc::SYS_move_mount, tree.as_raw_fd(), empty.as_ptr(), here, target.as_ptr(), flags)
    };
    Errno::result(moved)?;
    Ok(())
}

fn c_string(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_encoded_bytes())?)
}
