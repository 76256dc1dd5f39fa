//! The shared tree: virtiofsd's file server, set up for a tree whose owner is the host and whose user is hostile.

use super::memory::Window;
use super::programs::Programs;
use super::request::{Request, attributes, getattr};
use crate::sync;
use crate::virtio::Chain;
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, umask};
use nix::unistd::fchdir;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use virtiofsd::passthrough::xattrmap::XattrMap;
use virtiofsd::passthrough::{CachePolicy, Config, InodeFileHandlesMode, NegotiationMode, PassthroughFs};
use virtiofsd::server::Server;
use vm_memory::GuestMemoryMmap;

/// How long the guest may believe a name or an attribute without asking again.
///
/// The host changes the tree as well (`docker cp`, a Kubernetes config map, a shared volume), and nothing tells the
/// guest: this is how late it may notice. One second is short for a person and long for a build, whose thousands of
/// lookups of one path then cost one request each second.
const ATTRIBUTE_TIMEOUT: Duration = Duration::from_secs(1);

/// Extended attributes in `trusted.` are the host's: overlayfs takes its instructions from them.
const XATTRS: &str = ":unsupported:all:trusted.:trusted.: :ok:all:::";

/// How many files must still be allowed for a request that makes one. It takes two, its inode and its handle, as do those that
/// are served beside it.
const FREE_FILES: u64 = 16;

/// A served directory tree.
pub(super) struct Tree {
    root: File,
    /// The directory of this process's descriptors.
    own_descriptors: File,
    /// The most descriptors that may be open for the guest.
    descriptors: u64,
    /// Requests share the server; INIT and DESTROY, which empty its tables, have it to themselves.
    server: RwLock<Server<PassthroughFs>>,
    programs: Programs,
}

impl Tree {
    /// Opens the directory `root` for serving with at most `descriptors` open at once for the guest.
    ///
    /// # Errors
    /// When it is not a directory that can be opened.
    pub(super) fn open(root: &Path, proc_self_fd: File, descriptors: u64) -> io::Result<Self> {
        let root = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW)
            .open(root)?;
        let own_descriptors = proc_self_fd.try_clone()?;
        let config = Config {
            entry_timeout: ATTRIBUTE_TIMEOUT,
            attr_timeout: ATTRIBUTE_TIMEOUT,
            // Close-to-open: what was read of a file is dropped when it is opened again, but for programs that have not changed.
            cache_policy: CachePolicy::Auto,
            // Would let the guest's idea of size and times win over the host's.
            writeback: false,
            // Opened relative to the worker's working directory, which `enter` makes the root.
            root_dir: ".".into(),
            xattr: true,
            xattrmap: Some(XattrMap::try_from(XATTRS).map_err(io::Error::other)?),
            proc_sfd_rawfd: Some(proc_self_fd),
            // Rootfs and volumes are mounts of their own, with inode numbers of their own.
            announce_submounts: true,
            // A handle is opened past all mounts, needs CAP_DAC_READ_SEARCH, and that is a way out of the jail. So every
            // inode the guest knows costs a descriptor; `descriptors` limits them.
            inode_file_handles: InodeFileHandlesMode::Never,
            readdirplus: true,
            // O_DIRECT in the guest passes by the guest's cache; on the host it would only add alignment errors.
            allow_direct_io: false,
            // The host clears setuid bits and capabilities on a write, in the same request.
            killpriv_v2: true,
            // The guest checks access control lists, the host keeps and inherits them.
            posix_acl: NegotiationMode::Always,
            guest_fd_limit: descriptors,
            ..Config::default()
        };
        // The server clears the umask and remembers the working directory of the thread that makes it: one that ends.
        let server = std::thread::scope(|scope| {
            let maker = scope.spawn(|| {
                enter(&root)?;
                PassthroughFs::new(config)
            });
            maker.join().map_err(|_| io::Error::other("the file server's set-up panicked"))?
        })?;
        let server = RwLock::new(Server::new(server));
        Ok(Self { root, own_descriptors, descriptors, server, programs: Programs::default() })
    }

    /// Makes the calling thread one that may serve the tree.
    ///
    /// # Errors
    /// When `unshare` is not allowed.
    pub(super) fn enter(&self) -> io::Result<()> {
        enter(&self.root)
    }

    /// Serves the request in `chain`; returns the bytes written to it.
    ///
    /// # Errors
    /// When there is no memory for the thread's `window`.
    pub(super) fn serve(
        &self,
        chain: &Chain,
        guest: &Arc<GuestMemoryMmap>,
        window: &mut Option<Window>,
    ) -> io::Result<u32> {
        let mut request = match Request::take(chain, guest) {
            Ok(request) => request,
            Err(reason) => {
                log::debug!("virtio-fs: dropped {reason}");
                return Ok(0);
            }
        };
        if let Err(errno) = request.vet() {
            return Ok(request.refuse(errno));
        }
        if request.makes_a_file() && !self.has_room() {
            return Ok(request.refuse(libc::ENFILE));
        }
        let window = match window {
            Some(window) => window,
            None => window.insert(Window::new(guest)?),
        };
        // Asked before it is opened: what changes in between then shows when it is opened again.
        let is_unchanged = request.opened_file().is_some_and(|node| self.is_unchanged_program(node, window));
        let (reader, writer) = match window.exchange(request.message(), request.payload(), request.reply()) {
            Ok(pair) => pair,
            Err(error) => return Ok(request.refuse(error.raw_os_error().unwrap_or(libc::EIO))),
        };
        let served = if request.is_session() {
            let server = sync::write(&self.server);
            server.handle_message(reader, writer, None::<&mut ()>)
        } else {
            let server = sync::read(&self.server);
            server.handle_message(reader, writer, None::<&mut ()>)
        };
        match served {
            Ok(written) => {
                if is_unchanged {
                    request.keep_cache();
                }
                Ok(u32::try_from(written).unwrap_or(u32::MAX))
            }
            Err(error) => {
                log::debug!("virtio-fs: {error}");
                Ok(request.refuse(libc::EINVAL))
            }
        }
    }

    /// Whether the guest may keep what it has of a file that it opens.
    fn is_unchanged_program(&self, node: u64, window: &mut Window) -> bool {
        let Ok((reader, writer)) = window.own_exchange(&getattr(node)) else { return false };
        let served = sync::read(&self.server).handle_message(reader, writer, None::<&mut ()>);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let reply = served.ok().and_then(|_| window.own_reply().ok());
        let attributes = reply.and_then(|reply| attributes(&reply));
        attributes.is_some_and(|attributes| self.programs.is_unchanged(node, &attributes, now))
    }

    /// Whether the guest may hold the files that a request may make. The server counts exactly, but only after it has made the
    /// file: the file would stay on the host, and of a CREATE, whose inode is counted before its handle, the inode would
    /// stay open with nobody to forget it.
    ///
    /// This counts all descriptors of the process (Linux 6.2 and newer; older ones say 0, and the server's count is all there
    /// is), so it refuses a little before the limit.
    fn has_room(&self) -> bool {
        let open = self.own_descriptors.metadata().map_or(0, |directory| directory.len());
        open.saturating_add(FREE_FILES) <= self.descriptors
    }
}

/// Gives the calling thread a working directory and a umask of its own, the root and 0.
///
/// The server changes both for single requests: the directory to reach a file by `/proc/self/fd`, the umask for files
/// with inherited access control lists. It changes the user too, by raw system calls that are the thread's alone anyway.
fn enter(root: &File) -> io::Result<()> {
    unshare(CloneFlags::CLONE_FS)?;
    fchdir(root)?;
    umask(Mode::empty());
    Ok(())
}
