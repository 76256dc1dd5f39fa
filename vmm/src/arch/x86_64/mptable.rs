//! The MultiProcessor table (Intel's MultiProcessor Specification 1.4, chapter 4), which names the processors and wires
//! interrupt lines to the I/O APIC, for guests without ACPI.

use super::layout;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

const SPECIFICATION: u8 = 4;
const APIC_VERSION: u8 = 0x14;
const ENABLED: u8 = 1;
const BOOT_PROCESSOR: u8 = 2;
const ISA_BUS: u8 = 0;

// Kinds of interrupts.
const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;
const ALL_LOCAL_APICS: u8 = 0xff;

/// Writes the table for vCPUs with APIC ids 0 to `vcpus - 1`.
///
/// # Errors
/// When the guest has no memory there.
pub fn write(memory: &GuestMemoryMmap, vcpus: u8) -> Result<(), GuestMemoryError> {
    memory.write_slice(&table(vcpus), GuestAddress(layout::MP_TABLE))?;
    memory.write_slice(&pointer(), GuestAddress(layout::MP_POINTER))
}

/// 4.1: the floating pointer.
fn pointer() -> Vec<u8> {
    let mut bytes = b"_MP_".to_vec();
    bytes.extend((u32::try_from(layout::MP_TABLE).unwrap_or_default()).to_le_bytes());
    bytes.extend([1, SPECIFICATION, 0]); // length in paragraphs, revision, checksum
    bytes.extend([0; 5]); // features: a table is there; no IMCR
    set_checksum(&mut bytes, 10);
    bytes
}

/// 4.2 and 4.3: the header and the entries.
fn table(vcpus: u8) -> Vec<u8> {
    let io_apic = vcpus; // the first id that no processor has
    let mut entries: Vec<Vec<u8>> = Vec::new();
    for id in 0..vcpus {
        let flags = if id == 0 { ENABLED | BOOT_PROCESSOR } else { ENABLED };
        let mut entry = vec![0, id, APIC_VERSION, flags];
        entry.extend(0x600u32.to_le_bytes()); // signature: a Pentium Pro; Linux asks CPUID
        entry.extend(0x201u32.to_le_bytes()); // features: FPU and APIC
        entry.extend([0; 8]);
        entries.push(entry);
    }
    entries.push([&[1, ISA_BUS], b"ISA   ".as_slice()].concat());
    entries.push([&[2, io_apic, APIC_VERSION, ENABLED], layout::IO_APIC.to_le_bytes().as_slice()].concat());
    // Polarity and trigger as the bus has them: ISA's are active high and edge triggered, as an irqfd is.
    let interrupt = |kind, source, destination, pin| vec![3, kind, 0, 0, ISA_BUS, source, destination, pin];
    let lines = u8::try_from(layout::IRQ_MAX).unwrap_or_default();
    entries.extend((0..=lines).map(|line| interrupt(INT, line, io_apic, line)));
    let local = |kind, pin| vec![4, kind, 0, 0, ISA_BUS, 0, ALL_LOCAL_APICS, pin];
    entries.push(local(EXT_INT, 0));
    entries.push(local(NMI, 1));

    let count = u16::try_from(entries.len()).unwrap_or_default();
    let entries = entries.concat();
    let length = u16::try_from(HEADER + entries.len()).unwrap_or_default();
    let mut bytes = b"PCMP".to_vec();
    bytes.extend(length.to_le_bytes());
    bytes.extend([SPECIFICATION, 0]); // revision, checksum
    bytes.extend(b"LAZARET microVM     "); // who made it: 8 and 12 characters
    bytes.extend([0; 6]); // no OEM table
    bytes.extend(count.to_le_bytes());
    bytes.extend(layout::LOCAL_APIC.to_le_bytes());
    bytes.extend([0; 4]); // no extended table
    bytes.extend(entries);
    set_checksum(&mut bytes, 7);
    bytes
}

/// Bytes of the header (4.2).
const HEADER: usize = 44;

/// Makes all bytes add up to 0.
fn set_checksum(bytes: &mut [u8], place: usize) {
    let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(byte) = bytes.get_mut(place) {
        *byte = sum.wrapping_neg();
    }
}

#[cfg(test)]
#[path = "mptable_test.rs"]
mod tests;
