//! virtio-blk (VIRTIO 1.2, 5.2): a disk that is a file or a block device of the host, raw.
//!
//! The disk may be empty at the boot: its capacity is 0, and reads and writes fail. A file is attached later ([`Slot`]), once;
//! the driver is told of the new capacity.
//!
//! What goes wrong with a request is the request's status; it never ends the VM.

mod slot;

pub use slot::{AttachError, Slot};

use super::buffer::Buffer;
use super::{Chain, DeviceError, Queues, Shape, VirtioDevice, Watch};
use nix::fcntl::{FallocateFlags, fallocate};
use slot::Backing;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;

/// Bytes of the sectors in which everything is counted (5.2.4).
const SECTOR: u64 = 512;
const QUEUE_SIZES: [u16; 1] = [256];
/// Data segments of a request: the queue's size less header and status.
const MAX_SEGMENTS: u32 = 254;
/// Bytes of a request's header, and of a segment of a discard.
const HEADER_LEN: usize = 16;
/// Ranges one discard or write-zeroes may name, and sectors of each (2 GiB).
const MAX_RANGES: usize = 16;
const MAX_RANGE_SECTORS: u32 = 1 << 22;
const ID_LEN: usize = VIRTIO_BLK_ID_BYTES as usize;
/// Bytes of `struct virtio_blk_config` up to and with `write_zeroes_may_unmap`.
const CONFIG_LEN: usize = 60;
/// The one descriptor that is watched: a file has been attached.
const ATTACHED: u32 = 0;

/// The device.
#[derive(Debug)]
pub struct Blk {
    slot: Slot,
    read_only: bool,
    id: [u8; ID_LEN],
}

/// What became of a request: `VIRTIO_BLK_S_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Ok,
    IoError,
    Unsupported,
}

impl From<Status> for u8 {
    fn from(status: Status) -> Self {
        let code = match status {
            Status::Ok => VIRTIO_BLK_S_OK,
            Status::IoError => VIRTIO_BLK_S_IOERR,
            Status::Unsupported => VIRTIO_BLK_S_UNSUPP,
        };
        code.to_le_bytes()[0]
    }
}

impl From<io::Error> for Status {
    fn from(error: io::Error) -> Self {
        if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS)) {
            return Self::Unsupported;
        }
        log::warn!("virtio-blk: {error}");
        Self::IoError
    }
}

/// A request's header, copied out of the guest's memory once (`struct virtio_blk_req`).
#[derive(Debug, Clone, Copy)]
struct Request {
    kind: u32,
    sector: u64,
}

impl Request {
    fn parse(bytes: [u8; HEADER_LEN]) -> Self {
        let [a, b, c, d, _, _, _, _, sector @ ..] = bytes;
        Self { kind: u32::from_le_bytes([a, b, c, d]), sector: u64::from_le_bytes(sector) }
    }
}

impl Blk {
    /// A disk that is `file`, whose size is rounded down to sectors; `id` is its serial number, cut off at 20 bytes.
    ///
    /// # Errors
    /// When the file's size cannot be had, or no descriptor is left.
    pub fn new(file: File, read_only: bool, id: &str) -> io::Result<Self> {
        let disk = Self::empty(read_only, id)?;
        disk.slot.fill(Backing::new(file)?);
        Ok(disk)
    }

    /// A disk without a file.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn empty(read_only: bool, id: &str) -> io::Result<Self> {
        let mut id_bytes = [0; ID_LEN];
        id_bytes.iter_mut().zip(id.bytes()).for_each(|(place, byte)| *place = byte);
        Ok(Self { slot: Slot::new(read_only)?, read_only, id: id_bytes })
    }

    /// The handle to attach a file to it.
    #[must_use]
    pub fn slot(&self) -> Slot {
        self.slot.clone()
    }

    /// What the driver is told, for [`Machine::add_parts`](crate::machine::Machine::add_parts): the capacity may change.
    #[must_use]
    pub fn shape(&self) -> Shape {
        Shape { config: self.slot.config(), ..Shape::of(self) }
    }

    /// Serves one chain; returns the bytes written to it.
    fn serve(&self, memory: &GuestMemoryMmap, chain: &Chain) -> Result<u32, DeviceError> {
        let (readable, writable) = Buffer::of(memory, chain);
        let mut header = [0; HEADER_LEN];
        let Some((head, data_out)) = readable.split_at(HEADER_LEN) else {
            return Err(DeviceError::Driver("a block request without its header"));
        };
        head.copy_to(&mut header);
        let room = writable.len();
        let Some((data_in, status)) = room.checked_sub(1).and_then(|data| writable.split_at(data)) else {
            return Err(DeviceError::Driver("a block request without its status"));
        };
        let (answer, written) = match self.execute(Request::parse(header), data_out, data_in) {
            Ok(written) => (Status::Ok, written),
            Err(answer) => (answer, 0),
        };
        status.copy_from(&[answer.into()]);
        // The status counts as written; it is behind the data, so after an error nothing before it is vouched for.
        Ok(u32::try_from(written + 1).unwrap_or(u32::MAX))
    }

    /// Returns the bytes written to `data_in`.
    fn execute(&self, request: Request, data_out: Buffer, data_in: Buffer) -> Result<usize, Status> {
        match request.kind {
            VIRTIO_BLK_T_IN => {
                let length = data_in.len();
                let backing = self.backing()?;
                let offset = backing.place(request.sector, length)?;
                data_in.read_from(&backing.file, offset)?;
                Ok(length)
            }
            VIRTIO_BLK_T_OUT => {
                self.check_writable()?;
                let backing = self.backing()?;
                let offset = backing.place(request.sector, data_out.len())?;
                data_out.write_to(&backing.file, offset)?;
                Ok(0)
            }
            VIRTIO_BLK_T_FLUSH => self.backing()?.file.sync_data().map(|()| 0).map_err(Status::from),
            VIRTIO_BLK_T_GET_ID => Ok(data_in.copy_from(&self.id)),
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => {
                self.check_writable()?;
                self.backing()?.punch(&data_out)?;
                Ok(0)
            }
            _ => Err(Status::Unsupported),
        }
    }

    fn check_writable(&self) -> Result<(), Status> {
        if self.read_only { Err(Status::IoError) } else { Ok(()) }
    }

    fn backing(&self) -> Result<&Backing, Status> {
        self.slot.backing().ok_or(Status::IoError)
    }
}

