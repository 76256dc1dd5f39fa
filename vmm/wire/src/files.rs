//! How many files of the shared tree a guest may hold. The VMM enforces the number, and the shim counts the host's memory for so many
//! files in the limit of the VMM's cgroup.
//!
//! A file that the guest has looked up costs the host a descriptor until the guest forgets the file, and the descriptor keeps the
//! file's inode in the memory of the host's kernel. An open file costs one descriptor more. Linux forgets a file only when it wants
//! the memory of its own inode back, which is some 1,090 bytes (`fuse_inode`, `dentry`). So a guest with memory to spare keeps what it
//! has looked up, and the number must be enough for honest work:
//!
//! | memory  | files   | which is enough for                                               | memory of the host's, at most |
//! |---------|---------|-------------------------------------------------------------------|---------|
//! | 128 MiB | 32,768  | an image's files and a small project                              | 80 MiB  |
//! | 512 MiB | 131,072 | a `node_modules` of 100,000 files, its directories, and the image | 320 MiB |
//! | 1 GiB   | 163,840 | a kernel tree (some 93,000) with what a build of it makes         | 400 MiB |
//! | 4 GiB   | 360,448 | the same with all of its modules                                  | 880 MiB |

/// The most files, whatever the memory: the descriptors that a process of Linux may have (`fs.nr_open`) but for 2,048 of the VMM's own.
const MAX_FILES: u64 = (1 << 20) - 2048;
/// What a file costs the host, bytes: on ext4 1,512 of its kernel's (inode 1,128, dentry and open file 192 each), on overlayfs
/// over it 2,408 (a second inode of 704, a second dentry), and some 200 of the VMM's own.
pub const FILE_BYTES: u64 = 2560;
/// Files for each MiB up to [`FIRST_MIB`]; these alone would take 280 KiB of each MiB of the guest's.
const FILES_PER_FIRST_MIB: u64 = 256;
const FIRST_MIB: u64 = 512;
/// Files for each further MiB.
const FILES_PER_FURTHER_MIB: u64 = 64;

/// The most files that a guest with so much memory may hold at a time, looked up or open. A request for one more fails with `ENFILE`
/// until the guest forgets or closes a file.
#[must_use]
pub fn max_files(memory_mib: u64) -> u64 {
    let first = memory_mib.min(FIRST_MIB) * FILES_PER_FIRST_MIB;
    let further = memory_mib.saturating_sub(FIRST_MIB).saturating_mul(FILES_PER_FURTHER_MIB);
    first.saturating_add(further).min(MAX_FILES)
}

#[cfg(test)]
#[path = "files_test.rs"]
mod tests;
