use super::*;
use crate::virtio::guest::{DATA, Guest, MEMORY_END, Part, SIZE};
use proptest::prelude::*;
use std::os::unix::fs::{FileExt, MetadataExt};

const HEADER_AT: u64 = DATA;
const STATUS_AT: u64 = DATA + 0x800;
const BUFFER: u64 = DATA + 0x1000;
const SECTORS: u64 = 2048;

struct Disk {
    blk: Blk,
    guest: Guest,
    file: File,
}

impl Disk {
    fn new(read_only: bool) -> Self {
        let file = tempfile::tempfile().unwrap();
        let content: Vec<u8> =
            (0..SECTORS).flat_map(|sector| [(sector % 251).to_le_bytes()[0]; 512]).collect();
        file.write_all_at(&content, 0).unwrap();
        let mut blk = Blk::new(file.try_clone().unwrap(), read_only, "a serial number").unwrap();
        let guest = Guest::new(&mut blk);
        Self { blk, guest, file }
    }

    fn header(&self, kind: u32, sector: u64) {
        let header = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
        self.guest.put(HEADER_AT, &header);
        self.guest.put(STATUS_AT, &[0xaa]);
    }

    /// Runs a request; its status and the bytes written.
    fn request(&mut self, kind: u32, sector: u64, data: &[Part]) -> (u32, u32) {
        self.header(kind, sector);
        let chain = [&[(HEADER_AT, 16, false)], data, &[(STATUS_AT, 1, true)]].concat();
        let written = self.guest.run(&mut self.blk, 0, &chain).unwrap();
        (self.guest.bytes(STATUS_AT, 1)[0].into(), written)
    }
}

fn configuration(blk: &Blk) -> [u8; CONFIG_LEN] {
    let mut config = [0xff; CONFIG_LEN];
    blk.shape().config.read(0, &mut config);
    config
}

#[test]
fn the_configuration_tells_size_and_limits() {
    let disk = Disk::new(false);
    let config = configuration(&disk.blk);
    assert_eq!(config[..8], SECTORS.to_le_bytes());
    assert_eq!(config[12..16], MAX_SEGMENTS.to_le_bytes());
    assert_eq!(config[20..24], 512u32.to_le_bytes());
    assert_eq!(config[36..40], MAX_RANGE_SECTORS.to_le_bytes());
    let read_only = Disk::new(true).blk.features();
    assert_ne!(read_only & 1 << VIRTIO_BLK_F_RO, 0);
    assert_eq!(read_only & 1 << VIRTIO_BLK_F_DISCARD, 0);
}

#[test]
fn a_read_is_gathered_from_the_right_sectors_into_all_buffers() {
    let mut disk = Disk::new(true);
    let parts = [(BUFFER, 512, true), (BUFFER + 0x2000, 100, true), (BUFFER + 0x4000, 412, true)];
    assert_eq!(disk.request(VIRTIO_BLK_T_IN, 7, &parts), (VIRTIO_BLK_S_OK, 1025));
    assert_eq!(disk.guest.bytes(BUFFER, 512), [7; 512]);
    assert_eq!(disk.guest.bytes(BUFFER + 0x2000, 100), [8; 100]);
    assert_eq!(disk.guest.bytes(BUFFER + 0x4000, 412), [8; 412]);
}

#[test]
fn a_write_reaches_the_file_and_only_its_sectors() {
    let mut disk = Disk::new(false);
    disk.guest.put(BUFFER, &[0x77; 1024]);
    let parts = [(BUFFER, 1000, false), (BUFFER + 1000, 24, false)];
    assert_eq!(disk.request(VIRTIO_BLK_T_OUT, 3, &parts), (VIRTIO_BLK_S_OK, 1));
    let mut content = [0; 2048];
    disk.file.read_exact_at(&mut content, 2 * 512).unwrap();
    assert_eq!(
        (&content[..512], &content[512..1536], &content[1536..]),
        (&[2; 512][..], &[0x77; 1024][..], &[5; 512][..])
    );
    assert_eq!(disk.request(VIRTIO_BLK_T_FLUSH, 0, &[]), (VIRTIO_BLK_S_OK, 1));
}

#[test]
fn header_and_status_may_share_descriptors_with_data() {
    let mut disk = Disk::new(false);
    disk.header(VIRTIO_BLK_T_OUT, 9);
    disk.guest.put(HEADER_AT + 16, &[0x11; 512]);
    disk.guest
        .run(&mut disk.blk, 0, &[(HEADER_AT, 5, false), (HEADER_AT + 5, 523, false), (STATUS_AT, 1, true)])
        .unwrap();
    assert_eq!(disk.guest.bytes(STATUS_AT, 1), [0]);
    disk.header(VIRTIO_BLK_T_IN, 9);
    disk.guest.run(&mut disk.blk, 0, &[(HEADER_AT, 16, false), (BUFFER, 513, true)]).unwrap();
    assert_eq!(
        (disk.guest.bytes(BUFFER, 512), disk.guest.bytes(BUFFER + 512, 1)),
        (vec![0x11; 512], vec![0])
    );
}

