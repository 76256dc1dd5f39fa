use super::*;
use crate::event_loop::EventLoop;
use crate::stop::Stop;
use crate::virtio::guest::{available, descriptors, used};
use crate::virtio::rng::Rng;
use crate::virtio::{DeviceError, Watch, Worker};
use lazaret_vmm_wire::Cause;
use proptest::prelude::*;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// A device on a loop, seen through its registers.
struct Rig {
    transport: Transport,
    memory: Arc<GuestMemoryMmap>,
    line: EventFd,
    stop: Stop,
    thread: Option<JoinHandle<EventLoop>>,
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stop.end(Cause::Requested);
        self.thread.take().unwrap().join().unwrap();
    }
}

impl Rig {
    fn new(device: Box<dyn VirtioDevice>) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x20_0000)]).unwrap();
        let memory = Arc::new(memory);
        let line = EventFd::new(EFD_NONBLOCK).unwrap();
        let interrupt = Arc::new(Interrupt::new(line.try_clone().unwrap()));
        let shape = Shape::of(device.as_ref());
        let doorbells = shape.queue_sizes.iter().map(|_| EventFd::new(EFD_NONBLOCK).unwrap()).collect();
        let (worker, handle) = Worker::new("test".into(), device, doorbells).unwrap();
        let transport = Transport::new(shape, Arc::clone(&memory), interrupt, vec![handle]).unwrap();
        let stop = Stop::new().unwrap();
        let mut event_loop = EventLoop::new(stop.clone()).unwrap();
        event_loop.add(Box::new(worker));
        let thread = Some(thread::spawn(|| event_loop.run()));
        Self { transport, memory, line, stop, thread }
    }

    fn read(&self, register: u32) -> u32 {
        let mut data = [0; 4];
        self.transport.read(register.into(), &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&mut self, register: u32, value: u32) {
        self.transport.write(register.into(), &value.to_le_bytes()).unwrap();
    }

    fn status(&mut self, value: u32) -> u32 {
        self.write(VIRTIO_MMIO_STATUS, value);
        self.read(VIRTIO_MMIO_STATUS)
    }

    /// Up to and with FEATURES_OK.
    fn negotiate(&mut self) {
        self.status(ACKNOWLEDGE);
        self.status(ACKNOWLEDGE | DRIVER);
        for (select, value) in [(0, 1 << VIRTIO_RING_F_EVENT_IDX), (1, 1 << (VIRTIO_F_VERSION_1 - 32))] {
            self.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, select);
            self.write(VIRTIO_MMIO_DRIVER_FEATURES, value);
        }
        assert_eq!(self.status(ACKNOWLEDGE | DRIVER | FEATURES_OK), ACKNOWLEDGE | DRIVER | FEATURES_OK);
    }

    fn set_up_queue(&mut self, high: u32) {
        let low = |address: u64| u32::try_from(address).unwrap();
        self.write(VIRTIO_MMIO_QUEUE_SEL, 0);
        self.write(VIRTIO_MMIO_QUEUE_NUM, 16);
        self.write(VIRTIO_MMIO_QUEUE_DESC_LOW, low(descriptors(0)));
        self.write(VIRTIO_MMIO_QUEUE_DESC_HIGH, high);
        self.write(VIRTIO_MMIO_QUEUE_AVAIL_LOW, low(available(0)));
        self.write(VIRTIO_MMIO_QUEUE_AVAIL_HIGH, 0);
        self.write(VIRTIO_MMIO_QUEUE_USED_LOW, low(used(0)));
        self.write(VIRTIO_MMIO_QUEUE_USED_HIGH, 0);
        self.write(VIRTIO_MMIO_QUEUE_READY, 1);
    }

    /// The driver's half of one request of 8 bytes, and the wait for its interrupt.
    fn get_entropy(&mut self) {
        // Descriptor 0: 8 bytes at 1 MiB, written by the device. Event index 0: an interrupt for the first.
        self.memory.write_obj([0x10_0000u64, 8 | 2 << 32], GuestAddress(descriptors(0))).unwrap();
        self.memory.write_obj([0u16, 1, 0], GuestAddress(available(0))).unwrap();
        self.memory.write_obj([0u16, 0], GuestAddress(used(0))).unwrap();
        self.write(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
        wait_for(&self.line);
        assert_eq!(self.memory.read_obj::<u16>(GuestAddress(used(0) + 2)).unwrap(), 1);
    }
}

/// Waits for an event with a deadline.
fn wait_for(line: &EventFd) {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::{AsRawFd, BorrowedFd};
    // SAFETY: the event descriptor outlives the borrow.
    let fd = unsafe { BorrowedFd::borrow_raw(line.as_raw_fd()) };
    let ready = poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::from(10_000u16));
    assert_eq!(ready, Ok(1), "no event in 10 s");
    line.read().unwrap();
}

