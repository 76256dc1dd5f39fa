use super::*;

fn file(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    fs::write(&path, bytes).unwrap();
    (dir, path)
}

/// A kernel of one segment of 256 bytes at 128, with its banner in it.
fn kernel() -> Vec<u8> {
    let mut image = vec![0; 384];
    image[..6].copy_from_slice(b"\x7fELF\x02\x01");
    image[18] = 62;
    image[32..40].copy_from_slice(&64_u64.to_le_bytes());
    image[54..56].copy_from_slice(&56_u16.to_le_bytes());
    image[56..58].copy_from_slice(&1_u16.to_le_bytes());
    image[64 + 8..64 + 16].copy_from_slice(&128_u64.to_le_bytes());
    image[64 + 32..64 + 40].copy_from_slice(&256_u64.to_le_bytes());
    image[200..229].copy_from_slice(b"Linux version 6.12.48-x (r@v)");
    image
}

fn erofs() -> Vec<u8> {
    let mut image = vec![0; 8192];
    image[1024..1028].copy_from_slice(&EROFS_MAGIC.to_le_bytes());
    image[1024 + 12] = 12;
    image[1024 + 36..1024 + 40].copy_from_slice(&2_u32.to_le_bytes());
    image
}

#[test]
fn files_tell_their_versions() {
    let (_dir, path) = file(&kernel());
    assert_eq!(kernel_version(&path).unwrap(), "6.12.48-x");
    let (_dir, path) = file(&erofs());
    let version = image_version(&path).unwrap();
    assert!(version.len() == 12 && version.bytes().all(|byte| byte.is_ascii_hexdigit()), "{version}");
    let mut other = erofs();
    other[8000] = 1;
    let (_dir, path) = file(&other);
    assert_ne!(image_version(&path).unwrap(), version);
}

#[test]
fn a_file_that_is_cut_short_is_told_from_one_of_another_kind() {
    let (_dir, path) = file(&kernel()[..300]);
    assert!(matches!(kernel_version(&path), Err(GuestFileError::Truncated { have: 300, need: 384, .. })));
    let (_dir, path) = file(&erofs()[..4096]);
    assert!(matches!(image_version(&path), Err(GuestFileError::Truncated { have: 4096, need: 8192, .. })));
    let (_dir, path) = file(b"#!/bin/sh\n");
    assert!(matches!(kernel_version(&path), Err(GuestFileError::NotKernel(_))));
    assert!(matches!(image_version(&path), Err(GuestFileError::NotErofs(_))));
    let (_dir, short) = file(&kernel()[..100]);
    assert!(matches!(open_kernel(&short), Err(GuestFileError::Truncated { have: 100, .. })));
    let absent = path.with_file_name("absent");
    assert!(matches!(kernel_version(&absent), Err(GuestFileError::Read { .. })));
}

#[test]
fn headers_that_lie_are_no_kernel() {
    let mut image = kernel();
    image[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
    let (_dir, path) = file(&image);
    assert!(matches!(kernel_version(&path), Err(GuestFileError::NotKernel(_))));
    let mut image = kernel();
    image[64 + 32..64 + 40].copy_from_slice(&u64::MAX.to_le_bytes());
    let (_dir, path) = file(&image);
    assert!(matches!(kernel_version(&path), Err(GuestFileError::NotKernel(_))));
}
