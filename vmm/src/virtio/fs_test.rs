//! What a guest may do with the shared tree.
#![allow(clippy::cast_possible_truncation, reason = "sizes a test chose")]

use super::guest::{BORDER, Guest, c, entry, unjailed};
use super::{FsDevice, FsError, own_descriptors};
use crate::virtio::VirtioDevice;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use virtiofsd::fuse::{
    AttrOut, Direntplus, ForgetIn, FsyncIn, InitOut, Kstatfs, LinkIn, Opcode, OpenOut, ROOT_ID, ReadIn,
    Rename2In, RenameIn, WriteIn,
};
use vm_memory::{ByteValued, Bytes, GuestAddress};

fn shared() -> (tempfile::TempDir, Guest) {
    let dir = tempfile::tempdir().unwrap();
    let guest = Guest::new(dir.path());
    (dir, guest)
}

#[test]
fn configuration_space_holds_the_tag_and_one_request_queue() {
    let device = unjailed("lazaret", "/").unwrap();

    assert_eq!(device.id(), 26);
    assert_eq!(&device.config()[..8], b"lazaret\0");
    assert_eq!(device.config()[36..], 1u32.to_le_bytes());
    for tag in ["", "a tag of more than thirty-six bytes..", "a\0b"] {
        assert!(matches!(unjailed(tag, "/"), Err(FsError::Tag(_))), "{tag}");
    }
}

#[test]
fn a_root_that_is_not_there_is_named_in_the_error() {
    let mut device = unjailed("lazaret", "/no/such/place").unwrap();

    let error = device.activate(0).unwrap_err().to_string();

    assert!(error.contains("/no/such/place") && error.contains("No such file"), "{error}");
}

#[test]
fn init_offers_what_the_tree_was_set_up_for() {
    let dir = tempfile::tempdir().unwrap();
    let mut guest = Guest::silent(unjailed("test", dir.path()).unwrap());

    let body = guest.init().unwrap();
    let answer = InitOut::from_slice(&body).unwrap();

    let has = |bit: u32| answer.flags & 1 << bit != 0;
    assert!(has(27), "submounts");
    assert!(has(28), "killpriv_v2");
    assert!(has(20), "posix acl");
    assert!(!has(16), "no writeback cache");
    assert!(answer.flags2 & 1 << 2 != 0, "supplementary groups");
    assert_eq!((answer.max_write, answer.max_pages), (1 << 20, 256));
}

#[test]
fn a_file_written_by_the_guest_is_on_the_host_and_reads_back() {
    let (dir, mut guest) = shared();

    let (file, fh) = guest.create(ROOT_ID, "news", 0o640).unwrap();
    assert_eq!(guest.write(file.nodeid, fh, 0, b"all is well").unwrap(), 11);

    assert_eq!(fs::read(dir.path().join("news")).unwrap(), b"all is well");
    assert_eq!(guest.read(file.nodeid, fh, 4, 100).unwrap(), b"is well");
    assert_eq!(guest.lookup(ROOT_ID, "news").unwrap().attr.size, 11);
    assert_eq!(fs::metadata(dir.path().join("news")).unwrap().mode() & 0o7777, 0o640);
}

#[test]
fn what_was_read_of_a_program_may_be_kept_when_it_is_opened_again_and_has_not_changed() {
    let mut guest = Guest::new(Path::new("/usr/bin"));
    let node = guest.lookup(ROOT_ID, "env").unwrap().nodeid;
    let mut open_flags = || {
        let body = guest.ask(Opcode::Open, node, &[0; 8]).unwrap();
        OpenOut::from_slice(&body).unwrap().open_flags
    };
    assert_eq!([open_flags(), open_flags()], [0, 1 << 1]);

    let (dir, mut guest) = shared();
    fs::write(dir.path().join("data"), "text").unwrap();
    let node = guest.lookup(ROOT_ID, "data").unwrap().nodeid;
    for _ in 0..2 {
        let body = guest.ask(Opcode::Open, node, &[0; 8]).unwrap();
        assert_eq!(OpenOut::from_slice(&body).unwrap().open_flags, 0);
    }
}

