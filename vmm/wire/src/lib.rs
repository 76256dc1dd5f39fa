//! The control channel between the shim and `lazaret-vmm`.
//!
//! ```text
//!   shim ── Request + descriptors ──►  lazaret-vmm
//!        ◄── Event  + descriptors ──
//! ```
//!
//! One inherited `SOCK_SEQPACKET` pair; a packet is one JSON message, its descriptors ride along as `SCM_RIGHTS`.
//! There is no path in the file system for a stranger to connect to. The VMM parses what a hostile guest writes, so
//! the shim trusts an [`Event`] no further than its type: packets and descriptors per packet are bounded.

mod channel;

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

pub use channel::{Channel, ChannelError, MAX_DESCRIPTORS, MAX_PACKET};

/// What the shim asks of the VMM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Builds and runs the VM; sent once, first. Descriptors, in this order: `/dev/kvm`, the kernel image, the file the
    /// guest's console is logged to, then one for each of [`VmConfig::disks`].
    Boot(VmConfig),
    /// Connects the stream socket that rides along to the guest's vsock `port`. There is no answer: a guest that
    /// refuses shows as end of file on that socket.
    Connect { port: u32 },
    /// Ends the VM at once, as if its power were cut.
    Stop,
}

/// What the VMM tells the shim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Event {
    /// The vCPUs run.
    Running,
    /// The guest connected to one of [`Vsock::accept`], for the first and last time; the stream socket rides along.
    Incoming { port: u32 },
    /// The VM is gone. Sent before the kernel takes it apart, which may take tens of milliseconds; nothing follows.
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
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    pub read_only: bool,
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
