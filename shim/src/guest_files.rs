//! The guest's kernel and root image: whether they are what they should be, and whole, and what they say of themselves.
//!
//! A file that is cut short makes a guest fail in ways that do not name it, so each start looks at the headers; that
//! takes microseconds.

use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// `EROFS_SUPER_MAGIC_V1`, and where the superblock is (Linux, `fs/erofs/erofs_fs.h`).
const EROFS_MAGIC: u32 = 0xE0F5_E1E2;
const EROFS_SUPER: u64 = 1024;
/// Size of an ELF file's header, and the most program headers a kernel is given room for, in bytes.
const ELF_HEADER: usize = 64;
const ELF_PROGRAM_HEADER: usize = 56;
const MAX_PROGRAM_HEADERS: u16 = 64;
/// The start of the line every kernel carries (`linux_banner`).
const BANNER: &[u8] = b"Linux version ";

#[derive(Debug, thiserror::Error)]
pub enum GuestFileError {
    #[error("{}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is not an uncompressed x86-64 kernel (vmlinux)", .0.display())]
    NotKernel(PathBuf),
    #[error("{} is not an erofs image", .0.display())]
    NotErofs(PathBuf),
    #[error("{} is cut short: {have} bytes of {need}", path.display())]
    Truncated { path: PathBuf, have: u64, need: u64 },
}

/// Opens a kernel that is whole, by what its headers say.
///
/// # Errors
/// [`GuestFileError`].
pub(crate) fn open_kernel(path: &Path) -> Result<File, GuestFileError> {
    open(path, elf_end, GuestFileError::NotKernel)
}

/// Opens a root image that is whole, by what its superblock says.
///
/// # Errors
/// [`GuestFileError`].
pub(crate) fn open_image(path: &Path) -> Result<File, GuestFileError> {
    open(path, erofs_end, GuestFileError::NotErofs)
}

fn open(
    path: &Path,
    end: fn(&File) -> Option<u64>,
    stranger: fn(PathBuf) -> GuestFileError,
) -> Result<File, GuestFileError> {
    let failed = |source| GuestFileError::Read { path: path.into(), source };
    let file = File::open(path).map_err(failed)?;
    let need = end(&file).ok_or_else(|| stranger(path.into()))?;
    let have = file.metadata().map_err(failed)?.len();
    if need <= have { Ok(file) } else { Err(GuestFileError::Truncated { path: path.into(), have, need }) }
}

/// Where the last segment of an x86-64 ELF file ends. The VMM reads these headers again, by itself (`boot.rs`): it may trust no
/// check of another process, and asks another question, where the kernel ends in memory.
fn elf_end(file: &File) -> Option<u64> {
    let header: [u8; ELF_HEADER] = read(file, 0)?;
    let u16_at = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    // 64 bits, little endian; EM_X86_64; program headers of the size this format has.
    let known = header.starts_with(b"\x7fELF\x02\x01") && u16_at(18) == 62;
    let (size, count) = (u16_at(54), u16_at(56));
    if !known || usize::from(size) != ELF_PROGRAM_HEADER || count == 0 || count > MAX_PROGRAM_HEADERS {
        return None;
    }
    let first = u64_at(&header, 32)?;
    (0..u64::from(count)).try_fold(0, |end: u64, number| {
        let at = first.checked_add(number * u64::from(size))?;
        // A header beyond the end of the file counts as needed, so that the file is called short.
        let Some(segment) = read::<ELF_PROGRAM_HEADER>(file, at) else {
            return Some(end.max(at.checked_add(u64::from(size))?));
        };
        Some(end.max(u64_at(&segment, 8)?.checked_add(u64_at(&segment, 32)?)?))
    })
}

/// Where the last block of an erofs image ends.
fn erofs_end(file: &File) -> Option<u64> {
    let superblock: [u8; 64] = read(file, EROFS_SUPER)?;
    let u32_at = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|n| superblock[at + n]));
    let block_bits = superblock[12];
    (u32_at(0) == EROFS_MAGIC && block_bits <= 16).then(|| u64::from(u32_at(36)) << block_bits)
}

fn read<const N: usize>(file: &File, at: u64) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    file.read_exact_at(&mut bytes, at).ok().map(|()| bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// The version of a kernel, such as `6.12.48`.
///
/// # Errors
/// [`GuestFileError`].
pub(crate) fn kernel_version(path: &Path) -> Result<String, GuestFileError> {
    open_kernel(path)?;
    let image = read_all(path)?;
    let at = image.windows(BANNER.len()).position(|window| window == BANNER);
    let at = at.ok_or_else(|| GuestFileError::NotKernel(path.into()))?;
    let version = image[at + BANNER.len()..].split(|byte| *byte == b' ').next().unwrap_or_default();
    Ok(String::from_utf8_lossy(version).into_owned())
}

/// What tells one root image from another: the beginning of its SHA-256.
///
/// # Errors
/// [`GuestFileError`].
pub(crate) fn image_version(path: &Path) -> Result<String, GuestFileError> {
    open_image(path)?;
    Ok(Sha256::digest(read_all(path)?).iter().take(6).map(|byte| format!("{byte:02x}")).collect())
}

/// The size of an image, for one that is too large to be hashed each time its version is asked for.
///
/// # Errors
/// [`GuestFileError`].
pub(crate) fn image_size(path: &Path) -> Result<String, GuestFileError> {
    let length = open_image(path)?.metadata().map(|metadata| metadata.len());
    let length = length.map_err(|source| GuestFileError::Read { path: path.into(), source })?;
    Ok(format!("{} MiB", length >> 20))
}

fn read_all(path: &Path) -> Result<Vec<u8>, GuestFileError> {
    fs::read(path).map_err(|source| GuestFileError::Read { path: path.into(), source })
}

#[cfg(test)]
#[path = "guest_files_test.rs"]
mod tests;