#[test]
fn data_may_lie_in_many_descriptors_and_across_memory_regions() {
    let (dir, mut guest) = shared();
    let (file, fh) = guest.create(ROOT_ID, "f", 0o600).unwrap();
    let data: Vec<u8> = (0..600_000u32).map(|n| (n % 251) as u8).collect();
    let write = WriteIn { fh, offset: 7, size: data.len() as u32, ..WriteIn::default() };
    let message = guest.message(Opcode::Write, file.nodeid, &[write.as_slice(), &data].concat());

    // The header in three parts, the data in pieces of odd sizes, one of them across the border of two regions.
    let start = BORDER - 300_000;
    guest.memory.write_slice(&message, GuestAddress(start)).unwrap();
    let sizes = [10, 33, 37, 1, 4095, 595_904];
    assert_eq!(sizes.iter().sum::<u32>() as usize, message.len());
    let mut chain = Vec::new();
    let mut at = start;
    for size in sizes {
        chain.push((at, size, false));
        at += u64::from(size);
    }
    chain.extend([(0x40_0000, 5, true), (0x50_0000, 50, true)]);
    assert_eq!(guest.run(1, &chain), 24);

    let on_host = fs::read(dir.path().join("f")).unwrap();
    assert!(on_host[7..] == data && on_host[..7] == [0; 7]);

    let read = ReadIn { fh, offset: 7, size: data.len() as u32, ..ReadIn::default() };
    let message = guest.message(Opcode::Read, file.nodeid, read.as_slice());
    guest.memory.write_slice(&message, GuestAddress(0x10_0000)).unwrap();
    let chain = [
        (0x10_0000, message.len() as u32, false),
        (0x40_0000, 3, true),
        (0x50_0000, 14, true),
        (start, 400_000, true),
        (0x60_0000, 300_000, true),
    ];
    assert_eq!(guest.run(1, &chain), 16 + 600_000);
    let first = guest.bytes(0x50_0000 + 13, 1);
    let got = [first, guest.bytes(start, 400_000), guest.bytes(0x60_0000, 199_999)].concat();
    assert!(got == data);
}

#[test]
fn one_request_is_served_at_once_and_several_or_long_ones_by_the_pool() {
    let (_dir, mut guest) = shared();
    let (file, fh) = guest.create(ROOT_ID, "f", 0o600).unwrap();
    let lookup = guest.message(Opcode::Lookup, ROOT_ID, &c("f"));
    let fsync = FsyncIn { fh, ..FsyncIn::default() };
    let fsync = guest.message(Opcode::Fsync, file.nodeid, fsync.as_slice());
    guest.memory.write_slice(&lookup, GuestAddress(0x10_0000)).unwrap();
    guest.memory.write_slice(&fsync, GuestAddress(0x20_0000)).unwrap();
    let lookup = [(0x10_0000, lookup.len() as u32, false), (0x40_0000, 256, true)];
    let fsync = [(0x20_0000, fsync.len() as u32, false), (0x50_0000, 256, true)];

    for (chains, at_once) in [(&[lookup][..], 1), (&[fsync], 0), (&[lookup, fsync], 0)] {
        guest.device.requests_to_pool = 0;
        let before = guest.used_index(1);
        for (chain, head) in chains.iter().zip([0, 4]) {
            guest.offer(1, head, chain);
        }
        guest.device.notified(1, &mut guest.queues).unwrap();
        assert_eq!(guest.used_index(1) - before, at_once);
        for _ in chains {
            assert!([16, 144].contains(&guest.wait(1).1));
        }
    }
}

#[test]
fn a_transfer_of_the_largest_size_works() {
    let (_dir, mut guest) = shared();
    let (file, fh) = guest.create(ROOT_ID, "f", 0o600).unwrap();
    let data = vec![0x5a; 1 << 20];

    assert_eq!(guest.write(file.nodeid, fh, 0, &data).unwrap(), 1 << 20);
    let read = ReadIn { fh, offset: 0, size: 1 << 20, ..ReadIn::default() };
    let message = guest.message(Opcode::Read, file.nodeid, read.as_slice());
    let reply = guest.call(&message, (1 << 20) + 16);

    assert!(guest.open_reply(&reply).unwrap() == data);
}

