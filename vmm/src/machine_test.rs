use super::*;
use crate::micro_guest;
use std::fs::OpenOptions;
use std::io::{self, Write};

/// `/dev/kvm`, or `None` with the reason printed: there is nothing to run guests on then.
fn kvm(test: &str) -> Option<OwnedFd> {
    match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(kvm) => Some(kvm.into()),
        Err(error) => {
            // Not by a macro of std's: the test harness would swallow it.
            let _ = writeln!(io::stderr(), "{test}: skipped, /dev/kvm cannot be opened: {error}");
            None
        }
    }
}

fn run(kvm: OwnedFd, code: &[u8], vcpus: u8) -> (Cause, Vec<String>) {
    let output = Output::new(Box::new(io::sink()));
    let mut machine = Machine::new(kvm, vcpus, 4, output.clone()).unwrap();
    machine.add("rng", Box::new(crate::virtio::rng::Rng), Placement::Shared).unwrap();
    machine.boot(&mut micro_guest::file(code).unwrap(), "quiet").unwrap();
    let ended = machine.run(|| {}).unwrap();
    (ended.cause.clone(), output.tail())
}

micro_guest!(
    prints_and_resets,
    "mov dx, 0x3f8",
    "mov al, 'h'",
    "out dx, al",
    "mov al, 'i'",
    "out dx, al",
    "mov al, 0xfe",
    "out 0x64, al",
    "2: hlt",
    "jmp 2b",
);

#[test]
fn a_reset_ends_the_vm_and_its_last_words_are_kept() {
    let Some(kvm) = kvm("a_reset_ends_the_vm") else { return };
    assert_eq!(run(kvm, prints_and_resets(), 2), (Cause::Reset, vec!["hi".to_owned()]));
}

micro_guest!(faults_without_a_handler, "lidt [0]", "ud2");

#[test]
fn a_triple_fault_is_told_from_a_reset() {
    let Some(kvm) = kvm("a_triple_fault_is_told_from_a_reset") else { return };
    let (cause, _) = run(kvm, faults_without_a_handler(), 1);
    assert_eq!(cause, Cause::Error("the guest's kernel crashed (triple fault)".to_owned()));
}

/// Where the first virtio device is, and what the guests below read of it.
const _: () = assert!(layout::VIRTIO_MMIO == 0xd000_0000);

micro_guest!(
    reads_the_magic_and_prints_it,
    "mov eax, [0xd0000000]",
    "mov dx, 0x3f8",
    "mov ecx, 4",
    "2: out dx, al",
    "shr eax, 8",
    "dec ecx",
    "jnz 2b",
    // Nobody is at the second place: all ones.
    "mov eax, [0xd0001000]",
    "inc eax",
    "jnz 3f",
    "mov al, '!'",
    "out dx, al",
    "3: mov al, 0xfe",
    "out 0x64, al",
    "4: jmp 4b",
);

#[test]
fn a_guest_finds_its_devices_and_nothing_where_there_are_none() {
    let Some(kvm) = kvm("a_guest_finds_its_devices") else { return };
    assert_eq!(run(kvm, reads_the_magic_and_prints_it(), 1), (Cause::Reset, vec!["virt!".to_owned()]));
}

// A whole virtio driver: resets the device, negotiates VERSION_1, sets up queue 0 at 2 MiB, asks the rng for 4 bytes at
// 2 MiB + 0x3000 through the doorbell, waits for the used ring, and prints `r` if the bytes are not all zero.
micro_guest!(
    asks_for_entropy,
    "mov esi, 0xd0000000",
    "mov dword ptr [esi + 0x70], 0",
    "mov dword ptr [esi + 0x70], 1",
    "mov dword ptr [esi + 0x70], 3",
    "mov dword ptr [esi + 0x24], 1",
    "mov dword ptr [esi + 0x20], 1",
    "mov dword ptr [esi + 0x70], 11",
    "mov dword ptr [esi + 0x30], 0",
    "mov dword ptr [esi + 0x38], 8",
    "mov dword ptr [esi + 0x80], 0x200000",
    "mov dword ptr [esi + 0x90], 0x201000",
    "mov dword ptr [esi + 0xa0], 0x202000",
    "mov dword ptr [esi + 0x44], 1",
    "mov dword ptr [esi + 0x70], 15",
    "mov dword ptr [0x200000], 0x203000",
    "mov dword ptr [0x200008], 4",
    "mov dword ptr [0x20000c], 2",
    "mov dword ptr [0x201000], 0x10000",
    "mov dword ptr [esi + 0x50], 0",
    "2: cmp word ptr [0x202002], 1",
    "jne 2b",
    "mov dx, 0x3f8",
    "cmp dword ptr [0x203000], 0",
    "je 3f",
    "mov al, 'r'",
    "out dx, al",
    "3: mov al, 0xfe",
    "out 0x64, al",
    "4: jmp 4b",
);

