//! The memory of a descriptor chain as one run of bytes, copied to and from files without a stop in between.

use super::{Chain, DeviceError};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{GuestMemory, GuestMemoryMmap, VolatileSlice};

/// The most slices one system call takes (`UIO_MAXIOV`).
const MAX_SLICES: usize = 1024;

/// Guest memory in the order of its descriptors, however it is split. The guest may change it at any time.
pub(super) struct Buffer<'a> {
    slices: Vec<VolatileSlice<'a>>,
}

impl<'a> Buffer<'a> {
    /// The device-readable and the device-writable part of `chain`.
    ///
    /// # Errors
    /// When a descriptor names memory that the guest has not.
    pub(super) fn of(memory: &'a GuestMemoryMmap, chain: &Chain) -> Result<(Self, Self), DeviceError> {
        Ok((Self::new(memory, chain.clone().readable())?, Self::new(memory, chain.clone().writable())?))
    }

    fn new(
        memory: &'a GuestMemoryMmap,
        descriptors: impl Iterator<Item = Descriptor>,
    ) -> Result<Self, DeviceError> {
        let slices = descriptors
            .flat_map(|descriptor| memory.get_slices(descriptor.addr(), descriptor.len() as usize))
            .collect::<Result<_, _>>()
            .map_err(|_| DeviceError::Driver("a descriptor outside of memory"))?;
        Ok(Self { slices })
    }

    /// Bytes. No overflow: a chain has at most 2^16 descriptors of 2^32 bytes.
    pub(super) fn len(&self) -> usize {
        self.slices.iter().map(VolatileSlice::len).sum()
    }

    /// The first `count` bytes and the rest; `None` when there are not as many.
    pub(super) fn split_at(self, count: usize) -> Option<(Self, Self)> {
        let (mut head, mut tail, mut rest) = (Vec::new(), Vec::new(), count);
        for slice in self.slices {
            let (first, second) = slice.split_at(rest.min(slice.len())).ok()?;
            rest -= first.len();
            head.extend(Some(first).filter(|slice| !slice.is_empty()));
            tail.extend(Some(second).filter(|slice| !slice.is_empty()));
        }
        (rest == 0).then_some((Self { slices: head }, Self { slices: tail }))
    }

    /// Copies out as many bytes as fit; returns how many.
    pub(super) fn copy_to(&self, bytes: &mut [u8]) -> usize {
        let mut done = 0;
        for slice in &self.slices {
            done += slice.copy_to(bytes.get_mut(done..).unwrap_or_default());
        }
        done
    }

    /// Copies in as many bytes as fit; returns how many.
    pub(super) fn copy_from(&self, bytes: &[u8]) -> usize {
        let mut done = 0;
        for slice in &self.slices {
            let rest = bytes.get(done..).unwrap_or_default();
            slice.copy_from(rest);
            done += rest.len().min(slice.len());
        }
        done
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

    /// Calls `call` until every byte is through.
    fn transfer(
        mut self,
        offset: u64,
        mut call: impl FnMut(&[libc::iovec], libc::off_t) -> libc::ssize_t,
    ) -> io::Result<()> {
        let mut offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        self.slices.retain(|slice| !slice.is_empty());
        let mut rest = self.slices.as_mut_slice();
        while !rest.is_empty() {
            let guards: Vec<_> = rest.iter().take(MAX_SLICES).map(|slice| slice.ptr_guard_mut()).collect();
            let vectors: Vec<_> = guards
                .iter()
                .map(|guard| libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() })
                .collect();
            let mut moved = match usize::try_from(call(&vectors, offset)) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(moved) => moved,
                Err(_) => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => continue,
                    error => return Err(error),
                },
            };
            offset = offset.saturating_add_unsigned(moved as u64);
            let whole = rest.iter().take_while(|slice| {
                let fits = slice.len() <= moved;
                moved -= if fits { slice.len() } else { 0 };
                fits
            });
            let whole = whole.count();
            rest = rest.get_mut(whole..).unwrap_or_default();
            if let Some(first) = rest.first_mut()
                && let Ok(tail) = first.offset(moved)
            {
                *first = tail;
            }
        }
        Ok(())
    }
}

/// The argument of preadv and pwritev; there are at most [`MAX_SLICES`].
fn count(vectors: &[libc::iovec]) -> libc::c_int {
    libc::c_int::try_from(vectors.len()).unwrap_or(libc::c_int::MAX)
}