#[test]
fn a_large_directory_is_read_in_parts_each_entry_once() {
    let (dir, mut guest) = shared();
    for number in 0..1000 {
        fs::write(dir.path().join(format!("entry-{number}")), b"x").unwrap();
    }
    let open = guest.ask(Opcode::Opendir, ROOT_ID, &[0; 8]).unwrap();
    let fh = OpenOut::from_slice(&open).unwrap().fh;

    let (mut offset, mut names) = (0, Vec::new());
    loop {
        let read = ReadIn { fh, offset, size: 4096, ..ReadIn::default() };
        let body = guest.ask(Opcode::Readdirplus, ROOT_ID, read.as_slice()).unwrap();
        if body.is_empty() {
            break;
        }
        let mut rest = &body[..];
        while !rest.is_empty() {
            let (head, tail) = rest.split_at(size_of::<Direntplus>());
            let head = Direntplus::from_slice(head).unwrap();
            let len = head.dirent.namelen as usize;
            let name = String::from_utf8(tail[..len].to_vec()).unwrap();
            assert_eq!(head.entry_out.nodeid == 0, name == "." || name == "..", "{name}");
            if head.entry_out.nodeid != 0 {
                assert_eq!(head.entry_out.attr.size, 1);
            }
            names.push(name);
            offset = head.dirent.off;
            rest = &tail[len.next_multiple_of(8)..];
        }
    }

    names.sort();
    names.dedup();
    assert_eq!(names.len(), 1002);
}

#[test]
fn renames_links_and_removals_are_the_hosts() {
    let (dir, mut guest) = shared();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("a"), b"a").unwrap();
    fs::write(at("b"), b"b").unwrap();
    fs::create_dir(at("d")).unwrap();
    let sub = guest.lookup(ROOT_ID, "d").unwrap().nodeid;
    let old = guest.lookup(ROOT_ID, "a").unwrap().nodeid;

    let link = guest.ask(Opcode::Link, sub, &[LinkIn { oldnodeid: old }.as_slice(), &c("hard")].concat());
    let link = entry(&link.unwrap());
    assert_eq!((link.nodeid, link.attr.nlink), (old, 2));
    assert_eq!(fs::metadata(at("d/hard")).unwrap().ino(), fs::metadata(at("a")).unwrap().ino());

    let names = |from: &str, to: &str| [c(from), c(to)].concat();
    let rename = RenameIn { newdir: sub };
    guest.ask(Opcode::Rename, ROOT_ID, &[rename.as_slice(), &names("b", "moved")].concat()).unwrap();
    assert_eq!(fs::read(at("d/moved")).unwrap(), b"b");

    let keep = Rename2In { newdir: sub, flags: libc::RENAME_NOREPLACE, padding: 0 };
    let refused = guest.ask(Opcode::Rename2, ROOT_ID, &[keep.as_slice(), &names("a", "moved")].concat());
    assert_eq!(refused.unwrap_err(), libc::EEXIST);
    let swap = Rename2In { newdir: sub, flags: libc::RENAME_EXCHANGE, padding: 0 };
    guest.ask(Opcode::Rename2, ROOT_ID, &[swap.as_slice(), &names("a", "moved")].concat()).unwrap();
    assert_eq!((fs::read(at("a")).unwrap(), fs::read(at("d/moved")).unwrap()), (b"b".into(), b"a".into()));

    assert_eq!(guest.ask(Opcode::Rmdir, ROOT_ID, &c("d")).unwrap_err(), libc::ENOTEMPTY);
    guest.ask(Opcode::Unlink, sub, &c("hard")).unwrap();
    guest.ask(Opcode::Unlink, sub, &c("moved")).unwrap();
    guest.ask(Opcode::Rmdir, ROOT_ID, &c("d")).unwrap();
    assert!(!at("d").exists());
}

#[test]
fn an_open_file_outlives_its_name() {
    let (dir, mut guest) = shared();
    let (file, fh) = guest.create(ROOT_ID, "f", 0o600).unwrap();

    guest.ask(Opcode::Unlink, ROOT_ID, &c("f")).unwrap();

    assert!(!dir.path().join("f").exists());
    guest.write(file.nodeid, fh, 0, b"still here").unwrap();
    assert_eq!(guest.read(file.nodeid, fh, 0, 100).unwrap(), b"still here");
}

