//! virtio-fs (VIRTIO 1.2, 5.11): one directory tree of the host, served to the guest in this process.
//!
//! ```text
//!   hiprio, requests ──► device's thread ── Request: copied, vetted ──► Tree: virtiofsd's server on
//!        used ring ◄──── device's thread                                 ▲     O_PATH descriptors, as the caller's user
//!                          Job │ ▲ Done                                  │
//!                              ▼ │                                       │
//!                             Pool: threads ── Request: copied, vetted ──┘
//! ```
//!
//! A request that comes alone is served where it arrives: a process in the guest that works on many small files waits for
//! each answer before it asks again, and every thread in between would be time it waits. Requests that come together, and
//! those that wait for the disk, go to the pool, so that they do so at the same time.
//!
//! There is one device and one tree; what a guest is to see besides is mounted below its root, at any time, and appears in
//! the guest as a mount of its own. A read-only directory is a read-only mount. The guest's kernel is Linux 5.13 or newer.
//!
//! # For the VMM's core: before and after the jail
//! [`raise_open_files`] is called **before** the jail closes: it takes a capability that is given up there.
//!
//! [`FsDevice::new`] is called **after** it: `root` is a path in the jail. The server turns the descriptors it holds into
//! open files by way of the directory `/proc/self/fd`, of the process that serves, not of one that forks it. The jail,
//! which has no `/proc`, hands that over as a mount of its own; without a jail it is [`own_descriptors`].
//!
//! The tree is opened by [`VirtioDevice::activate`], and the pool's threads are started there, so they have the jail's
//! root, capabilities and signal mask. The device needs an event loop of its own (`Placement::Own`): the loop's thread
//! waits for disks, and gets a working directory and a umask of its own (`unshare(CLONE_FS)`).
//!
//! For files to get the owners the guest asks for, the VMM stays user 0 with CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER,
//! CAP_FSETID, CAP_MKNOD, CAP_SETFCAP, CAP_SETGID and CAP_SETUID, without `SECBIT_NO_SETUID_FIXUP`. It needs no
//! CAP_SYS_ADMIN and no CAP_DAC_READ_SEARCH.
//!
//! # What the guest cannot do
//! Leave the tree: names of several components and `..` are refused before the server sees them, symbolic links are never
//! followed on the host, file handles are not used, and links or renames from one mount to another fail with `EXDEV`.
//! Change a request after it was checked: it is copied first. Use more than its share: requests under way are limited by
//! the queues' sizes, files that it has looked up or open by its memory ([`max_files`]), memory by the largest request.
//!
//! **At the limit of files** a request for one more is answered with `ENFILE`, one that would make a file before it has made
//! it, and all others are served. Nothing waits. There is room again as soon as the guest forgets or closes a file; a Linux
//! guest forgets by itself when it wants memory back, or when its user drops its caches.

mod memory;
mod pool;
mod programs;
mod request;
mod tree;

use super::{Chain, DeviceError, Queues, VirtioDevice, Watch};
use lazaret_vmm_wire::max_files;
use memory::Window;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use pool::{Job, Pool};
use request::is_long;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tree::Tree;
use virtio_bindings::virtio_ids::VIRTIO_ID_FS;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// The longest tag, bytes (VIRTIO 1.2, 5.11.4).
const TAG_MAX: usize = 36;
const HIPRIO: usize = 0;
const REQUESTS: usize = 1;
/// The request queue holds the 256 pages of a 1 MiB transfer and its headers.
const QUEUE_SIZES: [u16; 2] = [128, 1024];
/// Descriptors that are not the guest's files: 1,024 of vsock connections, up to 254 of vCPUs, some 30 of each network
/// interface's slot, and those that a request has open for its duration (three on each of the five threads).
const RESERVED_FILES: u64 = 2048;
const COMPLETION: u32 = 0;
/// A request that takes longer is slow: it waited for the disk, and the requests after it may wait too.
const SLOW_REQUEST: Duration = Duration::from_millis(1);
/// How many requests go to the pool after a slow one, before a request that comes alone is served on the device's thread
/// again.
const POOLED_AFTER_SLOW_REQUEST: u32 = 32;

