//! The tree as it is served: mounts below its root, and a jail around it.

use super::FsDevice;
use super::guest::{Guest, c, is_root};
use crate::jail;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::mpsc::channel;
use virtiofsd::fuse::{
    ATTR_SUBMOUNT, CreateIn, LinkIn, MkdirIn, MknodIn, Opcode, ROOT_ID, RenameIn, SetattrIn, SetxattrIn,
    WriteIn,
};
use vm_memory::ByteValued;

const NONE: Option<&str> = None;

/// Runs `test` on a thread with mounts of its own, which end with it.
fn with_mounts(test: impl FnOnce(&Path) + Send) {
    if !is_root("to mount") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            own_mounts(MsFlags::MS_PRIVATE);
            test(dir.path());
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

fn own_mounts(propagation: MsFlags) {
    unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
    mount(NONE, "/", NONE, propagation | MsFlags::MS_REC, NONE).unwrap();
}

fn tmpfs(place: &Path) {
    fs::create_dir_all(place).unwrap();
    mount(Some("test"), place, Some("tmpfs"), MsFlags::empty(), Some("size=16m")).unwrap();
}

fn bind(from: &Path, to: &Path, extra: MsFlags) {
    mount(Some(from), to, NONE, MsFlags::MS_BIND, NONE).unwrap();
    if !extra.is_empty() {
        mount(NONE, to, NONE, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | extra, NONE).unwrap();
    }
}

#[test]
fn a_mount_made_later_appears_and_is_announced() {
    with_mounts(|dir| {
        // The supervisor's side: a shared tree. The VMM's side is a slave of it.
        tmpfs(dir);
        mount(NONE, dir, NONE, MsFlags::MS_SHARED, NONE).unwrap();
        fs::create_dir(dir.join("rootfs")).unwrap();
        let (asked, ask) = channel();
        let (answer, answered) = channel();
        std::thread::scope(|scope| {
            let vmm = scope.spawn(move || {
                own_mounts(MsFlags::MS_SLAVE);
                let mut guest = Guest::new(dir);
                let before = guest.lookup(ROOT_ID, "rootfs").unwrap();
                assert_eq!(before.attr.flags & ATTR_SUBMOUNT, 0);
                asked.send(()).unwrap();
                answered.recv().unwrap();

                let rootfs = guest.lookup(ROOT_ID, "rootfs").unwrap();
                assert_ne!(rootfs.nodeid, before.nodeid);
                assert_eq!(rootfs.attr.flags & ATTR_SUBMOUNT, ATTR_SUBMOUNT);
                let (file, fh) = guest.create(rootfs.nodeid, "hostname", 0o644).unwrap();
                assert_eq!(file.attr.flags & ATTR_SUBMOUNT, 0);
                guest.write(file.nodeid, fh, 0, b"quarantine").unwrap();
            });
            ask.recv().unwrap();
            tmpfs(&dir.join("rootfs"));
            answer.send(()).unwrap();
            vmm.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        });
        assert_eq!(fs::read(dir.join("rootfs/hostname")).unwrap(), b"quarantine");
    });
}

#[test]
fn a_read_only_mount_is_read_only_to_the_guest() {
    with_mounts(|dir| {
        for name in ["data", "root/rw", "root/ro"] {
            fs::create_dir_all(dir.join(name)).unwrap();
        }
        fs::write(dir.join("data/f"), b"unchanged").unwrap();
        bind(&dir.join("data"), &dir.join("root/rw"), MsFlags::empty());
        bind(&dir.join("data"), &dir.join("root/ro"), MsFlags::MS_RDONLY);
        let mut guest = Guest::new(&dir.join("root"));
        let rw = guest.lookup(ROOT_ID, "rw").unwrap().nodeid;
        let ro = guest.lookup(ROOT_ID, "ro").unwrap().nodeid;

        // The same file by both ways is two nodes: what was opened by one way is not writable by the other.
        let by_rw = guest.lookup(rw, "f").unwrap().nodeid;
        let by_ro = guest.lookup(ro, "f").unwrap().nodeid;
        assert_ne!(by_rw, by_ro);
        assert_eq!(guest.open(by_ro, libc::O_RDWR).unwrap_err(), libc::EROFS);
        assert_eq!(guest.open(by_ro, libc::O_RDONLY | libc::O_TRUNC).unwrap_err(), libc::EROFS);
        assert_eq!(guest.create(ro, "g", 0o600).unwrap_err(), libc::EROFS);
        assert_eq!(guest.ask(Opcode::Unlink, ro, &c("f")).unwrap_err(), libc::EROFS);
        let truncate = [&[8u32, 0].map(u32::to_le_bytes).concat()[..], &[0; 80]].concat();
        assert_eq!(guest.ask(Opcode::Setattr, by_ro, &truncate).unwrap_err(), libc::EROFS);
        let fh = guest.open(by_ro, libc::O_RDONLY).unwrap();
        assert_eq!(guest.read(by_ro, fh, 0, 20).unwrap(), b"unchanged");
        let write = WriteIn { fh, size: 1, ..WriteIn::default() };
        let refused = guest.ask(Opcode::Write, by_ro, &[write.as_slice(), b"x"].concat());
        assert_eq!(refused.unwrap_err(), libc::EBADF);

        guest.open(by_rw, libc::O_RDWR).unwrap();
    });
}

#[test]
fn nothing_moves_from_one_mount_to_another() {
    with_mounts(|dir| {
        for name in ["data/inner", "root/a", "root/b"] {
            fs::create_dir_all(dir.join(name)).unwrap();
        }
        fs::write(dir.join("data/f"), b"").unwrap();
        // One file system in two places: only the mounts are between them.
        bind(&dir.join("data"), &dir.join("root/a"), MsFlags::empty());
        bind(&dir.join("data/inner"), &dir.join("root/b"), MsFlags::empty());
        let mut guest = Guest::new(&dir.join("root"));
        let a = guest.lookup(ROOT_ID, "a").unwrap().nodeid;
        let b = guest.lookup(ROOT_ID, "b").unwrap().nodeid;
        let file = guest.lookup(a, "f").unwrap().nodeid;

        let link = guest.ask(Opcode::Link, b, &[LinkIn { oldnodeid: file }.as_slice(), &c("f")].concat());
        assert_eq!(link.unwrap_err(), libc::EXDEV);
        let rename = [RenameIn { newdir: b }.as_slice(), &c("f"), &c("f")].concat();
        assert_eq!(guest.ask(Opcode::Rename, a, &rename).unwrap_err(), libc::EXDEV);
    });
}

#[test]
fn a_single_file_shows_nothing_beside_it() {
    with_mounts(|dir| {
        fs::create_dir_all(dir.join("etc")).unwrap();
        fs::create_dir_all(dir.join("root")).unwrap();
        fs::write(dir.join("etc/resolv.conf"), b"nameserver 127.0.0.11").unwrap();
        fs::write(dir.join("etc/shadow"), b"secret").unwrap();
        fs::write(dir.join("root/0"), b"").unwrap();
        bind(&dir.join("etc/resolv.conf"), &dir.join("root/0"), MsFlags::empty());
        let mut guest = Guest::new(&dir.join("root"));

        let file = guest.lookup(ROOT_ID, "0").unwrap().nodeid;

        let fh = guest.open(file, libc::O_RDONLY).unwrap();
        assert_eq!(guest.read(file, fh, 0, 10).unwrap(), b"nameserver");
        assert_eq!(guest.lookup(file, "shadow").unwrap_err(), libc::ENOTDIR);
        assert_eq!(guest.lookup(file, "..").unwrap_err(), libc::EINVAL);
    });
}

/// Runs `test` in the jail, around a tree that holds `file` and `rootfs/`. What it hands to its second argument is done
/// outside, where the shim is, in the tree.
fn with_jail(test: impl FnOnce(&mut Guest, &dyn Fn(fn(&Path))) + Send) {
    with_mounts(|dir| {
        tmpfs(dir);
        mount(NONE, dir, NONE, MsFlags::MS_SHARED, NONE).unwrap();
        fs::write(dir.join("file"), b"unchanged").unwrap();
        fs::create_dir(dir.join("rootfs")).unwrap();
        let (ask, asked) = channel::<fn(&Path)>();
        let (answer, answered) = channel();
        std::thread::scope(|scope| {
            let vmm = scope.spawn(move || {
                let own_descriptors = jail::enter(Some(dir)).unwrap().unwrap();
                let device = FsDevice::new("test", jail::SHARED, own_descriptors, 128).unwrap();
                let mut guest = Guest::silent(device);
                guest.init().unwrap();
                test(&mut guest, &|errand| {
                    ask.send(errand).unwrap();
                    answered.recv().unwrap();
                });
            });
            for errand in asked {
                errand(dir);
                answer.send(()).unwrap();
            }
            vmm.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        });
    });
}

/// Asks for changes of all kinds in the directory `node`, which holds `file`.
fn changes(guest: &mut Guest, node: u64) -> Vec<(Opcode, Result<Vec<u8>, i32>)> {
    let file = guest.lookup(node, "file").unwrap().nodeid;
    let mode = SetattrIn { valid: 1, mode: 0o700, ..SetattrIn::default() };
    let size = SetattrIn { valid: 1 << 3, size: 0, ..SetattrIn::default() };
    let fifo = MknodIn { mode: libc::S_IFIFO | 0o600, ..MknodIn::default() };
    let mkdir = MkdirIn { mode: 0o700, umask: 0 };
    let create =
        CreateIn { flags: libc::O_RDWR.cast_unsigned(), mode: libc::S_IFREG | 0o600, ..CreateIn::default() };
    let xattr = SetxattrIn { size: 1, ..SetxattrIn::default() };
    let asked = [
        (Opcode::Create, node, [create.as_slice(), &c("created")].concat()),
        (Opcode::Mkdir, node, [mkdir.as_slice(), &c("dir")].concat()),
        (Opcode::Symlink, node, [c("link"), c("/etc/passwd")].concat()),
        (Opcode::Mknod, node, [fifo.as_slice(), &c("fifo")].concat()),
        (Opcode::Link, node, [LinkIn { oldnodeid: file }.as_slice(), &c("second")].concat()),
        (Opcode::Setattr, node, mode.as_slice().to_vec()),
        (Opcode::Setattr, file, mode.as_slice().to_vec()),
        (Opcode::Setattr, file, size.as_slice().to_vec()),
        (Opcode::Setxattr, node, [xattr.as_slice(), &c("user.berth"), b"4"].concat()),
        (Opcode::Open, file, [libc::O_RDWR, 0].map(i32::to_le_bytes).concat()),
        (Opcode::Rename, node, [RenameIn { newdir: node }.as_slice(), &c("file"), &c("moved")].concat()),
        (Opcode::Unlink, node, c("moved")),
        (Opcode::Rmdir, node, c("dir")),
    ];
    asked.into_iter().map(|(opcode, node, body)| (opcode, guest.ask(opcode, node, &body))).collect()
}

#[test]
fn in_the_jail_the_top_is_read_only_and_what_is_mounted_below_is_not() {
    with_jail(|guest, shim| {
        for (opcode, result) in changes(guest, ROOT_ID) {
            assert_eq!(result.unwrap_err(), libc::EROFS, "{opcode:?}");
        }
        let rootfs = guest.lookup(ROOT_ID, "rootfs").unwrap().nodeid;
        assert_eq!(guest.create(rootfs, "f", 0o600).unwrap_err(), libc::EROFS);

        // Mounts come in, flags do not: the shim's own top stays writable, and may be remounted.
        shim(|tree| {
            mount(NONE, tree, NONE, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, NONE)
                .unwrap();
            mount(NONE, tree, NONE, MsFlags::MS_BIND | MsFlags::MS_REMOUNT, NONE).unwrap();
            fs::write(tree.join("of the shim"), b"").unwrap();
            tmpfs(&tree.join("rootfs"));
            fs::write(tree.join("rootfs/file"), b"").unwrap();
        });
        for (opcode, result) in changes(guest, ROOT_ID) {
            assert_eq!(result.unwrap_err(), libc::EROFS, "{opcode:?}");
        }
        guest.lookup(ROOT_ID, "of the shim").unwrap();
        let rootfs = guest.lookup(ROOT_ID, "rootfs").unwrap().nodeid;
        for (opcode, result) in changes(guest, rootfs) {
            assert!(result.is_ok(), "{opcode:?}: {result:?}");
        }

        shim(|tree| {
            assert_eq!(fs::read(tree.join("file")).unwrap(), b"unchanged");
            assert!(tree.join("rootfs/created").exists());
            umount2(&tree.join("rootfs"), MntFlags::MNT_DETACH).unwrap();
        });
        let rootfs = guest.lookup(ROOT_ID, "rootfs").unwrap().nodeid;
        assert_eq!(guest.create(rootfs, "f", 0o600).unwrap_err(), libc::EROFS);
    });
}

/// The jail: a root that holds the tree and nothing else, no `/proc`.
#[test]
fn it_serves_from_a_jail_without_proc() {
    with_jail(|guest, shim| {
        assert!(!Path::new("/proc").exists());
        shim(|tree| {
            tmpfs(&tree.join("rootfs"));
            fs::set_permissions(tree.join("rootfs"), fs::Permissions::from_mode(0o777)).unwrap();
        });
        let rootfs = guest.lookup(ROOT_ID, "rootfs").unwrap().nodeid;
        guest.user = (1000, 1000);
        let (file, fh) = guest.create(rootfs, "f", 0o755).unwrap();
        assert_eq!(fs::metadata("/shared/rootfs/f").unwrap().uid(), 1000);
        let again = guest.open(file.nodeid, libc::O_RDWR).unwrap();
        guest.write(file.nodeid, again, 0, b"x").unwrap();

        // Capabilities are dropped for one write; libcap-ng does without /proc as well.
        fs::set_permissions("/shared/rootfs/f", fs::Permissions::from_mode(0o4755)).unwrap();
        let write = WriteIn { fh, size: 1, write_flags: 1 << 2, ..WriteIn::default() };
        guest.ask(Opcode::Write, file.nodeid, &[write.as_slice(), b"y"].concat()).unwrap();
        assert_eq!(fs::metadata("/shared/rootfs/f").unwrap().mode() & 0o7777, 0o755);

        // Extended attributes of a fifo are reached by way of /proc/self/fd.
        let node = MknodIn { mode: libc::S_IFIFO | 0o644, ..MknodIn::default() };
        guest.ask(Opcode::Mknod, rootfs, &[node.as_slice(), &c("fifo")].concat()).unwrap();
        let fifo = guest.lookup(rootfs, "fifo").unwrap().nodeid;
        let list = guest.ask(Opcode::Listxattr, fifo, &1024u64.to_le_bytes());
        assert!(list.is_ok(), "{list:?}");
        for name in ["..", "/", "../proc"] {
            assert_eq!(guest.lookup(ROOT_ID, name).unwrap_err(), libc::EINVAL);
        }
    });
}