#[test]
fn a_symbolic_link_is_text_and_never_followed() {
    let (dir, mut guest) = shared();
    symlink("/etc", dir.path().join("way-out")).unwrap();

    let link = guest.lookup(ROOT_ID, "way-out").unwrap();

    assert_eq!(link.attr.mode & libc::S_IFMT, libc::S_IFLNK);
    assert_eq!(guest.ask(Opcode::Readlink, link.nodeid, &[]).unwrap(), b"/etc");
    assert_eq!(guest.lookup(link.nodeid, "passwd").unwrap_err(), libc::ENOTDIR);
    assert_eq!(guest.open(link.nodeid, libc::O_RDONLY).unwrap_err(), libc::EBADF);
    assert_eq!(guest.create(link.nodeid, "x", 0o600).unwrap_err(), libc::ENOTDIR);
}

#[test]
fn a_change_on_the_host_is_seen_and_answers_hold_for_a_second() {
    let (dir, mut guest) = shared();
    fs::write(dir.path().join("f"), b"old").unwrap();
    let found = guest.lookup(ROOT_ID, "f").unwrap();
    assert_eq!((found.attr.size, found.entry_valid, found.attr_valid), (3, 1, 1));

    fs::write(dir.path().join("f"), b"longer").unwrap();

    let body = guest.ask(Opcode::Getattr, found.nodeid, &[0; 16]).unwrap();
    let attr = AttrOut::from_slice(&body).unwrap();
    assert_eq!((attr.attr.size, attr.attr_valid), (6, 1));
    let fh = guest.open(found.nodeid, libc::O_RDONLY).unwrap();
    assert_eq!(guest.read(found.nodeid, fh, 0, 10).unwrap(), b"longer");
}

#[test]
fn statfs_is_the_hosts() {
    let (dir, mut guest) = shared();
    let host = nix::sys::statvfs::statvfs(dir.path()).unwrap();

    let body = guest.ask(Opcode::Statfs, ROOT_ID, &[]).unwrap();
    let answer = Kstatfs::from_slice(&body).unwrap();

    assert_eq!((answer.blocks, answer.files), (host.blocks(), host.files()));
    assert_eq!(u64::from(answer.frsize), host.fragment_size());
}

#[test]
fn a_guest_that_holds_too_much_gets_enfile_until_it_forgets() {
    let dir = tempfile::tempdir().unwrap();
    for number in 0..10 {
        fs::write(dir.path().join(number.to_string()), b"").unwrap();
    }
    // Six: the root, and five files.
    let mut guest = Guest::silent(
        FsDevice::with_descriptors("test", dir.path().into(), own_descriptors().unwrap(), 6).unwrap(),
    );
    guest.init().unwrap();

    let nodes: Vec<_> =
        (0..5).map(|number| guest.lookup(ROOT_ID, &number.to_string()).unwrap().nodeid).collect();
    assert_eq!(guest.lookup(ROOT_ID, "5").unwrap_err(), libc::ENFILE);
    assert_eq!(guest.open(nodes[0], libc::O_RDONLY).unwrap_err(), libc::ENFILE);
    guest.ask(Opcode::Getattr, nodes[0], &[0; 16]).unwrap();

    let forget = guest.message(Opcode::Forget, nodes[1], ForgetIn { nlookup: 1 }.as_slice());
    guest.memory.write_slice(&forget, GuestAddress(0x70_0000)).unwrap();
    assert_eq!(guest.run(0, &[(0x70_0000, forget.len() as u32, false)]), 0);
    guest.lookup(ROOT_ID, "5").unwrap();
    assert_eq!(guest.ask(Opcode::Getattr, nodes[1], &[0; 16]).unwrap_err(), libc::EBADF);
}

#[test]
fn a_new_session_knows_nothing_of_the_old_one() {
    let (dir, mut guest) = shared();
    let (file, fh) = guest.create(ROOT_ID, "f", 0o600).unwrap();

    guest.init().unwrap();
    assert_eq!(guest.write(file.nodeid, fh, 0, b"x").unwrap_err(), libc::EBADF);
    guest.lookup(ROOT_ID, "f").unwrap();
    let destroy = guest.message(Opcode::Destroy, 0, &[]);
    assert!(guest.call(&destroy, 64).is_empty(), "DESTROY has no answer");
    assert_eq!(guest.lookup(ROOT_ID, "f").unwrap_err(), libc::EBADF);

    // A reset device is as new, and starts again.
    guest.reset();
    assert_eq!(guest.lookup(ROOT_ID, "f").unwrap_err(), libc::EBADF);
    guest.init().unwrap();
    guest.lookup(ROOT_ID, "f").unwrap();
    assert_eq!(fs::read(dir.path().join("f")).unwrap(), b"");
}
