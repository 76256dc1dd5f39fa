//! The guest memory a descriptor chain names, as one sequence of bytes: socket data is copied straight from and to it.

use super::packet::{HEADER_LEN, Header};
use crate::virtio::Chain;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use virtio_queue::desc::split::Descriptor;
use vm_memory::bitmap::{BitmapSlice, MS};
use vm_memory::{GuestMemory, VolatileSlice};

/// The most slices one system call takes (`UIO_MAXIOV`). A chain may have no more descriptors than the queue has, but an
/// indirect table can claim 65535, and they are the device's time.
const MAX_SLICES: usize = 1024;

/// Guest memory, in the order of its descriptors; however those are split. The guest may change it at any time.
pub(super) struct Buffers<'a, B> {
    slices: VecDeque<VolatileSlice<'a, B>>,
}

/// The device-readable part of `chain`, up to the first descriptor that names memory the guest has not.
pub(super) fn readable<M: GuestMemory>(memory: &M, chain: Chain) -> Buffers<'_, MS<'_, M>> {
    collect(memory, chain.readable())
}

/// The device-writable part of `chain`, up to the first descriptor that names memory the guest has not.
pub(super) fn writable<M: GuestMemory>(memory: &M, chain: Chain) -> Buffers<'_, MS<'_, M>> {
    collect(memory, chain.writable())
}

fn collect<M: GuestMemory>(
    memory: &M,
    descriptors: impl Iterator<Item = Descriptor>,
) -> Buffers<'_, MS<'_, M>> {
    let slices = descriptors
        .flat_map(|descriptor| memory.get_slices(descriptor.addr(), descriptor.len() as usize))
        .map_while(Result::ok)
        .take(MAX_SLICES)
        .collect();
    Buffers { slices }
}

impl<B: BitmapSlice> Buffers<'_, B> {
    /// Bytes. No overflow: a chain is at most 2^32 bytes long.
    pub(super) fn len(&self) -> usize {
        self.slices.iter().map(VolatileSlice::len).sum()
    }

    /// Takes the header off the front; `None` if there is not even that much.
    pub(super) fn take_header(&mut self) -> Option<Header> {
        let mut bytes = [0; HEADER_LEN];
        let mut rest = &mut bytes[..];
        while !rest.is_empty() {
            let front = self.slices.front()?;
            let n = front.copy_to(rest);
            self.skip(n);
            rest = &mut rest[n..];
        }
        Some(Header::from_bytes(&bytes))
    }

    /// Splits the first [`HEADER_LEN`] bytes off; `None` if there are not more than that.
    pub(super) fn split_head(mut self) -> Option<(Self, Self)> {
        if self.len() <= HEADER_LEN {
            return None;
        }
        let mut head = Self { slices: self.slices.clone() };
        head.truncate(HEADER_LEN);
        self.skip(HEADER_LEN);
        Some((head, self))
    }

    /// Writes `header` over the first bytes, as far as they reach.
    pub(super) fn put_header(mut self, header: Header) {
        let bytes = header.to_bytes();
        let mut rest = &bytes[..];
        while let Some(front) = self.slices.front().filter(|_| !rest.is_empty()) {
            let n = rest.len().min(front.len());
            front.copy_from(&rest[..n]);
            self.skip(n);
            rest = &rest[n..];
        }
    }

    /// Takes `count` bytes off the front.
    pub(super) fn skip(&mut self, count: usize) {
        let mut rest = count;
        while let Some(front) = self.slices.pop_front() {
            // The offset fails exactly when the whole slice is skipped and more.
            match front.offset(rest) {
                Ok(tail) if !tail.is_empty() => return self.slices.push_front(tail),
                _ => rest -= rest.min(front.len()),
            }
        }
    }

    /// Keeps only the first `count` bytes.
    pub(super) fn truncate(&mut self, count: usize) {
        let mut rest = count;
        for index in 0..self.slices.len() {
            let len = self.slices[index].len();
            if len > rest {
                if let Ok(head) = self.slices[index].subslice(0, rest) {
                    self.slices[index] = head;
                }
                self.slices.truncate(index + 1);
                return;
            }
            rest -= len;
        }
    }

    /// Sends as many bytes as `socket` takes at once.
    ///
    /// # Errors
    /// `WouldBlock` when it takes none, and the socket's own.
    pub(super) fn send(&self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let guards: Vec<_> = self.slices.iter().map(|slice| slice.ptr_guard()).collect();
        let vectors: Vec<_> = guards
            .iter()
            .map(|guard| libc::iovec { iov_base: guard.as_ptr().cast_mut().cast(), iov_len: guard.len() })
            .collect();
        let message = message(&vectors);
        // SAFETY: `message` points at `vectors`, and those at guest memory that the guards keep mapped; the kernel only
        // reads it. That the guest may write it meanwhile is no matter to the kernel, and no Rust reference to it exists.
        retry(|| unsafe {
            libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
        })
    }

    /// Receives as many bytes as `socket` has at once; 0 at its end of file.
    ///
    /// # Errors
    /// `WouldBlock` when it has none yet, and the socket's own.
    pub(super) fn receive(&self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let guards: Vec<_> = self.slices.iter().map(|slice| slice.ptr_guard_mut()).collect();
        let vectors: Vec<_> = guards
            .iter()
            .map(|guard| libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() })
            .collect();
        let mut message = message(&vectors);
        // SAFETY: `message` points at `vectors`, and those at guest memory that the guards keep mapped and that is the
        // device's to write. No Rust reference to it exists.
        let received =
            retry(|| unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) })?;
        let mut rest = received;
        for slice in &self.slices {
            let n = rest.min(slice.len());
            slice.bitmap().mark_dirty(0, n);
            rest -= n;
        }
        Ok(received)
    }

    /// Copies all bytes to the end of `outbox`.
    pub(super) fn append_to(&self, outbox: &mut VecDeque<u8>) {
        let mut chunk = [0; 4096];
        for slice in &self.slices {
            let mut at = 0;
            while let Ok(tail) = slice.offset(at).map(|tail| tail.copy_to(&mut chunk)) {
                if tail == 0 {
                    break;
                }
                outbox.extend(&chunk[..tail]);
                at += tail;
            }
        }
    }
}

fn message(vectors: &[libc::iovec]) -> libc::msghdr {
    // SAFETY: all zeroes is a valid message header: no address, no vectors, no control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = vectors.as_ptr().cast_mut();
    message.msg_iovlen = vectors.len();
    message
}

fn retry(mut call: impl FnMut() -> libc::ssize_t) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(count) => return Ok(count),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
}

#[cfg(test)]
#[path = "buffers_test.rs"]
mod tests;
