//! Who owns what the guest makes, and what goes with a file: modes, times, attributes, access control lists.
#![allow(clippy::cast_possible_truncation, reason = "sizes a test chose")]

use super::guest::{Guest, c, entry, is_root};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};
use virtiofsd::fuse::{AttrOut, EntryOut, MkdirIn, MknodIn, Opcode, ROOT_ID, SetattrIn, SetxattrIn, WriteIn};
use vm_memory::ByteValued;

const FATTR_MODE: u32 = 1 << 0;
const FATTR_UID: u32 = 1 << 1;
const FATTR_GID: u32 = 1 << 2;
const FATTR_SIZE: u32 = 1 << 3;
const FATTR_MTIME: u32 = 1 << 5;
const WRITE_KILL_PRIV: u32 = 1 << 2;

fn shared() -> (tempfile::TempDir, Guest) {
    let dir = tempfile::tempdir().unwrap();
    let guest = Guest::new(dir.path());
    (dir, guest)
}

fn setxattr(guest: &mut Guest, node: u64, name: &str, value: &[u8]) -> Result<(), i32> {
    let fixed = SetxattrIn { size: value.len() as u32, ..SetxattrIn::default() };
    guest.ask(Opcode::Setxattr, node, &[fixed.as_slice(), &c(name), value].concat()).map(drop)
}

fn getxattr(guest: &mut Guest, node: u64, name: &str) -> Result<Vec<u8>, i32> {
    guest.ask(Opcode::Getxattr, node, &[&1024u64.to_le_bytes()[..], &c(name)].concat())
}

fn setattr(guest: &mut Guest, node: u64, change: SetattrIn) -> Result<AttrOut, i32> {
    let body = guest.ask(Opcode::Setattr, node, change.as_slice())?;
    Ok(*AttrOut::from_slice(&body).unwrap())
}

fn mkdir(guest: &mut Guest, parent: u64, name: &str, mode: u32) -> Result<EntryOut, i32> {
    let fixed = MkdirIn { mode, umask: 0 };
    guest.ask(Opcode::Mkdir, parent, &[fixed.as_slice(), &c(name)].concat()).map(|body| entry(&body))
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn what_is_created_belongs_to_the_caller() {
    if !is_root("to create files of other users") {
        return;
    }
    let (dir, mut guest) = shared();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    guest.user = (1000, 2000);

    guest.create(ROOT_ID, "file", 0o600).unwrap();
    mkdir(&mut guest, ROOT_ID, "dir", 0o755).unwrap();
    let node = MknodIn { mode: libc::S_IFIFO | 0o644, ..MknodIn::default() };
    guest.ask(Opcode::Mknod, ROOT_ID, &[node.as_slice(), &c("fifo")].concat()).unwrap();
    guest.ask(Opcode::Symlink, ROOT_ID, &[c("link"), c("/etc/passwd")].concat()).unwrap();

    for name in ["file", "dir", "fifo", "link"] {
        let found = fs::symlink_metadata(dir.path().join(name)).unwrap();
        assert_eq!((found.uid(), found.gid()), (1000, 2000), "{name}");
    }
    assert!(fs::symlink_metadata(dir.path().join("fifo")).unwrap().file_type().is_fifo());
    // The worker is itself again.
    guest.user = (0, 0);
    guest.create(ROOT_ID, "roots", 0o600).unwrap();
    assert_eq!(fs::metadata(dir.path().join("roots")).unwrap().uid(), 0);
}

#[test]
fn a_setgid_directory_gives_its_group() {
    if !is_root("to create files of other groups") {
        return;
    }
    let (dir, mut guest) = shared();
    chown(dir.path(), None, Some(77)).unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o2777)).unwrap();
    guest.user = (1000, 1000);

    guest.create(ROOT_ID, "file", 0o644).unwrap();
    mkdir(&mut guest, ROOT_ID, "dir", 0o755).unwrap();

    assert_eq!(fs::metadata(dir.path().join("file")).unwrap().gid(), 77);
    assert_eq!(fs::metadata(dir.path().join("dir")).unwrap().gid(), 77);
    assert_eq!(mode(&dir.path().join("dir")), 0o2755);
}

#[test]
fn a_supplementary_group_sent_along_counts() {
    if !is_root("to act as another user") {
        return;
    }
    let (dir, mut guest) = shared();
    chown(dir.path(), None, Some(4242)).unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o770)).unwrap();
    guest.user = (1000, 1000);

    assert_eq!(mkdir(&mut guest, ROOT_ID, "without", 0o755).unwrap_err(), libc::EACCES);
    let fixed = MkdirIn { mode: 0o755, umask: 0 };
    // struct fuse_ext_header { size, FUSE_EXT_GROUPS }, then fuse_supp_groups { count, groups }.
    let groups = [16u32, 32, 1, 4242].map(u32::to_le_bytes).concat();
    guest.ask(Opcode::Mkdir, ROOT_ID, &[fixed.as_slice(), &c("with"), &groups].concat()).unwrap();

    assert_eq!(fs::metadata(dir.path().join("with")).unwrap().uid(), 1000);
    assert_eq!(mkdir(&mut guest, ROOT_ID, "after", 0o755).unwrap_err(), libc::EACCES);
}

