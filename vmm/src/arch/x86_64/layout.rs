//! Every physical address of the guest, once.
//!
//! ```text
//!   0            start info, memory map, command line
//!   9_d000       MP table  (reserved up to 10_0000)
//!   10_0000      memory, the kernel at its own address (16 MiB)
//!   c000_0000    gap ── d000_0000 virtio-mmio ── fec0_0000 I/O APIC ── fee0_0000 local APICs ── fffb_d000 KVM's TSS
//!   1_0000_0000  memory above 3 GiB
//! ```

/// The PVH start info.
pub const START_INFO: u64 = 0x6000;
/// The memory map that the start info points to.
pub const MEMORY_MAP: u64 = 0x7000;
/// The kernel's command line.
pub const CMDLINE: u64 = 0x2_0000;
/// Bytes for the command line with its NUL: Linux's `COMMAND_LINE_SIZE` on x86.
pub const CMDLINE_SIZE: usize = 2048;

/// The MP configuration table, below [`MP_POINTER`]: 10 KiB are room for 255 processors.
pub const MP_TABLE: u64 = 0x9_d000;
/// The MP floating pointer: the last KiB of base memory is one of the three places Linux looks at.
pub const MP_POINTER: u64 = 0x9_fc00;
/// Where usable low memory ends.
pub const LOW_MEMORY_END: u64 = MP_TABLE;
/// Where memory goes on after what PCs keep for firmware and video.
pub const HIGH_MEMORY: u64 = 0x10_0000;

/// The gap below 4 GiB that holds devices instead of memory.
pub const GAP: u64 = 0xc000_0000;
/// Where memory goes on after the gap.
pub const GAP_END: u64 = 0x1_0000_0000;

/// The first virtio-mmio device; the others follow.
pub const VIRTIO_MMIO: u64 = 0xd000_0000;
/// Bytes between two virtio-mmio devices, and the size of each.
pub const VIRTIO_MMIO_SIZE: u64 = 0x1000;
/// The interrupt line of the first virtio-mmio device; 0 to 4 are the timer, keyboard, cascade and serial ports.
pub const VIRTIO_MMIO_IRQ: u32 = 5;
/// The last line of the I/O APIC.
pub const IRQ_MAX: u32 = 23;

pub const IO_APIC: u32 = 0xfec0_0000;
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// Three pages that KVM needs for real mode on some of Intel's processors.
pub const KVM_TSS: usize = 0xfffb_d000;

/// Ports of the first 16550, and its interrupt line.
pub const SERIAL: u16 = 0x3f8;
pub const SERIAL_PORTS: u16 = 8;
pub const SERIAL_IRQ: u32 = 4;
/// Ports of the keyboard controller, which resets the machine.
pub const I8042: u16 = 0x60;
pub const I8042_PORTS: u16 = 5;

/// The ranges of memory of a guest that has `bytes`: start and length each.
#[must_use]
pub fn memory_ranges(bytes: u64) -> Vec<(u64, u64)> {
    if bytes <= GAP { vec![(0, bytes)] } else { vec![(0, GAP), (GAP_END, bytes - GAP)] }
}