/// Why the device cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    #[error("the tag {0:?} of a shared directory must have 1 to {TAG_MAX} bytes and no NUL")]
    Tag(String),
    #[error("cannot open /proc/self/fd, which serving files needs: {0}")]
    Proc(io::Error),
    #[error("cannot read or raise the limit of open files: {0}")]
    Limit(io::Error),
    #[error("cannot make an event descriptor: {0}")]
    Event(io::Error),
}

/// The device.
pub struct FsDevice {
    /// `struct virtio_fs_config`: the tag, padded with NULs, and the number of request queues.
    config: [u8; TAG_MAX + 4],
    root: PathBuf,
    proc_self_fd: File,
    /// Files the guest may hold, each of which is a descriptor of this process.
    descriptors: u64,
    completion: EventFd,
    session: Option<Session>,
    /// Chains the pool has, of each queue.
    under_way: [u16; 2],
    /// How many more requests go to the pool although they come alone.
    requests_to_pool: u32,
}

/// What there is of an active device.
struct Session {
    tree: Arc<Tree>,
    /// The device's thread's own.
    window: Option<Window>,
    pool: Pool,
}

impl FsDevice {
    /// A device that will serve the directory `root` under the name `tag`, of whose files the guest may hold as many as
    /// `memory_mib` of guest memory allow; `proc_self_fd` is the directory of this process's own descriptors.
    ///
    /// # Errors
    /// See [`FsError`].
    pub fn new(
        tag: &str,
        root: impl Into<PathBuf>,
        proc_self_fd: File,
        memory_mib: u32,
    ) -> Result<Self, FsError> {
        let files = raise_open_files(memory_mib)?;
        Self::with_descriptors(tag, root.into(), proc_self_fd, files)
    }

    fn with_descriptors(
        tag: &str,
        root: PathBuf,
        proc_self_fd: File,
        descriptors: u64,
    ) -> Result<Self, FsError> {
        if tag.is_empty() || tag.len() > TAG_MAX || tag.contains('\0') {
            return Err(FsError::Tag(tag.into()));
        }
        let mut config = [0; TAG_MAX + 4];
        let (name, request_queues) = config.split_at_mut(TAG_MAX);
        name.iter_mut().zip(tag.bytes()).for_each(|(place, byte)| *place = byte);
        request_queues.copy_from_slice(&1u32.to_le_bytes());
        let completion = EventFd::new(EFD_NONBLOCK).map_err(FsError::Event)?;
        let under_way = [0; 2];
        Ok(Self {
            config,
            root,
            proc_self_fd,
            descriptors,
            completion,
            session: None,
            under_way,
            requests_to_pool: 0,
        })
    }

    /// Takes what queue `index` offers, until there is nothing left or as much under way as the queue is long: more cannot
    /// be by the rules of the ring, so a driver that offers chains twice waits for itself.
    fn take(&mut self, index: usize, queues: &mut Queues) -> Result<(), DeviceError> {
        loop {
            let size = QUEUE_SIZES.get(index).copied().unwrap_or_default();
            let under_way = self.under_way.get(index).copied().unwrap_or_default();
            let mut chains = Vec::new();
            for _ in under_way..size {
                let Some(chain) = queues.pop(index)? else { break };
                chains.push(chain);
            }
            if chains.is_empty() {
                return Ok(());
            }
            let alone = chains.len() == 1 && self.under_way == [0; 2];
            for chain in chains {
                // FORGETs are many, short, and not to be held up.
                let here = index == HIPRIO
                    || alone && self.requests_to_pool == 0 && !is_long(&chain, queues.memory());
                if here { self.serve(index, chain, queues)? } else { self.submit(index, chain, queues)? }
            }
        }
    }

    /// Serves a request on this thread.
    fn serve(&mut self, index: usize, chain: Chain, queues: &mut Queues) -> Result<(), DeviceError> {
        let Some(session) = &mut self.session else { return Ok(()) };
        let (head, start) = (chain.head_index(), Instant::now());
        let written = session.tree.serve(&chain, queues.memory(), &mut session.window)?;
        if start.elapsed() > SLOW_REQUEST {
            self.requests_to_pool = POOLED_AFTER_SLOW_REQUEST;
        }
        queues.push(index, head, written)
    }