impl Backing {
    /// The offset in the file of `length` bytes, whole sectors inside of the disk, from `sector` on.
    fn place(&self, sector: u64, length: usize) -> Result<u64, Status> {
        let length = length as u64;
        let start = sector.checked_mul(SECTOR).ok_or(Status::IoError)?;
        let end = start.checked_add(length).ok_or(Status::IoError)?;
        if length.is_multiple_of(SECTOR) && end <= self.capacity { Ok(start) } else { Err(Status::IoError) }
    }

    /// Both a discard and a write of zeros make holes, which read as zeros. Where the host's file system has no holes the
    /// guest is told so, and writes zeros itself.
    fn punch(&self, ranges: &Buffer) -> Result<(), Status> {
        let length = ranges.len();
        if length == 0 || !length.is_multiple_of(HEADER_LEN) || length > MAX_RANGES * HEADER_LEN {
            return Err(Status::IoError);
        }
        let mut bytes = [0; MAX_RANGES * HEADER_LEN];
        ranges.copy_to(&mut bytes);
        let (ranges, _) = bytes.get(..length).unwrap_or_default().as_chunks::<HEADER_LEN>();
        for range in ranges {
            // struct virtio_blk_discard_write_zeroes: sector, number of sectors, flags.
            let [sector @ .., a, b, c, d, _, _, _, _] = *range;
            let sectors = u64::from(u32::from_le_bytes([a, b, c, d]));
            if sectors > u64::from(MAX_RANGE_SECTORS) {
                return Err(Status::IoError);
            }
            let length = usize::try_from(sectors * SECTOR).map_err(|_| Status::IoError)?;
            let start = self.place(u64::from_le_bytes(sector), length)?;
            if length == 0 {
                continue;
            }
            let (Ok(start), Ok(length)) = (i64::try_from(start), i64::try_from(length)) else {
                return Err(Status::IoError);
            };
            let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            fallocate(&self.file, flags, start, length).map_err(io::Error::from)?;
        }
        Ok(())
    }
}

/// `struct virtio_blk_config` (5.2.4).
fn config(sectors: u64) -> [u8; CONFIG_LEN] {
    let sector = u32::try_from(SECTOR).unwrap_or_default();
    let ranges = u32::try_from(MAX_RANGES).unwrap_or_default();
    let mut config = [0; CONFIG_LEN];
    let mut put = |offset: usize, bytes: &[u8]| {
        config.iter_mut().skip(offset).zip(bytes).for_each(|(place, byte)| *place = *byte);
    };
    put(0, &sectors.to_le_bytes());
    put(12, &MAX_SEGMENTS.to_le_bytes()); // seg_max
    put(20, &sector.to_le_bytes()); // blk_size
    for limits in [36, 48] {
        // of discard, and of write zeroes: sectors and ranges at most
        put(limits, &MAX_RANGE_SECTORS.to_le_bytes());
        put(limits + 4, &ranges.to_le_bytes());
    }
    put(44, &8u32.to_le_bytes()); // discard_sector_alignment: a page of the host's file
    put(56, &[1]); // write_zeroes_may_unmap
    config
}

impl VirtioDevice for Blk {
    fn id(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn features(&self) -> u64 {
        let common = 1 << VIRTIO_BLK_F_SEG_MAX | 1 << VIRTIO_BLK_F_BLK_SIZE | 1 << VIRTIO_BLK_F_FLUSH;
        let holes = 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES;
        common | if self.read_only { 1 << VIRTIO_BLK_F_RO } else { holes }
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn activate(&mut self, _: u64) -> Result<Vec<Watch>, DeviceError> {
        // A file that was attached before the driver was ready is told of then: the driver may have looked before.
        let fd = self.slot.wake().as_raw_fd();
        Ok(vec![Watch::Set { fd, token: ATTACHED, events: EventSet::IN }])
    }

    fn notified(&mut self, index: usize, queues: &mut Queues) -> Result<(), DeviceError> {
        let memory = queues.memory().clone();
        while let Some(chain) = queues.pop(index)? {
            let written = self.serve(&memory, &chain)?;
            queues.push(index, chain.head_index(), written)?;
        }
        Ok(())
    }

    fn ready(&mut self, _: u32, _: EventSet, queues: &mut Queues) -> Result<Vec<Watch>, DeviceError> {
        // An error says that another event has taken it.
        let _ = self.slot.wake().read();
        queues.config_changed()?;
        Ok(Vec::new())
    }

    /// The file stays.
    fn reset(&mut self) {}
}

#[cfg(test)]
#[path = "blk_test.rs"]
mod tests;
