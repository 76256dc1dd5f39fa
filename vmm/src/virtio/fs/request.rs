//! One FUSE request: taken out of the guest's memory once, then judged.
//!
//! What is refused here is what the file server leaves to the kernel it takes the guest for. As of virtiofsd 1.14 it
//! - panics, which is the end of the VM: a READ or READDIR with room for less than a reply's header, a READ or WRITE
//!   beyond the largest offset of a file, two INITs at once;
//! - does more than was asked: names with `/` or `..` are resolved, a WRITE takes all data there is rather than its
//!   size, OPEN takes any flag of `open`;
//! - logs every INIT it does not like.

use crate::virtio::Chain;
use crate::virtio::buffer::Buffer;
use std::mem::offset_of;
use virtiofsd::fuse::{Attr, AttrOut, GetattrIn, InHeader, Opcode, OpenOut, OutHeader};
use vm_memory::{Address, ByteValued, Bytes, GuestMemoryMmap};

/// The longest request but for the data of a WRITE, bytes: a 64 KiB extended attribute, its name and headers, doubled.
pub(super) const MESSAGE_MAX: usize = 128 << 10;
/// The most data in one READ or WRITE, bytes; what the server offers as `max_write` (and `max_pages`).
const DATA_MAX: u32 = 1 << 20;
/// The most segments of one chain, `IOV_MAX`: beyond it the host's vectored calls fail.
const SEGMENTS_MAX: usize = 1024;
/// The longest name of a file, bytes, without its NUL (`NAME_MAX`).
const NAME_MAX: usize = 255;
const HEADER: usize = size_of::<InHeader>();
/// A flag of the answer to OPEN.
const FOPEN_KEEP_CACHE: u32 = 1 << 1;
/// Bytes of `fuse_read_in` and `fuse_write_in`, which begin with handle, offset and size alike.
const IO_BODY: usize = 40;
/// The flags of `open` that mean the same through a file descriptor: no creating (CREATE does that), no `O_PATH`, no
/// `O_TMPFILE`, no signals; no `O_DIRECT`, whose alignment is the host file system's affair.
const OPEN_FLAGS: u32 = (libc::O_ACCMODE
    | libc::O_APPEND
    | libc::O_TRUNC
    | libc::O_EXCL
    | libc::O_NONBLOCK
    | libc::O_SYNC
    | libc::O_DSYNC
    | libc::O_DIRECTORY
    | libc::O_NOFOLLOW
    | libc::O_LARGEFILE) as u32;
/// What INIT's flags must have: SUBMOUNTS, without which a guest takes files of different mounts that share an inode
/// number for one, and for its modes and lists to be kept right DONT_MASK, POSIX_ACL, HANDLE_KILLPRIV_V2 and SETXATTR_EXT.
const NEEDED: u32 = 1 << 27 | 1 << 6 | 1 << 20 | 1 << 28 | 1 << 29;
/// The protocol that has them all, 7.33: Linux 5.13.
const OLDEST: (u32, u32) = (7, 33);

/// Why a chain is no request at all, nothing that could be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("a descriptor chain in too many pieces")]
    Pieces,
    #[error("no whole FUSE header")]
    Header,
    #[error("no room for a reply")]
    Reply,
}

/// A request, its header and body copied out of the guest's memory.
#[derive(Debug)]
pub(super) struct Request<'a> {
    header: InHeader,
    /// What the server will read: header and body, without the data of a WRITE.
    message: Vec<u8>,
    /// The data of a WRITE.
    payload: Buffer<'a>,
    /// Room for the reply; empty for requests that have none.
    reply: Buffer<'a>,
}

