//! The control channel between the shim and `lazaret-vmm`.
//!
//! ```text
//!   shim ── Request + descriptors ──►  lazaret-vmm
//!        ◄── Event  + descriptors ──
//! ```
//!
//! One inherited `SOCK_SEQPACKET` pair; a packet is one JSON message, its descriptors ride along as `SCM_RIGHTS`, each
//! with a [`Name`]. There is no path in the file system for a stranger to connect to. The VMM parses what a hostile guest
//! writes, so the shim trusts an [`Event`] no further than its type: packets and descriptors per packet are bounded.

mod channel;
mod descriptors;
mod files;

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

pub use channel::{Channel, ChannelError, MAX_DESCRIPTORS, MAX_PACKET};
pub use descriptors::{DescriptorError, Descriptors, Name};
pub use files::{FILE_BYTES, max_files};

/// What the shim asks of the VMM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Builds and runs the VM; sent once, first. Descriptors: [`Name::Kvm`], [`Name::Kernel`], [`Name::ConsoleLog`], and
    /// [`Name::Disk`] for each of [`VmConfig::disks`] that is not [`Disk::empty`].
    Boot(VmConfig),
    /// Attaches a file to a disk that is [`Disk::empty`]; the guest is told of its capacity. [`Name::Disk`] with the disk's
    /// index in [`VmConfig::disks`] rides along: a file or block device of at least a sector, open for reading and, unless the
    /// disk is read only, writing. The answer is an [`Event::Disk`]. A disk keeps its file to the end of the VM: a second one
    /// is refused.
    AttachDisk { index: u8 },
    /// Connects [`Name::Stream`], which rides along, to the guest's vsock `port`. There is no answer: a guest that
    /// refuses shows as end of file on that socket.
    Connect { port: u32 },
    /// Plugs a tap device into a slot of [`VmConfig::nics`]; its link comes up. Descriptors: [`Name::Tap`] for each of
    /// [`VmConfig::queue_pairs`], the queues of one tap that was made with `IFF_TAP`, `IFF_NO_PI`, `IFF_VNET_HDR` and, if
    /// there are several, `IFF_MULTI_QUEUE`. The answer is an [`Event::Nic`] that says `Plugged` or `Refused`.
    PlugNic { slot: u8, nic: Nic },
    /// Takes the link of a slot down. The answer is an [`Event::Nic`]: `Unplugged` once the tap is closed, or `Refused`.
    UnplugNic { slot: u8 },
    /// Takes the vCPUs out of the guest until [`Request::Resume`]. The answer is [`Event::Paused`] when all of them are out, or
    /// [`Event::PauseRefused`]: the VM is paused already, or a vCPU could not leave within 5 s, and the VM runs on then.
    /// Devices and the guest's clocks go on, so a stream to the guest takes what its buffers hold, and a
    /// [`Request::Connect`] to a paused guest waits 20 s for it before the stream is closed.
    Pause,
    /// Lets the vCPUs of a paused VM go on. The answer is [`Event::Resumed`], or [`Event::ResumeRefused`]: the VM is not
    /// paused, or not yet.
    Resume,
    /// Ends the VM at once, as if its power were cut; also one that is paused.
    Stop,
}

/// What the VMM tells the shim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Event {
    /// The vCPUs run.
    Running,
    /// The guest connected to one of [`Vsock::accept`], for the first and last time; [`Name::Stream`] rides along.
    Incoming { port: u32 },
    /// What has become of a [`Request::AttachDisk`].
    Disk { index: u8, state: DiskState },
    /// What has become of the network interface in a slot.
    Nic { slot: u8, state: NicState },
    /// No vCPU is in the guest, and none enters it before [`Request::Resume`].
    Paused,
    /// A [`Request::Pause`] was not done; one line that says why. The VM is what it was before.
    PauseRefused(String),
    /// The vCPUs of the VM that was paused go on.
    Resumed,
    /// A [`Request::Resume`] was not done; one line that says why. The VM is what it was before.
    ResumeRefused(String),
    /// The VM is gone. Sent before the kernel takes it apart, which may take tens of milliseconds; nothing follows, so a
    /// request that is not answered by now never is.
    Stopped(Stopped),
}

/// A virtual machine, as the shim or the command line describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// vCPUs, at least 1.
    pub vcpus: u8,
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// Kernel command line; the VMM adds the virtio-mmio devices.
    pub cmdline: String,
    /// virtio-blk disks, in the order of `/dev/vda`, `/dev/vdb`, ….
    pub disks: Vec<Disk>,
    /// The directory tree served to the guest by virtio-fs.
    pub shared: Option<Shared>,
    pub vsock: Option<Vsock>,
    /// Slots for network interfaces. The guest finds each as a device, in order, with its link down until
    /// [`Request::PlugNic`]. Linux calls the first `eth0` and so on.
    pub nics: u8,
}

/// The most pairs of queues of a network interface.
pub const MAX_QUEUE_PAIRS: u8 = 4;

impl VmConfig {
    /// Pairs of queues of each network interface: one for each vCPU, up to [`MAX_QUEUE_PAIRS`].
    #[must_use]
    pub fn queue_pairs(&self) -> u8 {
        self.vcpus.clamp(1, MAX_QUEUE_PAIRS)
    }
}

/// A network interface of the guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nic {
    /// Its address. Linux reads the device's only when it finds it, so whoever plugs in a slot has the guest set it, and the
    /// MTU, by itself.
    pub mac: [u8; 6],
    /// The tap's MTU, 68 to 65,535. Guest buffers are measured by it.
    pub mtu: u16,
}

/// What has become of a network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum NicState {
    /// Its link is up.
    Plugged,
    /// Its link is down and the VMM has closed the tap: by [`Request::UnplugNic`], or, unasked, because the tap device was
    /// deleted.
    Unplugged,
    /// The request was not done; one line that says why.
    Refused(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    pub read_only: bool,
    /// The guest finds it with a capacity of 0, and its reads and writes fail, until [`Request::AttachDisk`].
    pub empty: bool,
}

/// What has become of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum DiskState {
    /// It has its file.
    Attached,
    /// The request was not done; one line that says why. The disk is what it was before.
    Refused(String),
}

/// A virtio-fs export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shared {
    /// The tag the guest mounts it by; at most 36 bytes (VIRTIO 1.2, 5.11.4).
    pub tag: String,
    /// The tree in the mount namespace the VMM is started in. Inside its jail it is a slave of that mount: what the shim
    /// mounts below it later shows up.
    pub path: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vsock {
    /// The guest's context id, 3 or more.
    pub cid: u32,
    /// The host ports the guest may connect to, each once; every other is answered with a reset.
    pub accept: Vec<u32>,
}

/// How a VM ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stopped {
    pub cause: Cause,
    /// The last lines of the guest's console, oldest first.
    pub console: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Cause {
    /// The guest reset or powered off the machine; a kernel panic ends so too (`panic=-1`).
    Reset,
    /// [`Request::Stop`], or the shim's end of the channel was closed.
    Requested,
    /// The VM could not be built or could not go on; one line that says why and what to do.
    Error(String),
}