const READY: u32 = ACKNOWLEDGE | DRIVER | FEATURES_OK;

#[test]
fn a_driver_finds_the_device() {
    let rig = Rig::new(Box::new(Rng));
    assert_eq!(rig.read(VIRTIO_MMIO_MAGIC_VALUE).to_le_bytes(), *b"virt");
    assert_eq!((rig.read(VIRTIO_MMIO_VERSION), rig.read(VIRTIO_MMIO_DEVICE_ID)), (2, 4));
    assert_eq!((rig.read(VIRTIO_MMIO_SHM_LEN_LOW), rig.read(VIRTIO_MMIO_SHM_LEN_HIGH)), (u32::MAX, u32::MAX));
    assert_eq!(rig.read(VIRTIO_MMIO_QUEUE_NUM_MAX), 64);
}

#[test]
fn a_request_goes_through_and_is_acknowledged() {
    let mut rig = Rig::new(Box::new(Rng));
    rig.negotiate();
    rig.set_up_queue(0);
    assert_eq!(rig.status(READY | DRIVER_OK), READY | DRIVER_OK);
    rig.get_entropy();
    assert_eq!(rig.read(VIRTIO_MMIO_INTERRUPT_STATUS), 1);
    rig.write(VIRTIO_MMIO_INTERRUPT_ACK, 1);
    assert_eq!(rig.read(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
}

#[test]
fn a_device_works_again_after_a_reset() {
    let mut rig = Rig::new(Box::new(Rng));
    for _ in 0..3 {
        rig.negotiate();
        rig.set_up_queue(0);
        rig.status(READY | DRIVER_OK);
        rig.get_entropy();
        assert_eq!(rig.status(0), 0);
        assert_eq!((rig.read(VIRTIO_MMIO_QUEUE_READY), rig.read(VIRTIO_MMIO_INTERRUPT_STATUS)), (0, 0));
    }
}

#[test]
fn the_status_moves_by_the_rules_alone() {
    // What is written, one after the other, and what is read at the end.
    let table: &[(&[u32], u32)] = &[
        (&[ACKNOWLEDGE], ACKNOWLEDGE),
        (&[ACKNOWLEDGE | DRIVER], ACKNOWLEDGE | DRIVER),
        (&[DRIVER], 0),
        (&[FEATURES_OK], 0),
        (&[DRIVER_OK], 0),
        (&[READY | DRIVER_OK], 0),
        (&[ACKNOWLEDGE, FEATURES_OK], ACKNOWLEDGE),
        (&[ACKNOWLEDGE, ACKNOWLEDGE | DRIVER, ACKNOWLEDGE | DRIVER | DRIVER_OK], ACKNOWLEDGE | DRIVER),
        // Without VERSION_1 among the accepted features.
        (&[ACKNOWLEDGE, ACKNOWLEDGE | DRIVER, READY], ACKNOWLEDGE | DRIVER),
        // Bits are not taken back but by a reset.
        (&[ACKNOWLEDGE | DRIVER, ACKNOWLEDGE], ACKNOWLEDGE | DRIVER),
        (&[ACKNOWLEDGE | DRIVER, 0], 0),
        (&[ACKNOWLEDGE, ACKNOWLEDGE | FAILED], ACKNOWLEDGE | FAILED),
        (&[ACKNOWLEDGE, ACKNOWLEDGE | FAILED, ACKNOWLEDGE | FAILED | DRIVER], ACKNOWLEDGE | FAILED),
        (&[NEEDS_RESET], 0),
    ];
    for (writes, end) in table {
        let mut rig = Rig::new(Box::new(Rng));
        let last = writes.iter().fold(0, |_, value| rig.status(*value));
        assert_eq!(last, *end, "{writes:?}");
    }
}

#[test]
fn features_that_were_not_offered_are_not_accepted() {
    let mut rig = Rig::new(Box::new(Rng));
    rig.status(ACKNOWLEDGE | DRIVER);
    for (select, value) in [(0, 1 << 5), (1, 1)] {
        rig.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, select);
        rig.write(VIRTIO_MMIO_DRIVER_FEATURES, value);
    }
    assert_eq!(rig.status(READY), ACKNOWLEDGE | DRIVER);
}

#[test]
fn a_queue_is_set_up_only_between_features_and_ready() {
    let mut rig = Rig::new(Box::new(Rng));
    rig.set_up_queue(0);
    assert_eq!(rig.read(VIRTIO_MMIO_QUEUE_READY), 0);
    rig.negotiate();
    rig.write(VIRTIO_MMIO_QUEUE_SEL, 1);
    assert_eq!((rig.read(VIRTIO_MMIO_QUEUE_NUM_MAX), rig.read(VIRTIO_MMIO_QUEUE_READY)), (0, 0));
    rig.write(VIRTIO_MMIO_QUEUE_READY, 1);
    rig.set_up_queue(0);
    assert_eq!(rig.read(VIRTIO_MMIO_QUEUE_READY), 1);
    rig.status(READY | DRIVER_OK);
    rig.write(VIRTIO_MMIO_QUEUE_READY, 0);
    assert_eq!(rig.read(VIRTIO_MMIO_QUEUE_READY), 1);
}

#[test]
fn a_queue_outside_of_memory_asks_for_a_reset() {
    let mut rig = Rig::new(Box::new(Rng));
    rig.negotiate();
    rig.set_up_queue(0x1234);
    assert_eq!(rig.status(READY | DRIVER_OK), READY | NEEDS_RESET);
    assert_eq!(rig.status(0), 0);
}

#[test]
fn other_widths_than_the_registers_have_do_nothing() {
    let mut rig = Rig::new(Box::new(Rng));
    for width in [1, 2, 3, 8] {
        let mut data = vec![0xff; width];
        rig.transport.read(0, &mut data);
        assert_eq!(data, vec![0; width]);
        rig.transport.write(VIRTIO_MMIO_STATUS.into(), &vec![1; width]).unwrap();
        assert_eq!(rig.read(VIRTIO_MMIO_STATUS), 0);
    }
}

/// Counts its resets, and fails when it is kicked.
struct Broken(Arc<AtomicUsize>);

impl VirtioDevice for Broken {
    fn id(&self) -> u32 {
        42
    }
    fn queue_sizes(&self) -> &[u16] {
        &[16]
    }
    fn config(&self) -> &[u8] {
        &[1, 2, 3]
    }
    fn activate(&mut self, _: u64) -> Result<Vec<Watch>, DeviceError> {
        Ok(Vec::new())
    }
    fn notified(&mut self, _: usize, _: &mut Queues) -> Result<(), DeviceError> {
        Err(DeviceError::Driver("nonsense"))
    }
    fn reset(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn a_reset_returns_when_the_device_has_let_go() {
    let resets = Arc::new(AtomicUsize::new(0));
    let mut rig = Rig::new(Box::new(Broken(Arc::clone(&resets))));
    rig.negotiate();
    rig.set_up_queue(0);
    rig.status(READY | DRIVER_OK);
    rig.status(0);
    assert_eq!(resets.load(Ordering::SeqCst), 1);
    // One that never ran has nothing to let go of.
    rig.status(ACKNOWLEDGE);
    rig.status(0);
    assert_eq!(resets.load(Ordering::SeqCst), 1);
}

#[test]
fn a_device_that_fails_ends_its_vm_and_a_reset_does_not_hang() {
    let mut rig = Rig::new(Box::new(Broken(Arc::default())));
    rig.negotiate();
    rig.set_up_queue(0);
    rig.status(READY | DRIVER_OK);
    rig.write(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    wait_for(&rig.stop.event().try_clone().unwrap());
    let Some(Cause::Error(reason)) = rig.stop.cause() else { panic!("{:?}", rig.stop.cause()) };
    assert_eq!(reason, "virtio device test failed: the guest's driver broke the protocol: nonsense");
    let gone = rig.transport.write(VIRTIO_MMIO_STATUS.into(), &[0; 4]);
    assert!(matches!(gone, Err(TransportError::Worker { device_id: 42, .. })));
}

#[test]
fn the_configuration_is_read_in_any_width_and_ends_in_zeros() {
    let rig = Rig::new(Box::new(Broken(Arc::default())));
    for (offset, bytes) in
        [(0, vec![1]), (1, vec![2, 3]), (0, vec![1, 2, 3, 0]), (2, vec![3, 0, 0]), (900, vec![0; 8])]
    {
        let mut data = vec![0xff; bytes.len()];
        rig.transport.read(CONFIG + offset, &mut data);
        assert_eq!(data, bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is written to the registers, the device neither panics nor hangs, and a reset makes it usable.
    #[test]
    fn any_writes_can_be_undone_by_a_reset(
        writes in prop::collection::vec(
            (prop_oneof![0u64..0x120, Just(0x70u64), Just(0x44u64)], prop_oneof![0u32..16, any::<u32>()], 1usize..9),
            0..60,
        )
    ) {
        let mut rig = Rig::new(Box::new(Rng));
        for (offset, value, width) in writes {
            let data = u64::from(value).to_le_bytes();
            // The queue may lie anywhere, and what is found there may be what ends a VM: but not by a panic.
            let _ = rig.transport.write(offset, &data[..width]);
            rig.transport.read(offset, &mut [0; 8][..width]);
        }
        if rig.stop.cause().is_none() && rig.transport.write(VIRTIO_MMIO_STATUS.into(), &[0; 4]).is_ok() {
            rig.negotiate();
            rig.set_up_queue(0);
            prop_assert_eq!(rig.status(READY | DRIVER_OK), READY | DRIVER_OK);
        }
    }
}
