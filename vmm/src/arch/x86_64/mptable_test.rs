use super::*;

fn sums_to_zero(bytes: &[u8]) -> bool {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)) == 0
}

#[test]
fn the_pointer_and_the_table_are_what_linux_looks_for() {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
    write(&memory, 3).unwrap();
    let pointer: [u8; 16] = memory.read_obj(GuestAddress(layout::MP_POINTER)).unwrap();
    assert!(pointer.starts_with(b"_MP_") && sums_to_zero(&pointer));
    assert_eq!(u32::from_le_bytes(pointer[4..8].try_into().unwrap()), 0x9_d000);

    let table = table(3);
    let mut in_memory = vec![0; table.len()];
    memory.read_slice(&mut in_memory, GuestAddress(layout::MP_TABLE)).unwrap();
    assert!(in_memory == table && sums_to_zero(&table) && table.starts_with(b"PCMP"));
    assert_eq!(usize::from(u16::from_le_bytes([table[4], table[5]])), table.len());
}

/// Walks the entries: 20 bytes for a processor, 8 for each other kind.
fn entries(table: &[u8]) -> Vec<&[u8]> {
    let mut rest = &table[HEADER..];
    let mut entries = Vec::new();
    while let Some(kind) = rest.first() {
        let (entry, tail) = rest.split_at(if *kind == 0 { 20 } else { 8 });
        entries.push(entry);
        rest = tail;
    }
    entries
}

#[test]
fn every_processor_and_interrupt_line_is_named_once() {
    for vcpus in [1, 2, 8, 254] {
        let table = table(vcpus);
        let entries = entries(&table);
        assert_eq!(entries.len(), usize::from(u16::from_le_bytes([table[34], table[35]])));
        let of_kind = |kind: u8| entries.iter().filter(move |entry| entry[0] == kind);
        let ids: Vec<u8> = of_kind(0).map(|entry| entry[1]).collect();
        assert_eq!(ids, (0..vcpus).collect::<Vec<_>>());
        assert_eq!(of_kind(0).filter(|entry| entry[3] & BOOT_PROCESSOR != 0).count(), 1);
        let lines: Vec<_> = of_kind(3).map(|entry| (entry[5], entry[6], entry[7])).collect();
        assert_eq!(lines, (0..24).map(|line| (line, vcpus, line)).collect::<Vec<_>>());
        assert!(table.len() as u64 <= layout::MP_POINTER - layout::MP_TABLE, "no room for {vcpus}");
    }
}
