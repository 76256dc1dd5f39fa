//! Kernels of a few bytes, for tests and measurements: an ELF image with a PVH entry around a piece of machine code.
//!
//! The code starts in flat 32-bit mode with interrupts off, `ebx` holding the start info, at [`ENTRY`], and has no stack.
//! A KVM that cannot run Linux runs these.

use std::io::{self, Seek, Write};
use std::os::fd::OwnedFd;

/// Where the code is loaded and started.
pub const ENTRY: u32 = 0x10_0000;

const EHDR: u16 = 64;
const PHDR: u16 = 56;
const NOTE: u16 = EHDR + 2 * PHDR;
const NOTE_SIZE: u16 = 20;
const CODE: u16 = 256;

/// An image of `code`, as `--kernel` and a boot request take it.
#[must_use]
pub fn image(code: &[u8]) -> Vec<u8> {
    let mut image = Vec::new();
    let mut put = |bytes: &[u8]| image.extend_from_slice(bytes);
    put(b"\x7fELF\x02\x01\x01"); // 64-bit, little endian
    put(&[0; 9]);
    put(&2u16.to_le_bytes()); // an executable
    put(&62u16.to_le_bytes()); // for x86-64
    put(&1u32.to_le_bytes());
    put(&u64::from(ENTRY).to_le_bytes());
    put(&u64::from(EHDR).to_le_bytes()); // program headers
    put(&[0; 12]); // no section headers, no flags
    for half in [EHDR, PHDR, 2, 0, 0, 0] {
        put(&half.to_le_bytes());
    }
    let mut segment = |kind: u32, offset: u16, address: u32, size: u64| {
        put(&kind.to_le_bytes());
        put(&7u32.to_le_bytes()); // read, write, execute
        for number in [u64::from(offset), address.into(), address.into(), size, size, 4] {
            put(&number.to_le_bytes());
        }
    };
    segment(1, CODE, ENTRY, code.len() as u64);
    segment(4, NOTE, 0, NOTE_SIZE.into());
    // The note: 4 bytes of name, 4 of content, of the kind XEN_ELFNOTE_PHYS32_ENTRY.
    for word in [4, 4, 18, u32::from_le_bytes(*b"Xen\0"), ENTRY] {
        put(&word.to_le_bytes());
    }
    image.resize(CODE.into(), 0);
    image.extend_from_slice(code);
    image
}

/// The image as an anonymous file.
///
/// # Errors
/// When no memory or descriptor is left.
pub fn file(code: &[u8]) -> io::Result<std::fs::File> {
    let fd: OwnedFd = nix::sys::memfd::memfd_create(c"kernel", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
    let mut file = std::fs::File::from(fd);
    file.write_all(&image(code))?;
    file.rewind()?;
    Ok(file)
}

/// Declares `$name`, a function that returns the machine code assembled from the lines that follow: 32-bit, Intel's
/// syntax. A label's address is `label - name_start + 0x100000`.
#[macro_export]
macro_rules! micro_guest {
    ($name:ident, $($line:expr),+ $(,)?) => {
        std::arch::global_asm!(
            concat!(".pushsection .rodata.micro_guest_", stringify!($name), ", \"a\""),
            concat!(".globl micro_guest_", stringify!($name), "_start"),
            concat!("micro_guest_", stringify!($name), "_start:"),
            ".code32",
            $($line,)+
            ".code64",
            concat!(".globl micro_guest_", stringify!($name), "_end"),
            concat!("micro_guest_", stringify!($name), "_end:"),
            ".popsection",
        );

        fn $name() -> &'static [u8] {
            unsafe extern "C" {
                #[link_name = concat!("micro_guest_", stringify!($name), "_start")]
                static START: u8;
                #[link_name = concat!("micro_guest_", stringify!($name), "_end")]
                static END: u8;
            }
            let (start, end) = (&raw const START, &raw const END);
            // SAFETY: both symbols are defined above, in this order, in one section; the code's bytes lie between them.
            unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
        }
    };
}
