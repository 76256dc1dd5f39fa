//! Pauses of micro-guests on the local /dev/kvm, as the shim asks for them.

use super::*;
use crate::micro_guest;
use crate::virtio::{DeviceError, Queues, VirtioDevice, Watch};
use std::fs::OpenOptions;
use std::io::Write;
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const LONG: Duration = Duration::from_secs(20);
/// Where the guests count.
const COUNTS: u64 = 0x20_0000;

micro_guest!(counts, "2: inc dword ptr [0x200000]", "jmp 2b");

// Counts what a device and a port answer as long as they answer rightly; then resets. The device is at 0xd0000000 and says
// "virt"; at port 0x80 there is nothing.
micro_guest!(
    counts_right_answers,
    "mov esi, 0xd0000000",
    "2: mov eax, [esi]",
    "cmp eax, 0x74726976",
    "jne 3f",
    "mov al, 0",
    "in al, 0x80",
    "cmp al, 0xff",
    "jne 3f",
    "inc dword ptr [0x200000]",
    "jmp 2b",
    "3: mov al, 0xfe",
    "out 0x64, al",
    "4: jmp 4b",
);

// Resets a device, which waits; then counts.
micro_guest!(
    waits_for_a_device_and_counts,
    "mov esi, 0xd0000000",
    "mov dword ptr [esi + 0x70], 3",
    "mov dword ptr [esi + 0x24], 1",
    "mov dword ptr [esi + 0x20], 1",
    "mov dword ptr [esi + 0x70], 11",
    "mov dword ptr [esi + 0x70], 15",
    "mov dword ptr [0x200004], 1",
    "mov dword ptr [esi + 0x70], 0",
    "2: inc dword ptr [0x200000]",
    "jmp 2b",
);
/// Set when the device is about to be reset.
const RESETS: u64 = COUNTS + 4;

/// Its reset waits for the test.
struct Slow(Receiver<()>);

impl VirtioDevice for Slow {
    fn id(&self) -> u32 {
        2
    }
    fn queue_sizes(&self) -> &[u16] {
        &[16]
    }
    fn activate(&mut self, _: u64) -> Result<Vec<Watch>, DeviceError> {
        Ok(Vec::new())
    }
    fn notified(&mut self, _: usize, _: &mut Queues) -> Result<(), DeviceError> {
        Ok(())
    }
    fn reset(&mut self) {
        let _ = self.0.recv();
    }
}

/// A running guest, and the shim's end of its channel.
struct Guest {
    channel: Channel,
    memory: Arc<GuestMemoryMmap>,
    running: Option<JoinHandle<Cause>>,
}

impl Guest {
    /// `None`, with the reason printed, when there is no KVM to run on.
    fn run(test: &str, code: &[u8], vcpus: u8, device: Box<dyn VirtioDevice>) -> Option<Self> {
        let kvm = match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
            Ok(kvm) => kvm,
            Err(error) => {
                // Not by a macro of std's: the test harness would swallow it.
                let _ = writeln!(io::stderr(), "{test}: skipped, /dev/kvm cannot be opened: {error}");
                return None;
            }
        };
        let (channel, theirs) = Channel::pair().unwrap();
        let theirs = Arc::new(theirs);
        set_nonblocking(&theirs).unwrap();
        let mut machine = Machine::new(kvm.into(), vcpus, 4, Output::new(Box::new(io::sink()))).unwrap();
        machine.add("device", device, Placement::Own).unwrap();
        machine.boot(&mut micro_guest::file(code).unwrap(), "").unwrap();
        let cmdline = String::new();
        let config =
            VmConfig { vcpus, memory_mib: 4, cmdline, disks: vec![], shared: None, vsock: None, nics: 0 };
        let nics = Nics::new(&mut machine, &config, &theirs).unwrap();
        let pauses = Pauses::new(machine.gate(), &theirs, Duration::from_millis(100)).unwrap();
        let stop = machine.stop();
        let disks = Disks::new(&mut machine, &config, Vec::new(), &theirs).unwrap();
        machine.subscribe(Box::new(Shim { channel: theirs, connector: None, disks, nics, pauses, stop }));
        let memory = machine.memory();
        let running = thread::spawn(move || machine.run(|| {}).unwrap().cause.clone());
        Some(Self { channel, memory, running: Some(running) })
    }

    fn ask(&self, request: &Request) -> Event {
        self.channel.send(request, &[]).unwrap();
        self.event()
    }

    fn event(&self) -> Event {
        let mut wait = [PollFd::new(self.channel.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut wait, PollTimeout::from(20_000u16)), Ok(1), "there is no answer");
        self.channel.receive::<Event>().unwrap().0
    }

    fn number(&self, address: u64) -> u32 {
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }

    /// Waits until the guest has changed a number.
    fn changes(&self, address: u64) {
        let (begun, before) = (Instant::now(), self.number(address));
        while self.number(address) == before {
            assert!(begun.elapsed() < LONG, "the guest does not run");
            thread::yield_now();
        }
    }

    fn wait_until_set(&self, address: u64) {
        let begun = Instant::now();
        while self.number(address) == 0 {
            assert!(begun.elapsed() < LONG, "the guest does not run");
            thread::yield_now();
        }
    }

    fn end(mut self) -> Cause {
        self.channel.send(&Request::Stop, &[]).unwrap();
        self.running.take().unwrap().join().unwrap()
    }
}

