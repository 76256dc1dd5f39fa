use super::*;
use crate::console::Output;
use crate::hypervisor::Bus as _;
use proptest::prelude::*;
use std::io;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

fn bus() -> (Bus, Output, Stop) {
    let output = Output::new(Box::new(io::sink()));
    let serial = Serial::new(EventFd::new(EFD_NONBLOCK).unwrap(), output.clone());
    let stop = Stop::new().unwrap();
    (Bus::new(Arc::new(Mutex::new(serial)), Vec::new(), stop.clone()), output, stop)
}

#[test]
fn what_nobody_answers_reads_as_ones() {
    let (bus, ..) = bus();
    let mut data = [0; 4];
    bus.port_read(0x1234, &mut data);
    assert_eq!(data, [0xff; 4]);
    let mut data = [0; 8];
    for address in [0xd000_0000, 0xfeb0_0000, u64::MAX] {
        bus.memory_read(address, &mut data);
        assert_eq!(data, [0xff; 8]);
        bus.memory_write(address, &data);
    }
}

#[test]
fn the_serial_port_prints_and_is_ready_for_more() {
    let (bus, output, _) = bus();
    bus.port_write(layout::SERIAL, b"ab");
    let mut line_status = [0];
    bus.port_read(layout::SERIAL + 5, &mut line_status);
    assert_eq!((output.tail(), line_status[0] & 0x20), (vec!["ab".to_owned()], 0x20));
}

#[test]
fn the_reset_command_ends_the_vm_and_nothing_else_does() {
    let (bus, _, stop) = bus();
    let mut status = [0xff];
    bus.port_read(0x64, &mut status);
    assert_eq!(status, [0], "the keyboard controller is always ready");
    bus.port_write(0x60, &[0xfe]);
    bus.port_write(0x64, &[0xd1]);
    assert_eq!(stop.cause(), None);
    bus.port_write(0x64, &[0xfe]);
    assert_eq!(stop.cause(), Some(&Cause::Reset));
}

proptest! {
    #[test]
    fn any_access_is_survived(accesses in prop::collection::vec((any::<u64>(), any::<[u8; 8]>(), 0usize..9), 0..50)) {
        let (bus, ..) = bus();
        for (place, mut data, width) in accesses {
            let port = u16::try_from(place & 0xffff).unwrap();
            bus.port_write(port, &data[..width]);
            bus.memory_write(place, &data[..width]);
            bus.port_read(port, &mut data[..width]);
            bus.memory_read(place, &mut data[..width]);
        }
    }
}