#[test]
fn an_indirect_table_as_long_as_the_queue_works() {
    let mut disk = Disk::new(true);
    disk.header(VIRTIO_BLK_T_IN, 1);
    // Of different sizes, 1536 bytes in all.
    let sizes = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 500, 11, 1, 1];
    let places: Vec<_> = (0..14).map(|number| BUFFER + number * 600).collect();
    let mut parts = vec![(HEADER_AT, 16, false)];
    parts.extend(places.iter().zip(sizes).map(|(place, size)| (*place, size, true)));
    parts.push((STATUS_AT, 1, true));
    assert_eq!(parts.len(), usize::from(SIZE));
    disk.guest.offer_indirect(0, MEMORY_END - 0x1_0000, &parts);
    disk.blk.notified(0, &mut disk.guest.queues).unwrap();
    assert_eq!(disk.guest.last_used(0).1, 1537);
    let seen: Vec<_> =
        places.iter().zip(sizes).flat_map(|(place, size)| disk.guest.bytes(*place, size as usize)).collect();
    assert_eq!(
        (&seen[..512], &seen[512..1024], &seen[1024..]),
        (&[1; 512][..], &[2; 512][..], &[3; 512][..])
    );
}

#[test]
fn what_is_not_on_the_disk_is_an_error_of_the_request() {
    let mut disk = Disk::new(false);
    let failed = (VIRTIO_BLK_S_IOERR, 1);
    for (sector, length) in
        [(SECTORS, 512), (SECTORS - 1, 1024), (u64::MAX, 512), (u64::MAX / 512 + 1, 512), (0, 511)]
    {
        assert_eq!(disk.request(VIRTIO_BLK_T_IN, sector, &[(BUFFER, length, true)]), failed, "{sector}");
        assert_eq!(disk.request(VIRTIO_BLK_T_OUT, sector, &[(BUFFER, length, false)]), failed, "{sector}");
    }
    assert_eq!(disk.request(VIRTIO_BLK_T_IN, SECTORS - 1, &[(BUFFER, 512, true)]), (VIRTIO_BLK_S_OK, 513));
    // A file that has become shorter.
    disk.file.set_len(1024).unwrap();
    assert_eq!(disk.request(VIRTIO_BLK_T_IN, 5, &[(BUFFER, 512, true)]), failed);
}

#[test]
fn a_read_only_disk_is_not_written_whatever_the_driver_says() {
    let mut disk = Disk::new(true);
    let failed = (VIRTIO_BLK_S_IOERR, 1);
    assert_eq!(disk.request(VIRTIO_BLK_T_OUT, 0, &[(BUFFER, 512, false)]), failed);
    assert_eq!(disk.request(VIRTIO_BLK_T_DISCARD, 0, &[(BUFFER, 16, false)]), failed);
    let mut content = [0xff; 512];
    disk.file.read_exact_at(&mut content, 0).unwrap();
    assert_eq!(content, [0; 512]);
}

#[test]
fn a_discard_makes_a_hole_that_reads_as_zeros() {
    let mut disk = Disk::new(false);
    let before = disk.file.metadata().unwrap().blocks();
    for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        let start = if kind == VIRTIO_BLK_T_DISCARD { 8u64 } else { 1032 };
        let range =
            |sector: u64, count: u32| [&sector.to_le_bytes()[..], &count.to_le_bytes(), &[0; 4]].concat();
        disk.guest.put(BUFFER, &[range(start, 512), range(start + 512, 256)].concat());
        assert_eq!(disk.request(kind, 0, &[(BUFFER, 32, false)]), (VIRTIO_BLK_S_OK, 1));
        let mut content = vec![0xff; 768 * 512];
        disk.file.read_exact_at(&mut content, start * 512).unwrap();
        assert!(content.iter().all(|byte| *byte == 0));
    }
    assert!(disk.file.metadata().unwrap().blocks() < before, "no room was given back");
    assert_eq!(disk.file.metadata().unwrap().len(), SECTORS * 512);

    let beyond = [&(SECTORS - 1).to_le_bytes()[..], &2u32.to_le_bytes(), &[0; 4]].concat();
    disk.guest.put(BUFFER, &beyond);
    for length in [16, 15, 0, 17 * 16] {
        assert_eq!(
            disk.request(VIRTIO_BLK_T_DISCARD, 0, &[(BUFFER, length, false)]),
            (VIRTIO_BLK_S_IOERR, 1)
        );
    }
}

#[test]
fn the_serial_number_and_unknown_requests_are_answered() {
    let mut disk = Disk::new(false);
    assert_eq!(disk.request(VIRTIO_BLK_T_GET_ID, 0, &[(BUFFER, 20, true)]), (VIRTIO_BLK_S_OK, 21));
    assert_eq!(disk.guest.bytes(BUFFER, 20), b"a serial number\0\0\0\0\0");
    assert_eq!(disk.request(0x1234, 0, &[(BUFFER, 20, true)]), (VIRTIO_BLK_S_UNSUPP, 1));
}

