//! What a VM costs before its kernel runs: `cargo bench -p lazaret-vmm`. A micro-guest on the local /dev/kvm, in the jail,
//! with every device. The times are of this machine and this minute; medians of [`ROUNDS`].

#![allow(clippy::unwrap_used, reason = "a measurement that fails has no result")]

use lazaret_vmm::console::Output;
use lazaret_vmm::machine::{Machine, Placement};
use lazaret_vmm::micro_guest;
use lazaret_vmm::virtio::rng::Rng;
use lazaret_vmm_wire::{Channel, Disk, Event, Name, Request, Shared, VmConfig, Vsock};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const ROUNDS: usize = 30;

micro_guest!(
    says_so_and_resets,
    "mov dx, 0x3f8",
    "mov al, '!'",
    "out dx, al",
    "mov al, 0xfe",
    "out 0x64, al",
    "2: jmp 2b",
);
micro_guest!(sleeps, "2: hlt", "jmp 2b");

fn kvm() -> File {
    OpenOptions::new().read(true).write(true).open("/dev/kvm").unwrap()
}

/// Notes when the guest's first instruction's byte arrives.
struct Clock(Arc<Mutex<Option<Instant>>>);

impl Write for Clock {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().get_or_insert_with(Instant::now);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// From nothing but an open /dev/kvm to the threads of the vCPUs, to the guest's first output, and the teardown.
fn in_process() -> [Duration; 3] {
    let (kvm, mut kernel) = (kvm(), micro_guest::file(says_so_and_resets()).unwrap());
    let first = Arc::new(Mutex::new(None));
    let start = Instant::now();
    let output = Output::new(Box::new(Clock(Arc::clone(&first))));
    let mut machine = Machine::new(kvm.into(), 1, 128, output).unwrap();
    for _ in 0..5 {
        machine.add("rng", Box::new(Rng), Placement::Shared).unwrap();
    }
    machine.boot(&mut kernel, "quiet").unwrap();
    let mut running = start;
    let ended = machine.run(|| running = Instant::now()).unwrap();
    let stopped = Instant::now();
    drop(ended);
    let first = first.lock().unwrap().unwrap();
    [running - start, first - start, stopped.elapsed()]
}

struct Vmm {
    channel: Channel,
    process: Child,
    started: Instant,
    directory: tempfile::TempDir,
}

impl Vmm {
    /// As a shim starts it: two disks, a shared tree, vsock; and `nics` slots for network interfaces.
    fn start(code: &[u8], nics: u8) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (channel, theirs) = Channel::pair().unwrap();
        let kernel = micro_guest::file(code).unwrap();
        let (log, disk) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        disk.set_len(1 << 20).unwrap();
        let config = VmConfig {
            vcpus: 1,
            memory_mib: 128,
            cmdline: "quiet".into(),
            disks: vec![Disk { read_only: true, empty: false }, Disk { read_only: false, empty: false }],
            shared: Some(Shared { tag: "lazaret".into(), path: directory.path().into() }),
            vsock: Some(Vsock { cid: 3, accept: vec![1024] }),
            nics,
        };
        let mut command = Command::new(env!("CARGO_BIN_EXE_lazaret-vmm"));
        command.args(["--control-fd", "3"]).stdin(Stdio::null());
        // SAFETY: dup2 is async-signal-safe.
        unsafe {
            command.pre_exec(move || match libc::dup2(theirs.as_raw_fd(), 3) {
                -1 => Err(io::Error::last_os_error()),
                _ => Ok(()),
            });
        }
        let started = Instant::now();
        let process = command.spawn().unwrap();
        drop(command);
        let kvm = kvm();
        let descriptors = [
            (Name::Kvm, kvm.as_fd()),
            (Name::Kernel, kernel.as_fd()),
            (Name::ConsoleLog, log.as_fd()),
            (Name::Disk(0), disk.as_fd()),
            (Name::Disk(1), disk.as_fd()),
        ];
        channel.send(&Request::Boot(config), &descriptors).unwrap();
        Self { channel, process, started, directory }
    }

    fn expect(&self, running: bool) {
        let (event, _) = self.channel.receive::<Event>().unwrap();
        assert_eq!(matches!(event, Event::Running), running, "{event:?}");
    }
}

/// From the fork of the process to `Running`, to `Stopped`, and from there to the end of the process.
fn as_a_process(nics: u8) -> [Duration; 3] {
    let mut vmm = Vmm::start(says_so_and_resets(), nics);
    vmm.expect(true);
    let running = vmm.started.elapsed();
    vmm.expect(false);
    let stopped = Instant::now();
    assert!(vmm.process.wait().unwrap().success());
    [running, stopped - vmm.started, stopped.elapsed()]
}

/// KiB resident, and private and written to, of everything but the guest's memory. Of the latter `Anonymous` tells: pages
/// of a program that was just built are `Private_Dirty` too, for the disk's sake.
fn memory(nics: u8) -> [u64; 2] {
    let mut vmm = Vmm::start(sleeps(), nics);
    vmm.expect(true);
    let smaps = fs::read_to_string(format!("/proc/{}/smaps", vmm.process.id())).unwrap();
    let mut sum = [0; 2];
    let mut guests = false;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let (name, value) = (words.next().unwrap(), words.next().unwrap_or_default());
        match name {
            // The guest's memory is the one mapping of 128 MiB.
            "Size:" => guests = value.parse::<u64>().unwrap() >= 128 << 10,
            "Rss:" if !guests => sum[0] += value.parse::<u64>().unwrap(),
            "Anonymous:" if !guests => sum[1] += value.parse::<u64>().unwrap(),
            _ => {}
        }
    }
    vmm.channel.send(&Request::Stop, &[]).unwrap();
    vmm.expect(false);
    assert!(vmm.process.wait().unwrap().success());
    drop(vmm.directory);
    sum
}

fn medians<T: Ord + Copy, const N: usize>(round: impl Fn() -> [T; N]) -> [T; N] {
    let rounds: Vec<_> = (0..ROUNDS).map(|_| round()).collect();
    std::array::from_fn(|column| {
        let mut values: Vec<_> = rounds.iter().map(|round| round[column]).collect();
        values.sort_unstable();
        values[ROUNDS / 2]
    })
}

fn main() {
    if let Err(error) = File::open("/dev/kvm") {
        println!("skipped: /dev/kvm cannot be opened: {error}");
        return;
    }
    let row = |text: &str, value: String| println!("| {text:<64} | {value:>10} |");
    let ms = |duration: Duration| format!("{:.2} ms", duration.as_secs_f64() * 1000.0);
    let mib = |kib: u64| format!("{}.{:02} MiB", kib / 1024, kib % 1024 * 100 / 1024);
    let [set_up, first, teardown] = medians(in_process);
    row("open /dev/kvm to the vCPU's thread, five devices", ms(set_up));
    row("… to the guest's first output", ms(first));
    row("the VM taken apart, after its end was reported", ms(teardown));
    let [running, stopped, gone] = medians(|| as_a_process(0));
    row("fork of lazaret-vmm to Running: jail, all devices, kernel", ms(running));
    row("… to Stopped, for a guest that resets at once", ms(stopped));
    row("… and from Stopped to the end of the process", ms(gone));
    let [resident, dirty] = medians(|| memory(0));
    row("resident beside the guest's memory", mib(resident));
    row("of that private and dirty", mib(dirty));
    let [running, ..] = medians(|| as_a_process(4));
    row("fork to Running with four slots for network interfaces", ms(running));
    let [resident, dirty] = medians(|| memory(4));
    row("resident, with those", mib(resident));
    row("of that private and dirty, with those", mib(dirty));
}
