//! What a guest may try: every answer is an error or none, and the device goes on; but a malformed chain ends the VM.
#![allow(clippy::cast_possible_truncation, reason = "sizes a test chose")]

use super::guest::{Buffer, Guest, MEMORY_END, MEMORY_MIB, c, unjailed};
use super::{FsDevice, own_descriptors, raise_open_files};
use crate::virtio::{DeviceError, VirtioDevice};
use nix::poll::PollTimeout;
use std::fs;
use virtiofsd::fuse::{Opcode, ROOT_ID, ReadIn, WriteIn};
use vm_memory::{ByteValued, Bytes, GuestAddress};

const REQUEST_AT: u64 = 1 << 20;
const REPLY_AT: u64 = 4 << 20;

fn shared() -> (tempfile::TempDir, Guest) {
    let outer = tempfile::tempdir().unwrap();
    fs::create_dir_all(outer.path().join("tree/sub/sub")).unwrap();
    fs::write(outer.path().join("secret"), b"secret").unwrap();
    fs::write(outer.path().join("tree/f"), b"f").unwrap();
    let guest = Guest::new(&outer.path().join("tree"));
    (outer, guest)
}

/// The device still serves.
fn assert_alive(guest: &mut Guest) {
    assert_eq!(guest.lookup(ROOT_ID, "f").unwrap().attr.size, 1);
}

#[test]
fn no_name_is_a_path_or_a_way_up() {
    let (outer, mut guest) = shared();
    let sub = guest.lookup(ROOT_ID, "sub").unwrap().nodeid;
    let file = guest.lookup(ROOT_ID, "f").unwrap().nodeid;
    let long = "n".repeat(256);
    let names = ["", ".", "..", "/", "/etc/passwd", "../secret", "sub/sub", "sub/../../secret", &long];

    for name in names {
        let bad = c(name);
        let with = |fixed: &[u8], names: &[&[u8]]| [fixed, &names.concat()].concat();
        let moved = [ROOT_ID.to_le_bytes(), [0; 8]].concat();
        let requests = [
            (Opcode::Lookup, with(&[], &[&bad])),
            (Opcode::Unlink, with(&[], &[&bad])),
            (Opcode::Rmdir, with(&[], &[&bad])),
            (Opcode::Symlink, with(&[], &[&bad, b"target\0"])),
            (Opcode::Mkdir, with(&[0; 8], &[&bad])),
            (Opcode::Mknod, with(&[0; 16], &[&bad])),
            (Opcode::Create, with(&[0; 16], &[&bad])),
            (Opcode::Link, with(&file.to_le_bytes(), &[&bad])),
            (Opcode::Rename, with(&ROOT_ID.to_le_bytes(), &[b"sub\0", &bad])),
            (Opcode::Rename, with(&ROOT_ID.to_le_bytes(), &[&bad, b"new\0"])),
            (Opcode::Rename2, with(&moved, &[b"sub\0", &bad])),
            (Opcode::Rename2, with(&moved, &[&bad, b"new\0"])),
        ];
        for (opcode, body) in requests {
            for node in [ROOT_ID, sub] {
                let errno = guest.ask(opcode, node, &body).unwrap_err();
                assert!([libc::EINVAL, libc::ENAMETOOLONG].contains(&errno), "{opcode:?} {name:?}: {errno}");
            }
        }
    }

    let mut left: Vec<_> =
        fs::read_dir(outer.path()).unwrap().map(|found| found.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["secret", "tree"]);
    assert_eq!(fs::read_dir(outer.path().join("tree")).unwrap().count(), 2);
    assert_alive(&mut guest);
}

#[test]
fn a_name_without_its_end_is_refused() {
    let (_outer, mut guest) = shared();

    for body in [&b""[..], b"f", b"\0", b"f\0g\0", b"f\0\0"] {
        let errno = guest.ask(Opcode::Lookup, ROOT_ID, body).unwrap_err();
        assert_eq!(errno, libc::EINVAL, "{body:?}");
    }
    assert_alive(&mut guest);
}

#[test]
fn requests_before_init_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("f"), b"f").unwrap();
    let mut guest = Guest::silent(unjailed("test", dir.path()).unwrap());

    assert_eq!(guest.lookup(ROOT_ID, "f").unwrap_err(), libc::EBADF);
    assert_eq!(guest.create(ROOT_ID, "g", 0o600).unwrap_err(), libc::EBADF);
    assert_eq!(guest.ask(Opcode::Statfs, ROOT_ID, &[]).unwrap_err(), libc::EBADF);
    guest.init().unwrap();
    assert_alive(&mut guest);
}

