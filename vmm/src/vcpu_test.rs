use super::*;
use crate::hypervisor::CpuidLeaf;
use std::sync::mpsc::{Sender, sync_channel};
use std::time::Instant;

const LONG: Duration = Duration::from_secs(10);

struct NoDevices;

impl Bus for NoDevices {
    fn port_read(&self, _: u16, _: &mut [u8]) {}
    fn port_write(&self, _: u16, _: &[u8]) {}
    fn memory_read(&self, _: u64, _: &mut [u8]) {}
    fn memory_write(&self, _: u64, _: &[u8]) {}
}

#[derive(Debug, PartialEq, Eq)]
enum Call {
    Arm,
    Run,
    WasPaused,
}

/// A vCPU that says what is asked of it, and leaves the guest when and as the test says; once the test is over, kicked.
struct Scripted {
    calls: Sender<Call>,
    exits: Receiver<Exit>,
}

impl Vcpu for Scripted {
    fn set_cpuid(&mut self, _: &[CpuidLeaf]) -> Result<(), HypervisorError> {
        Ok(())
    }
    fn start_at(&mut self, _: u64, _: u64) -> Result<(), HypervisorError> {
        Ok(())
    }
    fn arm(&mut self) {
        let _ = self.calls.send(Call::Arm);
    }
    fn run(&mut self, _: &dyn Bus) -> Result<Exit, HypervisorError> {
        let _ = self.calls.send(Call::Run);
        Ok(self.exits.recv().unwrap_or(Exit::Kicked))
    }
    fn was_paused(&mut self) -> Result<(), HypervisorError> {
        let _ = self.calls.send(Call::WasPaused);
        Ok(())
    }
}

/// The test's side of a [`Scripted`] vCPU.
struct Script {
    calls: Receiver<Call>,
    exits: std::sync::mpsc::SyncSender<Exit>,
}

impl Script {
    fn expect(&self, calls: &[Call]) {
        for call in calls {
            assert_eq!(&self.calls.recv_timeout(LONG).unwrap(), call);
        }
    }

    fn leaves(&self, exit: Exit) {
        self.exits.send(exit).unwrap();
    }
}

fn run<const N: usize>() -> (Vcpus, Gate, [Script; N]) {
    let (gate, stop) = (Gate::new().unwrap(), Stop::new().unwrap());
    let mut vcpus: Vec<Box<dyn Vcpu>> = Vec::new();
    let scripts = std::array::from_fn(|_| {
        let ((calls, said), (exits, script)) = (channel(), sync_channel(4));
        vcpus.push(Box::new(Scripted { calls, exits: script }));
        Script { calls: said, exits }
    });
    let running = Vcpus::run(vcpus, &Arc::new(NoDevices), &gate, &stop).unwrap();
    for script in &scripts {
        script.expect(&[Call::Arm, Call::Run]);
    }
    (running, gate, scripts)
}

fn wait_until_paused(gate: &Gate) {
    wait_for(|| gate.event().read().is_ok());
    assert!(gate.is_paused());
}

fn wait_for(condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < LONG, "not paused");
        std::thread::yield_now();
    }
}

#[test]
fn a_vcpu_that_serves_a_device_enters_the_guest_once_more_before_it_is_paused() {
    let (vcpus, gate, [script]) = run();
    gate.pause().unwrap();
    script.leaves(Exit::Served);
    script.expect(&[Call::Run]);
    assert!(!gate.is_paused(), "the instruction that touched the device is half done");
    script.leaves(Exit::Kicked);
    script.expect(&[Call::Arm]);
    wait_until_paused(&gate);
    assert!(script.calls.try_recv().is_err(), "it runs");
    gate.resume().unwrap();
    script.expect(&[Call::WasPaused, Call::Run]);
    drop(script);
    drop(vcpus);
}

#[test]
fn a_signal_that_is_no_pause_is_passed_over() {
    let (vcpus, _gate, [script]) = run();
    script.leaves(Exit::Kicked);
    script.expect(&[Call::Arm, Call::Run]);
    drop(script);
    drop(vcpus);
}

#[test]
fn the_vm_is_paused_when_the_last_vcpu_is_and_each_is_told_when_it_goes_on() {
    let (vcpus, gate, scripts) = run::<2>();
    gate.pause().unwrap();
    scripts[0].leaves(Exit::Kicked);
    scripts[0].expect(&[Call::Arm]);
    assert!(!gate.is_paused());
    scripts[1].leaves(Exit::Kicked);
    scripts[1].expect(&[Call::Arm]);
    wait_until_paused(&gate);
    gate.resume().unwrap();
    for script in &scripts {
        script.expect(&[Call::WasPaused, Call::Run]);
    }
    drop(scripts);
    drop(vcpus);
}

#[test]
fn a_pause_that_is_given_up_leaves_the_vcpus_running_and_another_can_follow() {
    let (vcpus, gate, scripts) = run::<2>();
    gate.pause().unwrap();
    scripts[0].leaves(Exit::Kicked);
    scripts[0].expect(&[Call::Arm]);
    let mut one_waits = Pause::new(2);
    one_waits.pause().unwrap();
    one_waits.left();
    wait_for(|| lock(&gate.0.inner).pause == one_waits);
    assert!(gate.give_up());
    scripts[0].expect(&[Call::WasPaused, Call::Run]);
    // The one that was late was kicked, too.
    scripts[1].leaves(Exit::Kicked);
    scripts[1].expect(&[Call::Arm, Call::Run]);
    assert!(gate.event().read().is_err(), "a pause that was given up is told as complete");
    gate.pause().unwrap();
    scripts.iter().for_each(|script| script.leaves(Exit::Kicked));
    wait_until_paused(&gate);
    assert!(!gate.give_up(), "it is complete");
    assert!(gate.is_paused());
    drop(scripts);
    drop(vcpus);
}

#[test]
fn vcpus_that_are_paused_end_at_once_and_do_not_enter_the_guest() {
    let (vcpus, gate, scripts) = run::<2>();
    gate.pause().unwrap();
    scripts.iter().for_each(|script| script.leaves(Exit::Kicked));
    wait_until_paused(&gate);
    let begun = Instant::now();
    drop(vcpus);
    assert!(begun.elapsed() < VCPU_STOP_TIMEOUT, "they were waited for");
    for script in scripts {
        script.expect(&[Call::Arm]);
        assert!(!script.calls.iter().any(|call| call == Call::Run), "it entered the guest");
    }
    assert_eq!(gate.pause(), Err(Refusal::Ended));
    assert_eq!(gate.resume(), Err(Refusal::Ended));
}