impl<'a> Request<'a> {
    /// Copies the request of `chain`.
    ///
    /// # Errors
    /// When it is none, and cannot even be refused.
    pub(super) fn take(chain: &Chain, memory: &'a GuestMemoryMmap) -> Result<Self, Malformed> {
        let (mut payload, mut reply) = Buffer::of(memory, chain);
        if payload.segments().len() + reply.segments().len() > SEGMENTS_MAX {
            return Err(Malformed::Pieces);
        }
        let mut message = vec![0; HEADER];
        if payload.copy_to(&mut message) < HEADER {
            return Err(Malformed::Header);
        }
        let header = *InHeader::from_slice(&message).ok_or(Malformed::Header)?;
        let opcode = Opcode::try_from(header.opcode).ok();
        let answered = !matches!(opcode, Some(Opcode::Forget | Opcode::BatchForget | Opcode::Interrupt));
        if answered && reply.len() < size_of::<OutHeader>() {
            return Err(Malformed::Reply);
        }
        reply.truncate(if answered { size_of::<OutHeader>() + DATA_MAX as usize } else { 0 });

        // The header says how long the request is; what is beyond is not part of it. A length that is wrong is left for
        // `vet`, which then finds the message short.
        let len = header.len as usize;
        let body = if matches!(opcode, Some(Opcode::Write)) { len.min(HEADER + IO_BODY) } else { len };
        if (HEADER..=MESSAGE_MAX).contains(&body) && len <= payload.len() {
            payload.truncate(len);
            payload.skip(HEADER);
            message.resize(body, 0);
            let copied = payload.copy_to(message.get_mut(HEADER..).unwrap_or_default());
            payload.skip(copied);
        } else {
            payload.truncate(0);
        }
        Ok(Self { header, message, payload, reply })
    }

    /// Judges the copy, and trims it to what the server needs.
    ///
    /// # Errors
    /// The errno to answer with.
    pub(super) fn vet(&mut self) -> Result<(), i32> {
        let data = self.payload.len();
        if self.message.len() + data != self.header.len as usize {
            return Err(libc::EINVAL);
        }
        match Opcode::try_from(self.header.opcode) {
            Ok(Opcode::Lookup | Opcode::Unlink | Opcode::Rmdir | Opcode::Symlink) => self.names(0, 1),
            Ok(Opcode::Mkdir | Opcode::Link) => self.names(8, 1),
            Ok(Opcode::Mknod) => self.names(16, 1),
            Ok(Opcode::Rename) => self.names(8, 2),
            Ok(Opcode::Rename2) => self.names(16, 2),
            Ok(Opcode::Create) => {
                self.mask_flags()?;
                self.names(16, 1)
            }
            Ok(Opcode::Open | Opcode::Opendir) => self.mask_flags(),
            Ok(Opcode::Read) => {
                let size = self.io_size()?;
                self.reply.truncate(size_of::<OutHeader>() + size);
                Ok(())
            }
            Ok(Opcode::Write) => {
                let size = self.io_size()?;
                self.payload.truncate(size);
                if data < size { Err(libc::EINVAL) } else { Ok(()) }
            }
            Ok(Opcode::Init) if (self.u32_at(0)?, self.u32_at(4)?) < OLDEST => Err(libc::EPROTO),
            // A major version of the future is answered with ours, and begins again.
            Ok(Opcode::Init) if self.u32_at(0)? == OLDEST.0 && self.u32_at(12)? & NEEDED != NEEDED => {
                Err(libc::EPROTO)
            }
            _ => Ok(()),
        }
    }

    /// Whether the request makes or ends a session, so that none may run beside it.
    pub(super) fn is_session(&self) -> bool {
        matches!(Opcode::try_from(self.header.opcode), Ok(Opcode::Init | Opcode::Destroy))
    }

    /// Whether the request may make a file, of which the guest then holds at least one descriptor.
    pub(super) fn makes_a_file(&self) -> bool {
        use Opcode::{Create, Link, Mkdir, Mknod, Symlink};
        matches!(Opcode::try_from(self.header.opcode), Ok(Create | Mknod | Mkdir | Symlink | Link))
    }

    /// The file that the request opens, if that is what it does.
    pub(super) fn opened_file(&self) -> Option<u64> {
        matches!(Opcode::try_from(self.header.opcode), Ok(Opcode::Open)).then_some(self.header.nodeid)
    }

    /// Tells the guest in the answer to an OPEN, which is written, to keep what it has of the file in its cache.
    pub(super) fn keep_cache(&self) {
        let mut flags = self.reply.clone();
        flags.skip(size_of::<OutHeader>() + offset_of!(OpenOut, open_flags));
        flags.truncate(size_of::<u32>());
        flags.copy_from(&FOPEN_KEEP_CACHE.to_le_bytes());
    }

    pub(super) fn message(&self) -> &[u8] {
        &self.message
    }