#[test]
fn an_init_without_what_is_needed_or_of_another_age_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("f"), b"f").unwrap();
    let mut guest = Guest::silent(unjailed("test", dir.path()).unwrap());

    let lacking = [6, 20, 27, 28, 29].map(|flag| [7, 38, 0, !(1 << flag)]);
    for words in lacking.into_iter().chain([[7, 32, 0, u32::MAX], [6, 38, 0, u32::MAX]]) {
        let body = [words.map(u32::to_le_bytes).concat(), vec![0; 48]].concat();
        assert_eq!(guest.ask(Opcode::Init, 0, &body).unwrap_err(), libc::EPROTO, "{words:?}");
    }
    let future = [[8, 0, 0, 0].map(u32::to_le_bytes).concat(), vec![0; 48]].concat();
    assert_eq!(guest.ask(Opcode::Init, 0, &future).unwrap()[..4], [7, 0, 0, 0]);
    guest.init().unwrap();
    assert_alive(&mut guest);
}

#[test]
fn offsets_and_sizes_no_file_has_are_refused() {
    let (_outer, mut guest) = shared();
    let (file, fh) = guest.create(ROOT_ID, "g", 0o600).unwrap();
    let cases = [
        (1 << 63, 1, libc::EFBIG),
        (u64::MAX, 1, libc::EFBIG),
        (i64::MAX as u64, 1, libc::EFBIG),
        (0, (1 << 20) + 1, libc::EINVAL),
        (0, u32::MAX, libc::EINVAL),
    ];

    for (offset, size, errno) in cases {
        let read = ReadIn { fh, offset, size, ..ReadIn::default() };
        assert_eq!(guest.ask(Opcode::Read, file.nodeid, read.as_slice()).unwrap_err(), errno);
        let write = WriteIn { fh, offset, size, ..WriteIn::default() };
        let body = [write.as_slice(), b"data"].concat();
        assert_eq!(guest.ask(Opcode::Write, file.nodeid, &body).unwrap_err(), errno);
    }
    // A write of more than it carries writes nothing; one of less writes what it says.
    let write = |size| [WriteIn { fh, size, ..WriteIn::default() }.as_slice(), b"data"].concat();
    assert_eq!(guest.ask(Opcode::Write, file.nodeid, &write(5)).unwrap_err(), libc::EINVAL);
    guest.ask(Opcode::Write, file.nodeid, &write(3)).unwrap();
    assert_eq!(guest.read(file.nodeid, fh, 0, 10).unwrap(), b"dat");
    assert_alive(&mut guest);
}

#[test]
fn lengths_that_lie_are_refused() {
    let (_outer, mut guest) = shared();
    let good = guest.message(Opcode::Lookup, ROOT_ID, b"f\0");

    for len in [0, 1, 39, 43, 4096, 0x10_2000, u32::MAX] {
        let mut message = good.clone();
        message[..4].copy_from_slice(&len.to_le_bytes());
        let reply = guest.call(&message, 4096);
        assert_eq!(guest.open_reply(&reply).unwrap_err(), libc::EINVAL, "{len}");
    }
    // A length that ends before the descriptors do is the length.
    let mut padded = good.clone();
    padded.extend([b'x'; 100]);
    let reply = guest.call(&padded, 4096);
    guest.open_reply(&reply).unwrap();
    // And one that is honest, but more than any request.
    let huge = guest.message(Opcode::Lookup, ROOT_ID, &vec![b'x'; 1 << 20]);
    let reply = guest.call(&huge, 4096);
    assert_eq!(guest.open_reply(&reply).unwrap_err(), libc::EINVAL);
    assert_alive(&mut guest);
}

#[test]
fn chains_that_are_no_request_are_given_back_empty() {
    let (_outer, mut guest) = shared();
    let message = guest.message(Opcode::Lookup, ROOT_ID, b"f\0");
    guest.memory.write_slice(&message, GuestAddress(REQUEST_AT)).unwrap();
    let request: Buffer = (REQUEST_AT, message.len() as u32, false);
    let reply: Buffer = (REPLY_AT, 4096, true);
    let chains: [&[Buffer]; 5] = [
        &[request],
        &[reply],
        &[(REQUEST_AT, 39, false), reply],
        &[request, (REPLY_AT, 15, true)],
        &[request, (REPLY_AT, 0, true)],
    ];

    for chain in chains {
        assert_eq!(guest.run(1, chain), 0, "{chain:x?}");
    }
    assert_alive(&mut guest);
}