#[test]
fn a_driver_in_a_guest_gets_an_answer_through_the_doorbell() {
    let Some(kvm) = kvm("a_driver_in_a_guest_gets_an_answer") else { return };
    // One time in 2^32 the entropy is zero.
    assert_eq!(run(kvm, asks_for_entropy(), 1), (Cause::Reset, vec!["r".to_owned()]));
}

micro_guest!(spins, "2: jmp 2b");

#[test]
fn guests_that_spin_or_sleep_are_stopped_at_once() {
    for code in [spins(), sleeps()] {
        let Some(kvm) = kvm("guests_that_spin_or_sleep_are_stopped") else { return };
        let mut machine = Machine::new(kvm, 3, 4, Output::new(Box::new(io::sink()))).unwrap();
        machine.boot(&mut micro_guest::file(code).unwrap(), "").unwrap();
        let stop = machine.stop();
        let ended = machine.run(|| stop.end(Cause::Requested)).unwrap();
        assert_eq!(ended.cause, Cause::Requested);
    }
}

micro_guest!(sleeps, "2: hlt", "jmp 2b");

#[test]
fn there_are_as_many_devices_as_interrupt_lines() {
    let Some(kvm) = kvm("there_are_as_many_devices_as_interrupt_lines") else { return };
    let mut machine = Machine::new(kvm, 1, 4, Output::new(Box::new(io::sink()))).unwrap();
    let mut add = || machine.add("rng", Box::new(crate::virtio::rng::Rng), Placement::Shared);
    for _ in 5..=23 {
        add().unwrap();
    }
    assert!(matches!(add(), Err(MachineError::TooManyDevices)));
    assert!(machine.device_arguments.ends_with(" virtio_mmio.device=4K@0xd0012000:23 "));
}

#[test]
fn devices_are_named_before_the_arguments_of_init() {
    use vm_memory::Bytes;
    let Some(kvm) = kvm("devices_are_named_before_the_arguments_of_init") else { return };
    let mut machine = Machine::new(kvm, 1, 4, Output::new(Box::new(io::sink()))).unwrap();
    machine.add("rng", Box::new(crate::virtio::rng::Rng), Placement::Shared).unwrap();
    machine.boot(&mut micro_guest::file(b"").unwrap(), "quiet -- -l").unwrap();
    let expected = b"virtio_mmio.device=4K@0xd0000000:5 quiet -- -l\0";
    let mut line = vec![0; expected.len()];
    machine.memory.read_slice(&mut line, GuestAddress(layout::CMDLINE)).unwrap();
    assert_eq!(line, expected);
}

#[test]
fn memory_on_both_sides_of_the_gap_is_usable() {
    let Some(kvm) = kvm("memory_on_both_sides_of_the_gap_is_usable") else { return };
    let machine = Machine::new(kvm, 1, 5 << 10, Output::new(Box::new(io::sink()))).unwrap();
    use vm_memory::Bytes;
    for place in [0, (3 << 30) - 1, 4u64 << 30, (6 << 30) - 1] {
        machine.memory.write_obj(1u8, GuestAddress(place)).unwrap();
    }
    assert!(machine.memory.write_obj(1u8, GuestAddress(3 << 30)).is_err());
}

micro_guest!(
    resets_its_device,
    "mov esi, 0xd0000000",
    "mov dword ptr [esi + 0x70], 3",
    "mov dword ptr [esi + 0x24], 1",
    "mov dword ptr [esi + 0x20], 1",
    "mov dword ptr [esi + 0x70], 11",
    "mov dword ptr [esi + 0x70], 15",
    "mov dword ptr [esi + 0x70], 0",
    "2: jmp 2b",
);

/// Its reset lasts until the sender is dropped, as one that waits for a disk of the host's does; it ends the VM first.
struct Hanging(Stop, std::sync::mpsc::Receiver<()>);

impl VirtioDevice for Hanging {
    fn id(&self) -> u32 {
        2
    }
    fn queue_sizes(&self) -> &[u16] {
        &[16]
    }
    fn activate(&mut self, _: u64) -> Result<Vec<crate::virtio::Watch>, crate::virtio::DeviceError> {
        Ok(Vec::new())
    }
    fn notified(
        &mut self,
        _: usize,
        _: &mut crate::virtio::Queues,
    ) -> Result<(), crate::virtio::DeviceError> {
        Ok(())
    }
    fn reset(&mut self) {
        self.0.end(Cause::Requested);
        let _ = self.1.recv();
    }
}

#[test]
fn the_end_is_told_while_a_vcpu_waits_for_a_device_that_hangs() {
    let Some(kvm) = kvm("the_end_is_told_while_a_vcpu_waits") else { return };
    let mut machine = Machine::new(kvm, 1, 4, Output::new(Box::new(io::sink()))).unwrap();
    let (hold, hanging) = std::sync::mpsc::channel();
    let device = Hanging(machine.stop(), hanging);
    machine.add("hanging", Box::new(device), Placement::Own).unwrap();
    machine.boot(&mut micro_guest::file(resets_its_device()).unwrap(), "").unwrap();
    let ended = machine.run(|| {}).unwrap();
    assert_eq!(ended.cause, Cause::Requested);
    drop(hold);
}
