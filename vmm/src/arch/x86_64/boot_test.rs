use super::*;
use crate::micro_guest;
use proptest::prelude::*;
use std::io::{Seek, Write};

fn memory(mib: usize) -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), mib << 20)]).unwrap()
}

fn file(image: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(image).unwrap();
    file.rewind().unwrap();
    file
}

fn load(image: &[u8]) -> Result<u64, String> {
    load_kernel(&memory(4), &mut file(image)).map_err(|error| error.to_string())
}

#[test]
fn a_kernel_is_loaded_where_it_was_linked() {
    let memory = memory(4);
    let entry = load_kernel(&memory, &mut file(&micro_guest::image(b"the code"))).unwrap();
    assert_eq!(entry, 0x10_0000);
    assert_eq!(memory.read_obj::<[u8; 8]>(GuestAddress(entry)).unwrap(), *b"the code");
}

#[test]
fn what_is_no_kernel_is_refused_in_one_line_that_says_why() {
    for image in [&b""[..], b"short", &[0; 4096], b"#!/bin/sh\n"] {
        assert!(load(image).unwrap_err().contains("not an uncompressed Linux kernel"));
    }
    let good = micro_guest::image(&[0x90; 5000]);
    for cut in [70, 150, 180, 300, good.len() - 1] {
        assert!(load(&good[..cut]).unwrap_err().starts_with("the kernel image is truncated"), "{cut}");
    }
    let mut no_note = good.clone();
    no_note[184] = 17;
    assert!(load(&no_note).unwrap_err().contains("CONFIG_PVH"));
}

#[test]
fn a_kernel_larger_than_memory_is_told_with_numbers() {
    let image = micro_guest::image(&vec![0x90; 4 << 20]);
    let error = load(&image).unwrap_err();
    assert!(error.starts_with("the kernel needs memory up to 6 MiB and the guest has 4 MiB"), "{error}");
    // Its .bss does not fit: nothing of it is in the file.
    let mut image = micro_guest::image(&[0x90; 16]);
    image[64 + 40..64 + 48].copy_from_slice(&(64u64 << 20).to_le_bytes());
    assert!(load(&image).unwrap_err().contains("needs memory up to 66 MiB"));
}

#[test]
fn the_start_info_leads_to_command_line_and_memory_map() {
    let memory =
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4 << 20), (GuestAddress(layout::GAP_END), 2 << 20)])
            .unwrap();
    let place = write_start_info(&memory, "console=hvc0").unwrap();
    let StartInfo(info) = memory.read_obj(GuestAddress(place)).unwrap();
    assert_eq!((info.magic, info.version, info.rsdp_paddr), (0x336e_c578, 1, 0));
    assert_eq!(memory.read_obj::<[u8; 13]>(GuestAddress(info.cmdline_paddr)).unwrap(), *b"console=hvc0\0");
    let map: Vec<_> = (0..u64::from(info.memmap_entries))
        .map(|index| {
            let MemoryMapEntry(entry) =
                memory.read_obj(GuestAddress(info.memmap_paddr + 24 * index)).unwrap();
            (entry.addr, entry.size, entry.type_)
        })
        .collect();
    let expected = [
        (0, 0x9_d000, RAM),
        (0x9_d000, 0x6_3000, RESERVED),
        (0x10_0000, 0x30_0000, RAM),
        (layout::GAP_END, 2 << 20, RAM),
    ];
    assert_eq!(map, expected);
}

#[test]
fn a_command_line_that_linux_would_cut_off_is_refused() {
    let write = |line: &str| write_start_info(&memory(4), line).map_err(|error| error.to_string());
    assert!(write(&"x".repeat(2047)).is_ok());
    assert!(write(&"x".repeat(2048)).unwrap_err().contains("2048 bytes"));
    assert!(write("a\0b").unwrap_err().contains("NUL"));
}

#[test]
fn memory_beyond_three_gib_goes_on_above_four() {
    assert_eq!(layout::memory_ranges(1 << 30), [(0, 1 << 30)]);
    assert_eq!(layout::memory_ranges(3 << 30), [(0, 3 << 30)]);
    assert_eq!(layout::memory_ranges(5 << 30), [(0, 3 << 30), (4 << 30, 2 << 30)]);
}

proptest! {
    /// A damaged image is refused or loaded, never more.
    #[test]
    fn any_damage_is_survived(places in prop::collection::vec((0usize..260, any::<u8>()), 1..12)) {
        let mut image = micro_guest::image(&[0x90; 64]);
        for (place, byte) in places {
            image[place] = byte;
        }
        let _ = load(&image);
    }
}