#[test]
fn a_chain_without_header_or_status_breaks_the_protocol() {
    for parts in [&[(HEADER_AT, 15, false), (STATUS_AT, 1, true)][..], &[(HEADER_AT, 16, false)], &[]] {
        if parts.is_empty() {
            continue;
        }
        let mut disk = Disk::new(false);
        let error = disk.guest.run(&mut disk.blk, 0, parts).unwrap_err();
        assert!(matches!(error, DeviceError::Driver(_)), "{error}");
    }
}

#[test]
fn a_disk_without_a_file_fails_requests_until_it_has_one_and_then_works() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(SECTORS * 512).unwrap();
    let mut blk = Blk::empty(false, "a serial number").unwrap();
    let guest = Guest::new(&mut blk);
    let mut disk = Disk { blk, guest, file };
    assert_eq!(configuration(&disk.blk)[..8], [0; 8]);
    let range = [&8u64.to_le_bytes()[..], &8u32.to_le_bytes(), &[0; 4]].concat();
    disk.guest.put(BUFFER, &range);
    let requests: [(u32, &[Part]); 5] = [
        (VIRTIO_BLK_T_IN, &[(BUFFER + 0x1000, 512, true)]),
        (VIRTIO_BLK_T_OUT, &[(BUFFER + 0x2000, 512, false)]),
        (VIRTIO_BLK_T_FLUSH, &[]),
        (VIRTIO_BLK_T_DISCARD, &[(BUFFER, 16, false)]),
        (VIRTIO_BLK_T_WRITE_ZEROES, &[(BUFFER, 16, false)]),
    ];
    for (kind, data) in requests {
        assert_eq!(disk.request(kind, 0, data), (VIRTIO_BLK_S_IOERR, 1), "{kind}");
    }
    assert_eq!(disk.request(VIRTIO_BLK_T_GET_ID, 0, &[(BUFFER + 0x1000, 20, true)]), (VIRTIO_BLK_S_OK, 21));
    // What is beyond the end of no disk is no read of nothing either.
    assert_eq!(disk.request(VIRTIO_BLK_T_IN, 0, &[]), (VIRTIO_BLK_S_IOERR, 1));

    disk.blk.slot().attach(disk.file.try_clone().unwrap()).unwrap();
    assert_eq!(configuration(&disk.blk)[..8], SECTORS.to_le_bytes());
    for (kind, data) in requests {
        let written = if kind == VIRTIO_BLK_T_IN { 513 } else { 1 };
        assert_eq!(disk.request(kind, 0, data), (VIRTIO_BLK_S_OK, written), "{kind}");
    }
    // A reset takes nothing back.
    disk.blk.reset();
    assert_eq!(disk.request(VIRTIO_BLK_T_IN, 0, &[(BUFFER, 512, true)]), (VIRTIO_BLK_S_OK, 513));
}

#[test]
fn the_driver_is_told_of_a_file_that_is_attached_before_and_after_it_is_ready() {
    for before in [true, false] {
        let file = tempfile::tempfile().unwrap();
        file.set_len(512).unwrap();
        let mut blk = Blk::empty(false, "").unwrap();
        let slot = blk.slot();
        let attach = || slot.attach(file.try_clone().unwrap()).unwrap();
        if before {
            attach();
        }
        let watches = blk.activate(0).unwrap();
        let fd = slot.wake().as_raw_fd();
        assert_eq!(watches, [Watch::Set { fd, token: ATTACHED, events: EventSet::IN }]);
        let mut guest = Guest::new(&mut blk);
        if !before {
            attach();
        }
        assert_eq!(slot.wake().read().unwrap(), 1, "before: {before}");
        slot.wake().write(1).unwrap();
        assert!(guest.line.read().is_err());
        blk.ready(ATTACHED, EventSet::IN, &mut guest.queues).unwrap();
        assert_eq!(guest.line.read().unwrap(), 1);
        assert!(slot.wake().read().is_err(), "it is told once");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a driver asks, the device answers or ends the VM; it neither panics nor writes beyond the disk.
    #[test]
    fn any_request_is_judged(
        header in any::<[u8; 16]>(),
        kind in 0u32..16,
        sector in prop_oneof![0..SECTORS + 2, any::<u64>()],
        fixed in any::<bool>(),
        parts in prop::collection::vec((DATA..MEMORY_END + 64, 0u32..3000, any::<bool>()), 0..6),
        data in any::<[u8; 32]>(),
    ) {
        let mut disk = Disk::new(false);
        disk.guest.put(BUFFER, &data);
        if fixed { disk.header(kind, sector) } else { disk.guest.put(HEADER_AT, &header) }
        let mut chain = vec![(HEADER_AT, 16, false)];
        chain.extend(parts);
        disk.guest.offer(0, &chain);
        let _ = disk.blk.notified(0, &mut disk.guest.queues);
        prop_assert_eq!(disk.file.metadata().unwrap().len(), SECTORS * 512);
    }
}
