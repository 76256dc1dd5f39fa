//! Direct boot of an uncompressed Linux kernel by the PVH protocol.
//!
//! PVH rather than the 64-bit protocol: the kernel starts in 32-bit mode without paging, so there are no page tables, no
//! descriptor table and no model specific registers for us to write, and the kernel finds its memory map in one small
//! table. A kernel names its PVH entry in an ELF note when it is built with `CONFIG_PVH`.

use super::layout;
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_start_info};
use linux_loader::loader::elf::{Elf, Error as ElfError, PvhBootCapability};
use linux_loader::loader::{Error as LoaderError, KernelLoader};
use std::fs::File;
use vm_memory::{Address, ByteValued, Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryRegion};

const START_MAGIC: u32 = 0x336e_c578;
const RAM: u32 = 1;
const RESERVED: u32 = 2;

/// Why a kernel cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    #[error(
        "the kernel is not an uncompressed Linux kernel for x86-64: give its vmlinux, not bzImage or vmlinuz"
    )]
    NotKernel,
    #[error("the kernel image is truncated or damaged ({0})")]
    Damaged(LoaderError),
    #[error("the kernel needs memory up to {need} MiB and the guest has {have} MiB: give it more memory")]
    TooLarge { need: u64, have: u64 },
    #[error("the kernel has no PVH entry: build it with CONFIG_PVH=y")]
    NoPvh,
    #[error("the kernel command line has {0} bytes, more than the {max} that Linux takes", max = layout::CMDLINE_SIZE - 1)]
    Cmdline(usize),
    #[error("the kernel command line holds a NUL byte")]
    CmdlineNul,
    #[error("cannot write the boot tables into the guest's memory: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// Loads `kernel` at the addresses it was linked for; returns its PVH entry.
///
/// # Errors
/// See [`BootError`].
pub fn load_kernel(memory: &GuestMemoryMmap, kernel: &mut File) -> Result<u64, BootError> {
    let loaded = Elf::load(memory, None, kernel, Some(GuestAddress(layout::HIGH_MEMORY)));
    let have = memory.iter().map(|region| region.len()).sum::<u64>() >> 20;
    let loaded = match loaded {
        Ok(loaded) => loaded,
        Err(LoaderError::Elf(
            ElfError::InvalidElfMagicNumber | ElfError::ReadElfHeader | ElfError::InvalidEntryAddress,
        )) => {
            return Err(BootError::NotKernel);
        }
        Err(error) => {
            // The loader has one error for a file that ends early and for memory that does.
            return Err(match end_of_image(kernel) {
                Some(end) if !memory.address_in_range(GuestAddress(end)) => {
                    BootError::TooLarge { need: (end >> 20) + 1, have }
                }
                _ => BootError::Damaged(error),
            });
        }
    };
    if !memory.address_in_range(GuestAddress(loaded.kernel_end)) {
        return Err(BootError::TooLarge { need: (loaded.kernel_end >> 20) + 1, have });
    }
    match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(entry) => Ok(entry.raw_value()),
        _ => Err(BootError::NoPvh),
    }
}

/// The highest physical address the image's segments reach, as far as its headers can be read.
fn end_of_image(kernel: &File) -> Option<u64> {
    use std::os::unix::fs::FileExt;
    let number = |offset: u64| {
        let mut bytes = [0; 8];
        kernel.read_exact_at(&mut bytes, offset).ok().map(|()| u64::from_le_bytes(bytes))
    };
    // ELF-64: e_phoff at 32, e_phnum at 56; a program header has 56 bytes, p_paddr at 24 and p_memsz at 40.
    let (table, entries) = (number(32)?, number(56)? & 0xffff);
    let ends = (0..entries).filter_map(|entry| {
        let header = table.checked_add(entry * 56)?;
        let is_load = number(header)? & 0xffff_ffff == 1;
        is_load.then_some(())?;
        number(header.checked_add(24)?)?.checked_add(number(header.checked_add(40)?)?)
    });
    ends.max()
}

/// Writes the command line, the memory map and the start info; returns the address of the latter.
///
/// # Errors
/// See [`BootError`].
pub fn write_start_info(memory: &GuestMemoryMmap, cmdline: &str) -> Result<u64, BootError> {
    if cmdline.len() >= layout::CMDLINE_SIZE {
        return Err(BootError::Cmdline(cmdline.len()));
    }
    if cmdline.contains('\0') {
        return Err(BootError::CmdlineNul);
    }
    memory.write_slice(cmdline.as_bytes(), GuestAddress(layout::CMDLINE))?;
    memory.write_obj(0u8, GuestAddress(layout::CMDLINE + cmdline.len() as u64))?;

    let map = memory_map(memory);
    for (address, entry) in (layout::MEMORY_MAP..).step_by(size_of::<MemoryMapEntry>()).zip(&map) {
        memory.write_obj(*entry, GuestAddress(address))?;
    }
    let info = hvm_start_info {
        magic: START_MAGIC,
        version: 1,
        cmdline_paddr: layout::CMDLINE,
        memmap_paddr: layout::MEMORY_MAP,
        memmap_entries: u32::try_from(map.len()).unwrap_or(u32::MAX),
        ..Default::default()
    };
    memory.write_obj(StartInfo(info), GuestAddress(layout::START_INFO))?;
    Ok(layout::START_INFO)
}

fn memory_map(memory: &GuestMemoryMmap) -> Vec<MemoryMapEntry> {
    let entry = |type_, addr, end: u64| {
        MemoryMapEntry(hvm_memmap_table_entry { addr, size: end - addr, type_, reserved: 0 })
    };
    let mut map = vec![
        entry(RAM, 0, layout::LOW_MEMORY_END),
        entry(RESERVED, layout::LOW_MEMORY_END, layout::HIGH_MEMORY),
    ];
    map.extend(memory.iter().map(|region| {
        let start = region.start_addr().raw_value();
        entry(RAM, start.max(layout::HIGH_MEMORY), start + region.len())
    }));
    map
}

#[derive(Clone, Copy, Default)]
#[repr(transparent)]
struct StartInfo(hvm_start_info);
// SAFETY: integers without padding.
unsafe impl ByteValued for StartInfo {}

#[derive(Clone, Copy, Default)]
#[repr(transparent)]
struct MemoryMapEntry(hvm_memmap_table_entry);
// SAFETY: integers without padding.
unsafe impl ByteValued for MemoryMapEntry {}

#[cfg(test)]
#[path = "boot_test.rs"]
mod tests;
