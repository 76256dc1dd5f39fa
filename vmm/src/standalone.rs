//! Stand-alone mode: a VM from flags, for people who work on the VMM, on a kernel, or compare VMMs. There is no jail.

use crate::console::{BoundedLog, Output};
use crate::disks;
use crate::machine::{Machine, MachineError, Placement};
use crate::nics;
use crate::terminal::{Keyboard, RawMode, Signals, Typed};
use crate::virtio::blk::Blk;
use crate::virtio::console::Console;
use crate::virtio::fs::{FsDevice, FsError, own_descriptors};
use crate::virtio::net::{self, Mac, Net, PlugError, Tap, TapError};
use crate::virtio::rng::Rng;
use clap::Args;
use lazaret_vmm_wire::Cause;
use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Bytes kept of a console that goes to a file.
const CONSOLE_LOG: u64 = 16 << 20;

/// The machine to run.
#[derive(Debug, Args)]
pub struct Flags {
    /// The kernel: an uncompressed vmlinux with a PVH entry (CONFIG_PVH=y)
    #[arg(long, value_name = "PATH")]
    pub kernel: Option<PathBuf>,
    /// The kernel's command line; the virtio-mmio devices are added
    #[arg(long, value_name = "TEXT", default_value = "console=hvc0 reboot=k panic=-1")]
    pub cmdline: String,
    /// A raw disk image or block device, /dev/vda and so on in the order given; read only with ",ro"
    #[arg(long = "disk", value_name = "PATH[,ro]")]
    pub disks: Vec<DiskFlag>,
    /// Guest memory: MiB, or with the suffix M or G
    #[arg(long, value_name = "SIZE", default_value = "256")]
    pub memory: Memory,
    /// A network interface of the guest's: a tap device of this network namespace, which is made if it is not there. For
    /// several vCPUs make it beforehand with several queues:
    /// ip tuntap add NAME mode tap multi_queue vnet_hdr
    #[arg(long = "net", value_name = "tap=NAME[,mac=ADDRESS]")]
    pub nets: Vec<NetFlag>,
    /// vCPUs
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub vcpus: u8,
    /// Where the console goes. stdio: virtio-console on this terminal (Ctrl-A x ends the VM); serial: the serial port on
    /// this terminal, for kernels without virtio-console (console=ttyS0); file: both, to a file; none: nowhere
    #[arg(long, value_name = "stdio|serial|none|file:PATH", default_value = "stdio")]
    pub console: ConsoleFlag,
    /// A directory the guest can mount by `mount -t virtiofs TAG /mnt`
    #[arg(long, value_name = "TAG=DIR")]
    pub shared: Option<SharedFlag>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskFlag {
    path: PathBuf,
    read_only: bool,
}

impl FromStr for DiskFlag {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (path, read_only) = text.strip_suffix(",ro").map_or((text, false), |path| (path, true));
        Ok(Self { path: path.into(), read_only })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetFlag {
    tap: String,
    mac: Option<Mac>,
}

impl FromStr for NetFlag {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const USAGE: &str = "a tap device and perhaps an address, as in tap=tap0,mac=02:00:00:00:00:01";
        let mut flag = Self { tap: String::new(), mac: None };
        for part in text.split(',') {
            match part.split_once('=') {
                Some(("tap", name)) if (1..libc::IFNAMSIZ).contains(&name.len()) => {
                    name.clone_into(&mut flag.tap)
                }
                Some(("mac", mac)) => {
                    let bytes = mac.split(':').map(|byte| u8::from_str_radix(byte, 16));
                    let bytes = bytes.collect::<Result<Vec<_>, _>>().map_err(|_| USAGE)?;
                    flag.mac = Some(bytes.try_into().map_err(|_| USAGE)?);
                }
                _ => return Err(USAGE),
            }
        }
        if flag.tap.is_empty() { Err(USAGE) } else { Ok(flag) }
    }
}

/// MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory(u32);

impl FromStr for Memory {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (number, unit) = match text.strip_suffix(['G', 'g']) {
            Some(number) => (number, 1024),
            None => (text.strip_suffix(['M', 'm']).unwrap_or(text), 1),
        };
        let number = number.parse::<u32>().ok().and_then(|number| number.checked_mul(unit));
        number.map(Self).ok_or("a number of MiB, or with a suffix as in 512M or 2G")
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConsoleFlag {
    Stdio,
    Serial,
    None,
    File(PathBuf),
}

impl FromStr for ConsoleFlag {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "stdio" => Ok(Self::Stdio),
            "serial" => Ok(Self::Serial),
            "none" => Ok(Self::None),
            _ => match text.strip_prefix("file:") {
                Some(path) if !path.is_empty() => Ok(Self::File(path.into())),
                _ => Err("one of stdio, serial, none, file:PATH"),
            },
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedFlag {
    tag: String,
    directory: PathBuf,
}

impl FromStr for SharedFlag {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (tag, directory) = text.split_once('=').ok_or("a tag and a directory, as in data=/srv/data")?;
        Ok(Self { tag: tag.to_owned(), directory: directory.into() })
    }
}

/// Why there is no VM, or none any more.
#[derive(Debug, thiserror::Error)]
pub enum StandaloneError {
    #[error("--kernel is needed: the uncompressed vmlinux to boot")]
    NoKernel,
    #[error("cannot open {path}: {source}")]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot use the terminal: {0}")]
    Terminal(io::Error),
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error(transparent)]
    Fs(#[from] FsError),
    #[error(
        "cannot use the tap device {name}: {source}; to make one: ip tuntap add {name} mode tap vnet_hdr"
    )]
    Tap { name: String, source: TapError },
    #[error("cannot use the tap device {name}: {source}")]
    Plug { name: String, source: PlugError },
    /// The VM ran, and failed.
    #[error("{0}")]
    Ended(String),
}

