//! Guest memory as the vectors of one readv(2) or writev(2).
//!
//! The other views of a chain in this folder allocate for each; here packets go by the million, so a list is filled and
//! emptied again and again. The vectors of several chains follow one another, so that one read fills them all.

use crate::virtio::chain::Segment;
use std::sync::Arc;
use vm_memory::{GuestMemory, GuestMemoryMmap};

/// The most vectors of one system call (`UIO_MAXIOV`).
pub(super) const MAX_VECTORS: usize = 1024;
/// The most vectors of one chain. Linux needs 19; a guest that cuts a packet finer wastes its own packet.
pub(super) const MAX_CHAIN_VECTORS: usize = 256;

/// A chain that is not taken: it is cut into more than [`MAX_CHAIN_VECTORS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unfit;

/// A list of vectors, all of them in the memory of one guest.
pub(super) struct Vectors {
    /// Keeps mapped what the vectors name.
    memory: Arc<GuestMemoryMmap>,
    list: Vec<libc::iovec>,
    /// The vectors before this one are done with.
    start: usize,
}

// SAFETY: the vectors point into the mapping that `memory` keeps, which belongs to no thread. They are given to system
// calls and to volatile accesses only; no Rust reference to what they name exists.
unsafe impl Send for Vectors {}

impl Vectors {
    /// An empty list for vectors in `memory`.
    pub(super) fn new(memory: &Arc<GuestMemoryMmap>) -> Self {
        Self { memory: Arc::clone(memory), list: Vec::with_capacity(2 * MAX_VECTORS), start: 0 }
    }

    /// Vectors that are not done with.
    pub(super) fn len(&self) -> usize {
        self.list.len() - self.start
    }

    pub(super) fn clear(&mut self) {
        self.list.clear();
        self.start = 0;
    }

    /// Appends the memory of `segments`; returns how many vectors and bytes those are. Nothing is appended on an error.
    pub(super) fn append(&mut self, segments: &[Segment]) -> Result<(usize, usize), Unfit> {
        let before = self.list.len();
        let appended = self.try_append(segments);
        if appended.is_err() {
            self.list.truncate(before);
        }
        appended.map(|bytes| (self.list.len() - before, bytes))
    }

    fn try_append(&mut self, segments: &[Segment]) -> Result<usize, Unfit> {
        if segments.len() > MAX_CHAIN_VECTORS || self.len() + segments.len() > MAX_VECTORS {
            return Err(Unfit);
        }
        let mut bytes = 0usize;
        for segment in segments {
            let slice = self.memory.get_slice(segment.addr, segment.len as usize).map_err(|_| Unfit)?;
            let guard = slice.ptr_guard_mut();
            if guard.len() > 0 {
                self.list.push(libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() });
                // A chain has at most 2^32 bytes.
                bytes += guard.len();
            }
        }
        Ok(bytes)
    }

    /// Is done with the first `count` vectors.
    pub(super) fn drop_front(&mut self, count: usize) {
        self.start += count.min(self.len());
        if self.start == self.list.len() {
            self.clear();
        } else if self.start >= MAX_VECTORS {
            self.list.drain(..self.start);
            self.start = 0;
        }
    }

    /// Forgets the last `count` vectors.
    pub(super) fn drop_back(&mut self, count: usize) {
        self.list.truncate(self.list.len() - count.min(self.len()));
    }

    /// Moves the first `bytes.len()` bytes out, and is done with them; false when there are not as many.
    pub(super) fn take(&mut self, bytes: &mut [u8]) -> bool {
        for byte in bytes {
            let Some(first) = self.list.get_mut(self.start) else { return false };
            // SAFETY: no vector is empty, so that its first byte is guest memory, which `memory` keeps mapped.
            *byte = unsafe { first.iov_base.cast::<u8>().read_volatile() };
            // SAFETY: within the vector, or one past its end.
            first.iov_base = unsafe { first.iov_base.byte_add(1) };
            first.iov_len -= 1;
            if first.iov_len == 0 {
                self.start += 1;
            }
        }
        true
    }

    /// Writes `bytes` at `offset` from the first byte on, as far as the vectors reach.
    pub(super) fn put(&mut self, offset: usize, bytes: &[u8]) {
        let mut skip = offset;
        let mut bytes = bytes.iter();
        for vector in self.list.iter().skip(self.start) {
            if skip >= vector.iov_len {
                skip -= vector.iov_len;
                continue;
            }
            for place in skip..vector.iov_len {
                let Some(byte) = bytes.next() else { return };
                // SAFETY: the place is inside of the vector, which is guest memory that `memory` keeps mapped.
                unsafe { vector.iov_base.cast::<u8>().add(place).write_volatile(*byte) };
            }
            skip = 0;
        }
    }

    /// Calls `call` with all vectors and then `last`.
    pub(super) fn followed_by<T>(&mut self, last: libc::iovec, call: impl FnOnce(&[libc::iovec]) -> T) -> T {
        self.list.push(last);
        let result = call(self.list.get(self.start..).unwrap_or_default());
        self.list.pop();
        result
    }

    /// Calls `call` with `first` and then all vectors.
    pub(super) fn preceded_by<T>(&mut self, first: libc::iovec, call: impl FnOnce(&[libc::iovec]) -> T) -> T {
        // A place that is done with, if there is one; else the list is moved, which it is for no more than a chain.
        let place = if let Some(place) = self.start.checked_sub(1) {
            place
        } else {
            self.list.insert(0, first);
            self.start = 1;
            0
        };
        if let Some(vector) = self.list.get_mut(place) {
            *vector = first;
        }
        call(self.list.get(place..).unwrap_or_default())
    }
}

#[cfg(test)]
#[path = "vectors_test.rs"]
mod tests;