    pub(super) fn payload(&self) -> &Buffer<'a> {
        &self.payload
    }

    pub(super) fn reply(&self) -> &Buffer<'a> {
        &self.reply
    }

    /// Answers with `errno`; returns the bytes written, none when the request wants no answer.
    pub(super) fn refuse(&self, errno: i32) -> u32 {
        #[expect(clippy::cast_possible_truncation, reason = "16 bytes")]
        let len = size_of::<OutHeader>() as u32;
        let header = OutHeader { len, error: -errno, unique: self.header.unique };
        if self.reply.copy_from(header.as_slice()) == len as usize { len } else { 0 }
    }

    /// Checks that `count` names follow `fixed` bytes of body, each one component of a path and not a way up.
    fn names(&self, fixed: usize, count: usize) -> Result<(), i32> {
        let mut rest = self.message.get(HEADER + fixed..).ok_or(libc::EINVAL)?;
        for _ in 0..count {
            let end = rest.iter().position(|byte| *byte == 0).ok_or(libc::EINVAL)?;
            let (name, tail) = rest.split_at(end);
            match name {
                _ if name.len() > NAME_MAX => return Err(libc::ENAMETOOLONG),
                b"" | b"." | b".." => return Err(libc::EINVAL),
                _ if name.contains(&b'/') => return Err(libc::EINVAL),
                _ => rest = tail.get(1..).ok_or(libc::EINVAL)?,
            }
        }
        Ok(())
    }

    /// Takes away the flags of OPEN, OPENDIR and CREATE, the first word of each, that are none of the guest's.
    fn mask_flags(&mut self) -> Result<(), i32> {
        let flags = self.u32_at(0)? & OPEN_FLAGS;
        let place = self.message.get_mut(HEADER..HEADER + 4).ok_or(libc::EINVAL)?;
        place.copy_from_slice(&flags.to_le_bytes());
        Ok(())
    }

    /// The size of a READ or WRITE, its end checked against the largest offset of a file.
    fn io_size(&self) -> Result<usize, i32> {
        let offset = u64::from(self.u32_at(8)?) | u64::from(self.u32_at(12)?) << 32;
        let size = self.u32_at(16)?;
        if self.message.len() < HEADER + IO_BODY || size > DATA_MAX {
            return Err(libc::EINVAL);
        }
        match offset.checked_add(u64::from(size)) {
            Some(end) if i64::try_from(end).is_ok() => Ok(size as usize),
            _ => Err(libc::EFBIG),
        }
    }

    fn u32_at(&self, offset: usize) -> Result<u32, i32> {
        let bytes = self.message.get(HEADER + offset..).and_then(<[u8]>::first_chunk);
        bytes.map(|bytes| u32::from_le_bytes(*bytes)).ok_or(libc::EINVAL)
    }
}

/// A request of the VMM's own for the attributes of `node`.
pub(super) fn getattr(node: u64) -> Vec<u8> {
    let body = GetattrIn::default();
    #[expect(clippy::cast_possible_truncation, reason = "56 bytes")]
    let len = (HEADER + size_of::<GetattrIn>()) as u32;
    let header = InHeader { len, opcode: Opcode::Getattr as u32, nodeid: node, ..InHeader::default() };
    [header.as_slice(), body.as_slice()].concat()
}

/// The attributes in a reply to [`getattr`], if it is no error.
pub(super) fn attributes(reply: &[u8]) -> Option<Attr> {
    let (header, body) = reply.split_at_checked(size_of::<OutHeader>())?;
    let answered = OutHeader::from_slice(header)?.error == 0;
    Some(AttrOut::from_slice(body)?.attr).filter(|_| answered)
}

/// Whether the request in `chain` is of a kind that waits for the disk, or does much there. A guess: the guest may still
/// change its mind.
pub(super) fn is_long(chain: &Chain, memory: &GuestMemoryMmap) -> bool {
    let opcode = chain.readable.first().and_then(|first| first.addr.checked_add(4));
    let opcode = opcode.and_then(|addr| memory.read_obj::<u32>(addr).ok()).unwrap_or_default();
    matches!(
        Opcode::try_from(opcode),
        Ok(Opcode::Fsync | Opcode::Fsyncdir | Opcode::Syncfs | Opcode::Fallocate | Opcode::CopyFileRange)
    )
}
