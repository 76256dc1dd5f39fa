use super::*;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;

fn file(bytes: u64) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(bytes).unwrap();
    file
}

#[test]
fn what_is_no_disk_is_refused_and_the_disk_stays_empty() {
    let named = tempfile::NamedTempFile::new().unwrap();
    named.as_file().set_len(4096).unwrap();
    let open = |options: &mut OpenOptions| options.open(named.path()).unwrap();
    let (reader, _writer) = io::pipe().unwrap();
    let slot = Slot::new(false).unwrap();
    let refusals = [
        (
            File::from(std::os::fd::OwnedFd::from(reader)),
            "the descriptor is neither of a file nor of a block device",
        ),
        (File::open("/").unwrap(), "the descriptor is neither of a file nor of a block device"),
        (File::open("/dev/null").unwrap(), "the descriptor is neither of a file nor of a block device"),
        (open(OpenOptions::new().read(true)), "the descriptor is not open for reading and writing"),
        (open(OpenOptions::new().write(true)), "the descriptor is not open for reading and writing"),
        (
            open(OpenOptions::new().read(true).custom_flags(libc::O_PATH)),
            "the descriptor is not open for reading and writing",
        ),
        (file(511), "the file is smaller than a sector"),
    ];
    for (file, why) in refusals {
        assert_eq!(slot.attach(file).unwrap_err().to_string(), why);
        assert!(slot.backing().is_none());
    }
    slot.attach(file(512)).unwrap();
    // A disk that is only read may have a file that is.
    let slot = Slot::new(true).unwrap();
    slot.attach(open(OpenOptions::new().read(true))).unwrap();
}

#[test]
fn a_disk_keeps_its_first_file() {
    let slot = Slot::new(false).unwrap();
    slot.attach(file(4096 + 511)).unwrap();
    assert!(matches!(slot.attach(file(8192)), Err(AttachError::Attached)));
    assert_eq!(slot.backing().unwrap().capacity, 4096);
    let mut sectors = [0; 8];
    slot.config().read(0, &mut sectors);
    assert_eq!(u64::from_le_bytes(sectors), 8);
    assert_eq!(slot.wake().read().unwrap(), 1, "the driver is told once");
}

#[test]
fn of_many_who_attach_at_once_one_does() {
    let slot = Slot::new(false).unwrap();
    let together = std::sync::Barrier::new(4);
    let attach = || {
        let file = file(4096);
        together.wait();
        slot.attach(file).is_ok()
    };
    let attached = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(attach)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).filter(|done| *done).count()
    });
    assert_eq!(attached, 1);
}