#[test]
fn malformed_chains_end_the_vm_and_nothing_of_them_is_served() {
    let (_outer, mut guest) = shared();
    let message = guest.message(Opcode::Lookup, ROOT_ID, b"f\0");
    guest.memory.write_slice(&message, GuestAddress(REQUEST_AT)).unwrap();
    let request: Buffer = (REQUEST_AT, message.len() as u32, false);
    let reply: Buffer = (REPLY_AT, 4096, true);
    let chains: [&[Buffer]; 7] = [
        &[reply, request],
        &[(REQUEST_AT, 20, false), reply, (REQUEST_AT + 20, 22, false)],
        &[(MEMORY_END, 42, false), reply],
        &[(MEMORY_END - 41, 42, false), reply],
        &[request, (u64::MAX - 3, 4096, true)],
        &[request, (1 << 60, 4096, true)],
        // The strip the workers keep beyond the guest's memory cannot be named.
        &[((1 << 60) + 0xa000, 42, false), reply],
    ];

    for chain in chains {
        guest.offer(1, 0, chain);
        refused(&mut guest, chain);
        // Had the VM not ended, the device would go on.
        assert_alive(&mut guest);
    }
}

/// The device fails for the driver's error, with the chain it was last offered.
#[track_caller]
fn refused(guest: &mut Guest, chain: &[Buffer]) {
    let error = guest.device.notified(1, &mut guest.queues).unwrap_err();
    assert!(matches!(error, DeviceError::Driver(_)), "{chain:x?}: {error}");
}

#[test]
fn replies_that_overlap_the_request_do_not_change_what_was_checked() {
    let (_outer, mut guest) = shared();
    let message = guest.message(Opcode::Lookup, ROOT_ID, b"f\0");
    guest.memory.write_slice(&message, GuestAddress(REQUEST_AT)).unwrap();

    let chain =
        [(REQUEST_AT, message.len() as u32, false), (REQUEST_AT, 100, true), (REQUEST_AT + 50, 4096, true)];

    assert_eq!(guest.run(1, &chain), 144);
    assert_alive(&mut guest);
}

#[test]
fn replies_larger_than_their_room_are_errors() {
    let (_outer, mut guest) = shared();
    for (opcode, body, room) in [
        (Opcode::Lookup, b"f\0".to_vec(), 40),
        (Opcode::Statfs, Vec::new(), 17),
        (Opcode::Getattr, vec![0; 16], 100),
    ] {
        let message = guest.message(opcode, ROOT_ID, &body);
        let reply = guest.call(&message, room);
        assert_eq!(guest.open_reply(&reply).unwrap_err(), libc::EINVAL, "{opcode:?}");
    }
    let read = ReadIn { fh: 0, size: 4096, ..ReadIn::default() };
    for opcode in [Opcode::Readdir, Opcode::Readdirplus] {
        let message = guest.message(opcode, ROOT_ID, read.as_slice());
        let reply = guest.call(&message, 16);
        assert_eq!(guest.open_reply(&reply).unwrap_err(), libc::ENOMEM, "{opcode:?}");
    }
    assert_alive(&mut guest);
}

#[test]
fn a_chain_that_bites_its_tail_is_refused() {
    let (_outer, mut guest) = shared();
    let message = guest.message(Opcode::Lookup, ROOT_ID, b"f\0");
    guest.memory.write_slice(&message, GuestAddress(REQUEST_AT)).unwrap();
    let chain = [(REQUEST_AT, message.len() as u32, false), (REPLY_AT, 4096, true)];
    guest.offer(1, 0, &chain);
    // The second descriptor goes on with itself.
    guest.memory.write_obj([3u16, 1], GuestAddress(0x2_0000 + 16 + 12)).unwrap();

    refused(&mut guest, &chain);
    assert_alive(&mut guest);
}

#[test]
fn offering_one_chain_many_times_serves_it_so_often_and_holds_no_more_than_a_queue() {
    let (_outer, mut guest) = shared();
    let message = guest.message(Opcode::Lookup, ROOT_ID, b"f\0");
    guest.memory.write_slice(&message, GuestAddress(REQUEST_AT)).unwrap();
    let chain = [(REQUEST_AT, message.len() as u32, false), (REPLY_AT, 4096, true)];

    let mut offered = 0u16;
    for _ in 0..4 {
        for _ in 0..1024 {
            guest.offer(1, 0, &chain);
            offered += 1;
        }
        guest.device.notified(1, &mut guest.queues).unwrap();
        assert!(guest.device.under_way[1] <= 1024);
        while guest.used_index(1) < offered {
            guest.turn(PollTimeout::from(20_000u16));
        }
    }
    for _ in 0..offered {
        assert_eq!(guest.wait(1), (0, 144));
    }
    assert_eq!(guest.device.under_way, [0, 0]);
    assert_alive(&mut guest);
}