fn open(path: &Path, write: bool) -> Result<File, StandaloneError> {
    OpenOptions::new()
        .read(true)
        .write(write)
        .open(path)
        .map_err(|source| StandaloneError::Open { path: path.to_owned(), source })
}

/// Runs the VM to its end; true when the guest ended it itself, false when it was stopped from outside.
///
/// # Errors
/// See [`StandaloneError`].
pub fn run(flags: &Flags) -> Result<bool, StandaloneError> {
    let kernel_path = flags.kernel.as_deref().ok_or(StandaloneError::NoKernel)?;
    let mut kernel = open(kernel_path, false)?;
    let kvm = open(Path::new("/dev/kvm"), true)?;
    let nowhere = || Output::new(Box::new(io::sink()));
    let terminal = || Output::new(Box::new(io::stdout()));
    let (serial, console) = match &flags.console {
        ConsoleFlag::Stdio => (nowhere(), terminal()),
        ConsoleFlag::Serial => (terminal(), nowhere()),
        ConsoleFlag::None => (nowhere(), nowhere()),
        ConsoleFlag::File(path) => {
            let both = log_file(path)?;
            (both.clone(), both)
        }
    };
    let mut machine = Machine::new(kvm.into(), flags.vcpus, flags.memory.0, serial)?;
    for disk in &flags.disks {
        let file = open(&disk.path, !disk.read_only)?;
        let name = disk.path.file_name().unwrap_or_default().to_string_lossy();
        let device = Blk::new(file, disk.read_only, &name)
            .map_err(|source| StandaloneError::Open { path: disk.path.clone(), source })?;
        disks::add(&mut machine, &format!("disk {name}"), device)?;
    }
    let mut typed = (flags.console == ConsoleFlag::Serial).then(|| Typed::Serial(machine.serial()));
    let mut input = None;
    if flags.console == ConsoleFlag::Stdio {
        let (reader, writer) = keyboard_pipe().map_err(StandaloneError::Terminal)?;
        (input, typed) = (Some(reader), Some(Typed::Console(writer)));
    }
    machine.add("console", Box::new(Console::new(console, input)), Placement::Shared)?;
    machine.add("rng", Box::new(Rng), Placement::Shared)?;
    for (slot, flag) in (0..).zip(&flags.nets) {
        add_tap(&mut machine, slot, flag, flags.vcpus)?;
    }
    if let Some(shared) = &flags.shared {
        let device = FsDevice::new(&shared.tag, &shared.directory, own_descriptors()?, flags.memory.0)?;
        machine.add("fs", Box::new(device), Placement::Own)?;
    }
    machine.boot(&mut kernel, &flags.cmdline)?;

    machine.subscribe(Box::new(Signals::new(machine.stop()).map_err(StandaloneError::Terminal)?));
    let mut raw_mode = None;
    if let Some(typed) = typed {
        raw_mode = RawMode::enter().map_err(StandaloneError::Terminal)?;
        machine.subscribe(Box::new(Keyboard::new(typed, machine.stop())));
    }
    let ended = machine.run(|| {})?;
    drop(raw_mode);
    match &ended.cause {
        Cause::Reset => Ok(true),
        Cause::Requested => Ok(false),
        Cause::Error(reason) => Err(StandaloneError::Ended(reason.clone())),
    }
}

/// A network interface that is plugged in from the start.
fn add_tap(machine: &mut Machine, slot: u8, flag: &NetFlag, vcpus: u8) -> Result<(), StandaloneError> {
    let name = &flag.tap;
    let tap_failed = |source| StandaloneError::Tap { name: name.clone(), source };
    let queues = vcpus.clamp(1, lazaret_vmm_wire::MAX_QUEUE_PAIRS);
    let taps = Tap::open(name, queues.into()).map_err(tap_failed)?;
    let mtu = net::mtu_of(name).map_err(|error| tap_failed(error.into()))?;
    let pairs = u16::try_from(taps.len()).unwrap_or(u16::MAX);
    let net = Net::new(slot, pairs).map_err(MachineError::from)?;
    let mac = flag.mac.unwrap_or([2, 0, 0, 0, 1, slot]);
    let plugged = net.link().plug(taps, mac, mtu, || ());
    plugged.map_err(|source| StandaloneError::Plug { name: name.clone(), source })?;
    nics::add(machine, slot, net)?;
    Ok(())
}

/// Neither end blocks: the device waits by its event loop, and the keyboard must not wait at all.
fn keyboard_pipe() -> io::Result<(File, File)> {
    let (reader, writer) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)?;
    Ok((reader.into(), writer.into()))
}

fn log_file(path: &Path) -> Result<Output, StandaloneError> {
    let failed = |source| StandaloneError::Open { path: path.to_owned(), source };
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path);
    let log = BoundedLog::new(file.map_err(failed)?, CONSOLE_LOG).map_err(failed)?;
    Ok(Output::new(Box::new(log)))
}