#[test]
fn extended_attributes_are_the_hosts_but_for_trusted_ones() {
    let (_dir, mut guest) = shared();
    let (file, _) = guest.create(ROOT_ID, "f", 0o644).unwrap();

    setxattr(&mut guest, file.nodeid, "user.berth", b"quay 4").unwrap();
    assert_eq!(getxattr(&mut guest, file.nodeid, "user.berth").unwrap(), b"quay 4");
    let list = guest.ask(Opcode::Listxattr, file.nodeid, &1024u64.to_le_bytes()).unwrap();
    assert!(list.windows(11).any(|name| name == b"user.berth\0"));
    guest.ask(Opcode::Removexattr, file.nodeid, &c("user.berth")).unwrap();
    assert_eq!(getxattr(&mut guest, file.nodeid, "user.berth").unwrap_err(), libc::ENODATA);

    let opaque = setxattr(&mut guest, file.nodeid, "trusted.overlay.opaque", b"y");
    assert_eq!(opaque.unwrap_err(), libc::ENOTSUP);
}

#[test]
fn a_default_acl_is_inherited_and_the_umask_is_not_applied_to_it() {
    let (dir, mut guest) = shared();
    // ACL_USER_OBJ rwx, ACL_USER 1000 rwx, ACL_GROUP_OBJ rx, ACL_MASK rwx, ACL_OTHER none.
    let entries: [(u16, u16, u32); 5] = [(1, 7, !0), (2, 7, 1000), (4, 5, !0), (16, 7, !0), (32, 0, !0)];
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        acl.extend([tag.to_le_bytes(), permissions.to_le_bytes()].concat());
        acl.extend(id.to_le_bytes());
    }
    match setxattr(&mut guest, ROOT_ID, "system.posix_acl_default", &acl) {
        Err(libc::ENOTSUP) => return eprintln!("skipped: {} has no ACLs", dir.path().display()),
        set => set.unwrap(),
    }

    let fixed = MkdirIn { mode: 0o777, umask: 0o077 };
    let sub = guest.ask(Opcode::Mkdir, ROOT_ID, &[fixed.as_slice(), &c("sub")].concat()).unwrap();

    assert_eq!(getxattr(&mut guest, entry(&sub).nodeid, "system.posix_acl_default").unwrap(), acl);
    assert_eq!(mode(&dir.path().join("sub")), 0o770);
    let umask = MkdirIn { mode: 0o777, umask: 0o027 };
    let (plain, mut guest) = shared();
    guest.ask(Opcode::Mkdir, ROOT_ID, &[umask.as_slice(), &c("sub")].concat()).unwrap();
    assert_eq!(mode(&plain.path().join("sub")), 0o750);
}

#[test]
fn attributes_change_as_asked() {
    let (dir, mut guest) = shared();
    let path = dir.path().join("f");
    fs::write(&path, b"0123456789").unwrap();
    let node = guest.lookup(ROOT_ID, "f").unwrap().nodeid;

    let change = SetattrIn {
        valid: FATTR_MODE | FATTR_SIZE | FATTR_MTIME,
        mode: 0o604,
        size: 4,
        mtime: 1_000_000_000,
        mtimensec: 42,
        ..SetattrIn::default()
    };
    let attr = setattr(&mut guest, node, change).unwrap().attr;

    assert_eq!((attr.mode & 0o7777, attr.size, attr.mtime, attr.mtimensec), (0o604, 4, 1_000_000_000, 42));
    let found = fs::metadata(&path).unwrap();
    assert_eq!(found.modified().unwrap(), UNIX_EPOCH + Duration::new(1_000_000_000, 42));
    assert_eq!((found.len(), mode(&path)), (4, 0o604));
    if is_root("to give files away") {
        let owner =
            SetattrIn { valid: FATTR_UID | FATTR_GID, uid: 5.into(), gid: 6.into(), ..SetattrIn::default() };
        setattr(&mut guest, node, owner).unwrap();
        assert_eq!(fs::metadata(&path).map(|found| (found.uid(), found.gid())).unwrap(), (5, 6));
    }
}

#[test]
fn a_write_that_must_clears_the_setuid_bit() {
    if !is_root("for the capability that is dropped") {
        return;
    }
    let (dir, mut guest) = shared();
    let (file, fh) = guest.create(ROOT_ID, "f", 0o755).unwrap();
    fs::set_permissions(dir.path().join("f"), fs::Permissions::from_mode(0o6755)).unwrap();

    guest.write(file.nodeid, fh, 0, b"by its owner, root").unwrap();
    assert_eq!(mode(&dir.path().join("f")), 0o6755);
    let write = WriteIn { fh, size: 1, write_flags: WRITE_KILL_PRIV, ..WriteIn::default() };
    guest.ask(Opcode::Write, file.nodeid, &[write.as_slice(), b"x"].concat()).unwrap();

    assert_eq!(mode(&dir.path().join("f")), 0o755);
}
