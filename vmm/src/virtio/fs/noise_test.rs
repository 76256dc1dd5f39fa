//! Noise from the guest, some of it nearly right: nothing stops the device.
#![allow(clippy::cast_possible_truncation, reason = "sizes a test chose")]

use super::guest::{Guest, is_root};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::cell::RefCell;
use std::fs;
use std::path::Path;
use virtiofsd::fuse::{InHeader, Opcode, ROOT_ID};
use vm_memory::{ByteValued, Bytes, GuestAddress};

const REQUEST_AT: u64 = 1 << 20;
const REPLY_AT: u64 = 4 << 20;

/// A tree on a file system of its own, of few megabytes, so that no request can fill the disk.
fn on_a_small_disk(test: impl FnOnce(&Path) + Send) {
    if !is_root("to mount a small file system") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
            let none: Option<&str> = None;
            mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none).unwrap();
            mount(Some("t"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some("size=4m,nr_inodes=1k"))
                .unwrap();
            fs::create_dir(dir.path().join("sub")).unwrap();
            fs::write(dir.path().join("f"), b"f").unwrap();
            test(dir.path());
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

/// Eight bytes of a request, or a name.
#[derive(Debug, Clone)]
enum Word {
    Number(u64),
    /// One of the nodes the guest knows.
    Node(usize),
    /// One of the handles it has open.
    Handle(usize),
    Name(&'static [u8]),
}

/// What the guest knows of the tree, so that noise is not all it sends.
struct Known {
    nodes: [u64; 4],
    handles: [u64; 3],
}

impl Known {
    fn begin(guest: &mut Guest) -> Self {
        guest.init().unwrap();
        // Noise may have removed what the tree held.
        let sub = [0o755u32, 0].map(u32::to_le_bytes).concat();
        let _ = guest.ask(Opcode::Mkdir, ROOT_ID, &[&sub[..], b"sub\0"].concat());
        let _ = guest.create(ROOT_ID, "f", 0o644);
        let mut node = |name| guest.lookup(ROOT_ID, name).map_or(0, |found| found.nodeid);
        let nodes = [ROOT_ID, node("f"), node("sub"), 77];
        let file = guest.open(nodes[1], libc::O_RDWR).unwrap_or(0);
        let directory = guest.open(nodes[2], libc::O_DIRECTORY).unwrap_or(0);
        Self { nodes, handles: [file, directory, 77] }
    }

    fn bytes(&self, word: &Word) -> Vec<u8> {
        match word {
            Word::Number(number) => number.to_le_bytes().to_vec(),
            Word::Node(index) => self.nodes[*index].to_le_bytes().to_vec(),
            Word::Handle(index) => self.handles[*index].to_le_bytes().to_vec(),
            Word::Name(name) => name.to_vec(),
        }
    }
}

/// Words of the fixed part of each request, in the order of the opcodes from LOOKUP.
const FIXED: [usize; 51] = [
    0, 1, 2, 11, 0, 0, 0, 2, 1, 0, 0, 1, 1, 1, 5, 5, 0, 3, 0, 2, 2, 1, 1, 0, 3, 8, 1, 5, 3, 2, 5, 5, 5, 1, 2,
    1, 2, 0, 4, 3, 0, 1, 4, 5, 2, 3, 7, 4, 1, 0, 2,
];

#[derive(Debug, Clone)]
enum Message {
    Noise(Vec<u8>),
    Request { opcode: u32, node: usize, user: u32, words: Vec<Word>, lie: Option<u32> },
}

fn messages() -> impl Strategy<Value = Message> {
    let number = prop_oneof![
        4 => 0u64..8,
        1 => any::<u64>(),
        1 => Just(0),
        1 => prop::sample::select(vec![4096, 1 << 20, 1 << 32, 1 << 63, 0o100644, 0o40755]),
    ];
    let first = prop_oneof![
        2 => (0usize..3).prop_map(Word::Handle),
        1 => (0usize..4).prop_map(Word::Node),
        1 => number.clone().prop_map(Word::Number),
    ];
    let names = [&b"f\0"[..], b"g\0", b"sub\0", b"user.x\0", b"security.y\0", b"..\0", b"a/b\0", b"\0", b"v"];
    let names = prop::collection::vec(prop::sample::select(names.to_vec()).prop_map(Word::Name), 0..3);
    let fixed = prop::collection::vec(number.prop_map(Word::Number), 11);
    let lie = prop::option::weighted(0.05, any::<u32>());
    let length = prop_oneof![8 => Just(None), 1 => (0usize..11).prop_map(Some)];
    let request = (1u32..56, 0usize..4, 0u32..3, first, fixed, names, length, lie).prop_map(
        |(opcode, node, user, first, fixed, names, length, lie)| {
            let usual = FIXED.get(opcode as usize - 1).copied().unwrap_or(1);
            let mut words: Vec<_> = std::iter::once(first).chain(fixed).collect();
            words.truncate(length.unwrap_or(usual));
            words.extend(names);
            Message::Request { opcode, node, user, words, lie }
        },
    );
    prop_oneof![1 => prop::collection::vec(any::<u8>(), 0..200).prop_map(Message::Noise), 9 => request]
}

fn assemble(message: Message, known: &Known) -> Vec<u8> {
    match message {
        Message::Noise(bytes) => bytes,
        Message::Request { opcode, node, user, words, lie } => {
            let body: Vec<u8> = words.iter().flat_map(|word| known.bytes(word)).collect();
            let len = lie.unwrap_or((size_of::<InHeader>() + body.len()) as u32);
            let nodeid = known.nodes[node];
            let (uid, gid) = (user.into(), user.into());
            let header = InHeader { len, opcode, nodeid, uid, gid, ..InHeader::default() };
            [header.as_slice(), &body].concat()
        }
    }
}

#[test]
fn no_message_stops_the_device() {
    on_a_small_disk(|dir| {
        let mut guest = Guest::new(dir);
        let known = Known::begin(&mut guest);
        let state = RefCell::new((guest, known, 0));
        let room = prop::collection::vec(prop_oneof![0u32..300, Just(8192)], 0..4);
        let case = (messages(), 0usize..2, room);
        let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(6000) });
        let outcome = runner.run(&case, |(message, queue, room)| {
            let (guest, known, turn) = &mut *state.borrow_mut();
            // Some requests end the session, or forget what the others are about.
            *turn += 1;
            if *turn % 8 == 0 {
                *known = Known::begin(guest);
            }
            let message = assemble(message, known);
            guest.memory.write_slice(&message, GuestAddress(REQUEST_AT)).unwrap();
            let first = message.len() as u32 / 2;
            let second = (REQUEST_AT + u64::from(first), message.len() as u32 - first, false);
            let mut chain = vec![(REQUEST_AT, first, false), second];
            chain.extend(room.iter().map(|room| (REPLY_AT, *room, true)));
            let written = guest.run(queue, &chain);
            prop_assert!(written <= room.iter().sum());
            Ok(())
        });
        outcome.unwrap();
        state.borrow_mut().0.init().unwrap();
    });
}