#[test]
fn at_the_limit_of_files_nothing_more_is_made_and_what_is_forgotten_is_room_again() {
    raise_open_files(MEMORY_MIB).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let count = || fs::read_dir(dir.path()).unwrap().count();
    // Above the descriptors of this process and of the tests beside this one.
    let descriptors = fs::read_dir("/proc/self/fd").unwrap().count() as u64 + 1000;
    for number in 0..descriptors {
        fs::write(dir.path().join(number.to_string()), b"f").unwrap();
    }
    let files = count();
    let own = own_descriptors().unwrap();
    let device = FsDevice::with_descriptors("test", dir.path().into(), own, descriptors).unwrap();
    let mut guest = Guest::silent(device);
    guest.init().unwrap();

    for round in 0..3 {
        let mut nodes = Vec::new();
        let errno = loop {
            match guest.lookup(ROOT_ID, &nodes.len().to_string()) {
                Ok(found) => nodes.push(found.nodeid),
                Err(errno) => break errno,
            }
            // Whenever a file cannot be made, it is not made, and nothing of it is held: see the last line of a round.
            if let Ok((made, handle)) = guest.create(ROOT_ID, "made", 0o600) {
                forget(&mut guest, made.nodeid);
                guest
                    .ask(Opcode::Release, made.nodeid, &[handle, 0, 0].map(u64::to_le_bytes).concat())
                    .unwrap();
                fs::remove_file(dir.path().join("made")).unwrap();
            }
            assert_eq!(count(), files, "with {} files in round {round}", nodes.len());
        };
        assert_eq!(errno, libc::ENFILE);
        let named = [&[0; 8][..], b"new\0"].concat();
        for (opcode, body) in [(Opcode::Mkdir, &named[..]), (Opcode::Symlink, b"new\0to\0")] {
            assert_eq!(guest.ask(opcode, ROOT_ID, body).unwrap_err(), libc::ENFILE);
        }
        assert_eq!(guest.create(ROOT_ID, "made", 0o600).unwrap_err(), libc::ENFILE);
        assert_eq!(guest.open(nodes[0], libc::O_RDONLY).unwrap_err(), libc::ENFILE);
        assert_eq!(count(), files);
        // What the guest holds is served on.
        guest.ask(Opcode::Getattr, nodes[1], &[0; 16]).unwrap();
        nodes.iter().for_each(|node| forget(&mut guest, *node));
        // All but the root's.
        assert_eq!(nodes.len() as u64, descriptors - 1, "in round {round}");
    }
}

fn forget(guest: &mut Guest, node: u64) {
    let message = guest.message(Opcode::Forget, node, &1u64.to_le_bytes());
    guest.memory.write_slice(&message, GuestAddress(REQUEST_AT)).unwrap();
    assert_eq!(guest.run(0, &[(REQUEST_AT, message.len() as u32, false)]), 0);
}

#[test]
fn sessions_begin_one_at_a_time() {
    let (_outer, mut guest) = shared();
    let mut body = [7, 38, 0, u32::MAX, 0].map(u32::to_le_bytes).concat();
    body.resize(64, 0);
    let message = guest.message(Opcode::Init, 0, &body);
    guest.memory.write_slice(&message, GuestAddress(REQUEST_AT)).unwrap();
    let reply = |turn: u16| REPLY_AT + u64::from(turn) * 256;
    for turn in 0..400 {
        guest.offer(1, 2 * turn, &[(REQUEST_AT, message.len() as u32, false), (reply(turn), 256, true)]);
    }

    guest.device.notified(1, &mut guest.queues).unwrap();

    for _ in 0..400 {
        assert_eq!(guest.wait(1).1, 80);
    }
    for turn in 0..400 {
        assert_eq!(guest.bytes(reply(turn) + 4, 4), [0; 4], "{turn}");
    }
    assert_alive(&mut guest);
}

#[test]
fn a_reset_waits_for_requests_under_way() {
    let (_outer, mut guest) = shared();
    let message = guest.message(Opcode::Lookup, ROOT_ID, b"f\0");
    guest.memory.write_slice(&message, GuestAddress(REQUEST_AT)).unwrap();
    for _ in 0..1000 {
        guest.offer(1, 0, &[(REQUEST_AT, message.len() as u32, false), (REPLY_AT, 4096, true)]);
    }
    guest.device.notified(1, &mut guest.queues).unwrap();

    guest.reset();

    guest.memory.write_slice(&[0xaa; 200], GuestAddress(REPLY_AT)).unwrap();
    guest.init().unwrap();
    assert_alive(&mut guest);
}
