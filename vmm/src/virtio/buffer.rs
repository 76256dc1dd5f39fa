//! The memory of a descriptor chain as one run of bytes, copied to and from files and sockets without a stop in between.

use super::Chain;
use super::chain::Segment;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap, VolatileSlice};

/// The most slices one system call takes (`UIO_MAXIOV`).
const MAX_SLICES: usize = 1024;

/// Guest memory in the order of its descriptors, however it is split. The guest may change it at any time.
#[derive(Debug, Clone)]
pub(super) struct Buffer<'a> {
    memory: &'a GuestMemoryMmap,
    segments: VecDeque<Segment>,
}

impl<'a> Buffer<'a> {
    /// The device-readable and the device-writable part of `chain`.
    pub(super) fn of(memory: &'a GuestMemoryMmap, chain: &Chain) -> (Self, Self) {
        let part = |segments: &Vec<Segment>| Self { memory, segments: segments.clone().into() };
        (part(&chain.readable), part(&chain.writable))
    }

    /// Where the bytes are.
    pub(super) fn segments(&self) -> &VecDeque<Segment> {
        &self.segments
    }

    /// The bytes, for the host's system calls. A chain's segments have been found to be in the guest's memory.
    fn slices(&self) -> impl Iterator<Item = VolatileSlice<'a>> {
        let memory = self.memory;
        self.segments
            .iter()
            .filter_map(move |segment| memory.get_slice(segment.addr, segment.len as usize).ok())
    }

    /// Bytes. No overflow: a chain has at most 2^32.
    pub(super) fn len(&self) -> usize {
        self.segments.iter().map(|segment| segment.len as usize).sum()
    }

    /// The first `count` bytes and the rest; `None` when there are not as many.
    pub(super) fn split_at(self, count: usize) -> Option<(Self, Self)> {
        if count > self.len() {
            return None;
        }
        let (mut head, mut tail) = (self.clone(), self);
        head.truncate(count);
        tail.skip(count);
        Some((head, tail))
    }

    /// Takes `count` bytes off the front.
    pub(super) fn skip(&mut self, count: usize) {
        let mut rest = count;
        while let Some(front) = self.segments.pop_front() {
            let len = front.len as usize;
            if rest < len {
                let skipped = u32::try_from(rest).unwrap_or(u32::MAX);
                let addr = GuestAddress(front.addr.0 + u64::from(skipped));
                return self.segments.push_front(Segment { addr, len: front.len - skipped });
            }
            rest -= len;
        }
    }

    /// Keeps only the first `count` bytes.
    pub(super) fn truncate(&mut self, count: usize) {
        let mut rest = count;
        self.segments.retain_mut(|segment| {
            segment.len = segment.len.min(u32::try_from(rest).unwrap_or(u32::MAX));
            rest -= segment.len as usize;
            segment.len > 0
        });
    }

    /// Copies out as many bytes as fit; returns how many.
    pub(super) fn copy_to(&self, bytes: &mut [u8]) -> usize {
        let mut done = 0;
        for slice in self.slices() {
            done += slice.copy_to(bytes.get_mut(done..).unwrap_or_default());
        }
        done
    }

    /// Copies in as many bytes as fit; returns how many.
    pub(super) fn copy_from(&self, bytes: &[u8]) -> usize {
        let mut done = 0;
        for slice in self.slices() {
            let rest = bytes.get(done..).unwrap_or_default();
            slice.copy_from(rest);
            done += rest.len().min(slice.len());
        }
        done
    }

    /// Copies all bytes to the end of `queue`.
    pub(super) fn append_to(mut self, queue: &mut VecDeque<u8>) {
        let mut bytes = [0; 4096];
        loop {
            let count = self.copy_to(&mut bytes);
            if count == 0 {
                return;
            }
            queue.extend(bytes.get(..count).unwrap_or_default());
            self.skip(count);
        }
    }

    /// Fills the whole buffer from `file` at `offset`.
    ///
    /// # Errors
    /// The file's; `UnexpectedEof` when it is shorter.
    pub(super) fn read_from(self, file: &File, offset: u64) -> io::Result<()> {
        self.transfer(offset, |vectors, offset| {
            // SAFETY: the vectors name guest memory, which is mapped and to which no Rust reference exists.
            unsafe { libc::preadv(file.as_raw_fd(), vectors.as_ptr(), count(vectors), offset) }
        })
    }

    /// Writes the whole buffer to `file` at `offset`.
    ///
    /// # Errors
    /// The file's.
    pub(super) fn write_to(self, file: &File, offset: u64) -> io::Result<()> {
        self.transfer(offset, |vectors, offset| {
            // SAFETY: as above, and the kernel only reads it.
            unsafe { libc::pwritev(file.as_raw_fd(), vectors.as_ptr(), count(vectors), offset) }
        })
    }

    /// Sends as many bytes as `socket` takes at once.
    ///
    /// # Errors
    /// `WouldBlock` when it takes none, and the socket's own.
    pub(super) fn send(&self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        self.with_vectors(|vectors| {
            let message = message(vectors);
            // SAFETY: `message` points at the vectors, and those at guest memory, which is mapped; the kernel only reads
            // it. The guest may write it meanwhile, which is no matter to the kernel, and no Rust reference to it exists.
            unsafe {
                libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
            }
        })
    }

    /// Receives as many bytes as `socket` has at once; 0 at its end of file.
    ///
    /// # Errors
    /// `WouldBlock` when it has none yet, and the socket's own.
    pub(super) fn receive(&self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        self.with_vectors(|vectors| {
            let mut message = message(vectors);
            // SAFETY: `message` points at the vectors, and those at guest memory, which is mapped and is the device's to
            // write. No Rust reference to it exists.
            unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) }
        })
    }

    /// Calls `call` until every byte is through.
    fn transfer(
        mut self,
        offset: u64,
        mut call: impl FnMut(&[libc::iovec], libc::off_t) -> libc::ssize_t,
    ) -> io::Result<()> {
        let mut offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        while !self.segments.is_empty() {
            let moved = self.with_vectors(|vectors| call(vectors, offset))?;
            if moved == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            offset = offset.saturating_add_unsigned(moved as u64);
            self.skip(moved);
        }
        Ok(())
    }

    /// Makes a system call with the first [`MAX_SLICES`] slices; repeats the call when a signal interrupts it. Returns the
    /// bytes moved.
    fn with_vectors(&self, mut call: impl FnMut(&[libc::iovec]) -> libc::ssize_t) -> io::Result<usize> {
        let guards: Vec<_> = self.slices().take(MAX_SLICES).map(|slice| slice.ptr_guard_mut()).collect();
        let vectors: Vec<_> = guards
            .iter()
            .map(|guard| libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() })
            .collect();
        loop {
            match usize::try_from(call(&vectors)) {
                Ok(moved) => return Ok(moved),
                Err(_) => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error => return Err(error),
                },
            }
        }
    }
}

/// The argument of preadv and pwritev; there are at most [`MAX_SLICES`].
fn count(vectors: &[libc::iovec]) -> libc::c_int {
    libc::c_int::try_from(vectors.len()).unwrap_or(libc::c_int::MAX)
}

fn message(vectors: &[libc::iovec]) -> libc::msghdr {
    // SAFETY: all zeroes is a valid message header: no address, no vectors, no control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = vectors.as_ptr().cast_mut();
    message.msg_iovlen = vectors.len();
    message
}

#[cfg(test)]
#[path = "buffer_test.rs"]
mod tests;