fn refused(why: &str) -> Event {
    Event::PauseRefused(why.to_owned())
}

#[test]
fn a_guest_stands_still_while_it_is_paused_and_then_counts_on() {
    let test = "a_guest_stands_still_while_it_is_paused";
    // The second vCPU waits for its start-up interrupt: it is not in the guest, but in KVM.
    let Some(guest) = Guest::run(test, counts(), 2, Box::new(Rng)) else { return };
    for _ in 0..3 {
        guest.changes(COUNTS);
        assert_eq!(guest.ask(&Request::Pause), Event::Paused);
        let before = guest.number(COUNTS);
        thread::sleep(Duration::from_millis(30));
        assert_eq!(guest.number(COUNTS), before);
        assert_eq!(guest.ask(&Request::Resume), Event::Resumed);
    }
    guest.changes(COUNTS);
    assert_eq!(guest.end(), Cause::Requested);
}

#[test]
fn what_a_device_answers_is_not_lost_in_a_pause() {
    let test = "what_a_device_answers_is_not_lost_in_a_pause";
    let Some(guest) = Guest::run(test, counts_right_answers(), 1, Box::new(Rng)) else { return };
    for _ in 0..300 {
        guest.changes(COUNTS);
        assert_eq!(guest.ask(&Request::Pause), Event::Paused);
        let before = guest.number(COUNTS);
        assert_eq!(guest.ask(&Request::Resume), Event::Resumed);
        assert!(guest.number(COUNTS) >= before);
    }
    // A reset would say that the guest has read something else.
    assert_eq!(guest.end(), Cause::Requested);
}

#[test]
fn each_request_has_its_answer_in_the_wrong_state_too() {
    let test = "each_request_has_its_answer_in_the_wrong_state_too";
    let Some(guest) = Guest::run(test, counts(), 2, Box::new(Rng)) else { return };
    let not_paused = Event::ResumeRefused("the VM is not paused".into());
    assert_eq!(guest.ask(&Request::Resume), not_paused);
    assert_eq!(guest.ask(&Request::Pause), Event::Paused);
    assert_eq!(guest.ask(&Request::Pause), refused("the VM is paused already"));
    assert_eq!(guest.ask(&Request::Resume), Event::Resumed);
    assert_eq!(guest.ask(&Request::Resume), not_paused);
    assert_eq!(guest.ask(&Request::Pause), Event::Paused);
    let begun = Instant::now();
    assert_eq!(guest.end(), Cause::Requested);
    assert!(begun.elapsed() < Duration::from_millis(900), "a paused VM is waited for");
}

#[test]
fn a_vcpu_that_waits_for_a_device_is_not_waited_for_and_the_vm_runs_on() {
    let test = "a_vcpu_that_waits_for_a_device_is_not_waited_for";
    let (let_go, slow) = mpsc::channel();
    let device = Box::new(Slow(slow));
    let Some(guest) = Guest::run(test, waits_for_a_device_and_counts(), 1, device) else { return };
    guest.wait_until_set(RESETS);
    guest.channel.send(&Request::Pause, &[]).unwrap();
    assert_eq!(guest.ask(&Request::Pause), refused("the VM is being paused"));
    let late = "a vCPU has not left the guest within 100ms, since it waits for a device: the VM runs on";
    assert_eq!(guest.event(), refused(late));
    assert_eq!(guest.number(COUNTS), 0);
    let_go.send(()).unwrap();
    guest.changes(COUNTS);
    assert_eq!(guest.ask(&Request::Pause), Event::Paused);
    assert_eq!(guest.end(), Cause::Requested);
}

#[test]
fn the_end_overtakes_a_pause_that_a_device_holds_up() {
    let test = "the_end_overtakes_a_pause_that_a_device_holds_up";
    let (let_go, slow) = mpsc::channel();
    let device = Box::new(Slow(slow));
    let Some(guest) = Guest::run(test, waits_for_a_device_and_counts(), 1, device) else { return };
    guest.wait_until_set(RESETS);
    guest.channel.send(&Request::Pause, &[]).unwrap();
    assert_eq!(guest.end(), Cause::Requested);
    drop(let_go);
}