    /// Has a request served by the pool.
    fn submit(&mut self, index: usize, chain: Chain, queues: &mut Queues) -> Result<(), DeviceError> {
        let Some(session) = &mut self.session else { return Ok(()) };
        self.requests_to_pool = self.requests_to_pool.saturating_sub(1);
        let job = Job { queue: index, chain, guest: Arc::clone(queues.memory()) };
        match session.pool.submit(job) {
            Ok(()) => self.under_way.get_mut(index).map(|under_way| *under_way += 1),
            Err(job) => return self.serve(index, job.chain, queues),
        };
        Ok(())
    }

    /// Puts what the pool has done into the used rings.
    fn complete(&mut self, queues: &mut Queues) -> Result<(), DeviceError> {
        let Some(session) = &self.session else { return Ok(()) };
        for done in session.pool.take_done()? {
            queues.push(done.queue, done.head, done.written)?;
            if let Some(under_way) = self.under_way.get_mut(done.queue) {
                *under_way -= 1;
            }
        }
        Ok(())
    }
}

impl VirtioDevice for FsDevice {
    fn id(&self) -> u32 {
        VIRTIO_ID_FS
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn activate(&mut self, _features: u64) -> Result<Vec<Watch>, DeviceError> {
        let open = || {
            let tree = Tree::open(&self.root, self.proc_self_fd.try_clone()?, self.descriptors)?;
            tree.enter().map(|()| tree)
        };
        let tree = open().map_err(|error| {
            let what = format!("cannot serve the directory {}: {error}", self.root.display());
            io::Error::new(error.kind(), what)
        })?;
        let tree = Arc::new(tree);
        let pool = Pool::new(Arc::clone(&tree), self.completion.try_clone()?);
        self.session = Some(Session { tree, window: None, pool });
        Ok(vec![Watch::Set { fd: self.completion.as_raw_fd(), token: COMPLETION, events: EventSet::IN }])
    }

    fn notified(&mut self, index: usize, queues: &mut Queues) -> Result<(), DeviceError> {
        self.take(index, queues)
    }

    fn ready(
        &mut self,
        _token: u32,
        _events: EventSet,
        queues: &mut Queues,
    ) -> Result<Vec<Watch>, DeviceError> {
        match self.completion.read() {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        }
        self.complete(queues)?;
        // A queue that was full has room now.
        self.take(HIPRIO, queues)?;
        self.take(REQUESTS, queues)?;
        Ok(Vec::new())
    }

    /// Waits for requests under way, then forgets the session.
    fn reset(&mut self) {
        self.session = None;
        self.under_way = [0; 2];
        self.requests_to_pool = 0;
        // What those requests signalled is of no interest any more.
        let _ = self.completion.read();
    }
}

/// The directory of this process's own descriptors, for one that is in no jail: all of `/proc` is reached from it.
///
/// # Errors
/// [`FsError::Proc`].
pub fn own_descriptors() -> Result<File, FsError> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
        .open("/proc/self/fd")
        .map_err(FsError::Proc)
}

/// Raises this process's limit of open files to what a guest of `memory_mib` may hold and what the VMM needs besides; returns
/// how many the guest may hold: fewer where the host does not allow so many.
///
/// # Errors
/// [`FsError::Limit`].
pub fn raise_open_files(memory_mib: u32) -> Result<u64, FsError> {
    let files = max_files(memory_mib.into());
    let wanted = files + RESERVED_FILES;
    let raise = || -> nix::Result<u64> {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        if soft >= wanted || setrlimit(Resource::RLIMIT_NOFILE, wanted, hard.max(wanted)).is_ok() {
            return Ok(files);
        }
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        Ok(files.min(hard - RESERVED_FILES.min(hard / 2)))
    };
    raise().map_err(|errno| FsError::Limit(errno.into()))
}

#[cfg(test)]
#[path = "fs/guest_test.rs"]
mod guest;
#[cfg(test)]
#[path = "fs/hostile_test.rs"]
mod hostile;
#[cfg(test)]
#[path = "fs/mounts_test.rs"]
mod mounts;
#[cfg(test)]
#[path = "fs/noise_test.rs"]
mod noise;
#[cfg(test)]
#[path = "fs/owners_test.rs"]
mod owners;
#[cfg(test)]
#[path = "fs_test.rs"]
mod tests;
