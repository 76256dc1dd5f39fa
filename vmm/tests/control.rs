//! `lazaret-vmm --control-fd`: what a shim sees of it, and what its jail leaves it. Micro-guests, on the local /dev/kvm.

#![allow(clippy::unwrap_used, reason = "these are tests: they fail by panicking")]

use lazaret_vmm::micro_guest;
use lazaret_vmm::virtio::net::{Tap, mtu_of};
use lazaret_vmm_wire::{
    Cause, Channel, ChannelError, Disk, DiskState, Event, Name, Nic, NicState, Request, Shared, Stopped,
    VmConfig, Vsock,
};
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

micro_guest!(
    says_hi_and_resets,
    "mov dx, 0x3f8",
    "mov al, 'h'",
    "out dx, al",
    "mov al, 'i'",
    "out dx, al",
    "mov al, 0xfe",
    "out 0x64, al",
    "2: jmp 2b",
);
micro_guest!(sleeps, "2: hlt", "jmp 2b");

/// The other end of the channel, and the process.
struct Vmm {
    channel: Channel,
    process: Child,
}

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Vmm {
    fn start() -> Self {
        let (ours, theirs) = Channel::pair().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_lazaret-vmm"));
        command.args(["--control-fd", "3"]).stdin(Stdio::null());
        // SAFETY: dup2 is async-signal-safe.
        unsafe {
            command.pre_exec(move || {
                // 77 is a stray descriptor, as a careless parent leaves them.
                if libc::dup2(theirs.as_raw_fd(), 3) < 0 || libc::dup2(0, 77) < 0 {
                    return Err(io::Error::last_os_error());
                }
                Ok(())
            });
        }
        Self { channel: ours, process: command.spawn().unwrap() }
    }

    /// False, with the reason printed, when there is no KVM to boot on.
    fn boot(&self, config: VmConfig, code: &[u8], log: &File, disks: &[File]) -> bool {
        let kvm = match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
            Ok(kvm) => kvm,
            Err(error) => {
                // Not by a macro of std's: the test harness would swallow it.
                let _ = writeln!(io::stderr(), "skipped: /dev/kvm cannot be opened: {error}");
                return false;
            }
        };
        let kernel = micro_guest::file(code).unwrap();
        // The order is of no matter.
        let disks = (0..).zip(disks).map(|(index, disk)| (Name::Disk(index), disk.as_fd()));
        let mut descriptors: Vec<(Name, BorrowedFd)> = disks.collect();
        descriptors.extend([(Name::ConsoleLog, log.as_fd()), (Name::Kvm, kvm.as_fd())]);
        descriptors.push((Name::Kernel, kernel.as_fd()));
        self.channel.send(&Request::Boot(config), &descriptors).unwrap();
        true
    }

    fn event(&self) -> Event {
        let mut wait = [PollFd::new(self.channel.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut wait, PollTimeout::from(20_000u16)), Ok(1), "no event in 20 s");
        self.channel.receive::<Event>().unwrap().0
    }

    fn proc(&self, what: &str) -> String {
        format!("/proc/{}/{what}", self.process.id())
    }
}

fn config() -> VmConfig {
    let cmdline = "quiet".to_owned();
    VmConfig { vcpus: 2, memory_mib: 8, cmdline, disks: Vec::new(), shared: None, vsock: None, nics: 0 }
}

#[test]
fn a_vm_runs_and_its_end_is_told_with_its_last_lines() {
    let vmm = Vmm::start();
    let mut log = tempfile::tempfile().unwrap();
    if !vmm.boot(config(), says_hi_and_resets(), &log, &[]) {
        return;
    }
    assert_eq!(vmm.event(), Event::Running);
    let stopped = Stopped { cause: Cause::Reset, console: vec!["hi".to_owned()] };
    assert_eq!(vmm.event(), Event::Stopped(stopped));
    assert!(matches!(vmm.channel.receive::<Event>(), Err(ChannelError::Closed)));
    let mut text = String::new();
    log.rewind().unwrap();
    log.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hi");
}

#[test]
fn a_request_ends_it() {
    let mut vmm = Vmm::start();
    let log = tempfile::tempfile().unwrap();
    if !vmm.boot(config(), sleeps(), &log, &[]) {
        return;
    }
    assert_eq!(vmm.event(), Event::Running);
    vmm.channel.send(&Request::Stop, &[]).unwrap();
    assert_eq!(vmm.event(), Event::Stopped(Stopped { cause: Cause::Requested, console: Vec::new() }));
    assert!(vmm.process.wait().unwrap().success());
}

#[test]
fn it_is_paused_and_resumed_and_ends_while_it_is_paused() {
    let mut vmm = Vmm::start();
    let log = tempfile::tempfile().unwrap();
    if !vmm.boot(config(), sleeps(), &log, &[]) {
        return;
    }
    assert_eq!(vmm.event(), Event::Running);
    let ask = |request| {
        vmm.channel.send(&request, &[]).unwrap();
        vmm.event()
    };
    assert_eq!(ask(Request::Pause), Event::Paused);
    assert_eq!(ask(Request::Pause), Event::PauseRefused("the VM is paused already".to_owned()));
    assert_eq!(ask(Request::Resume), Event::Resumed);
    assert_eq!(ask(Request::Resume), Event::ResumeRefused("the VM is not paused".to_owned()));
    assert_eq!(ask(Request::Pause), Event::Paused);
    let stopped = Stopped { cause: Cause::Requested, console: Vec::new() };
    assert_eq!(ask(Request::Stop), Event::Stopped(stopped));
    assert!(vmm.process.wait().unwrap().success());
}

#[test]
fn the_end_of_the_shim_ends_it() {
    let mut vmm = Vmm::start();
    let log = tempfile::tempfile().unwrap();
    if !vmm.boot(config(), sleeps(), &log, &[]) {
        return;
    }
    assert_eq!(vmm.event(), Event::Running);
    (vmm.channel, _) = Channel::pair().unwrap();
    assert!(vmm.process.wait().unwrap().success());
}

#[test]
fn what_cannot_be_built_is_told_in_one_line() {
    let log = tempfile::tempfile().unwrap();
    let told = |config: VmConfig, disks: &[File]| {
        let vmm = Vmm::start();
        if !vmm.boot(config, b"", &log, disks) {
            return None;
        }
        match vmm.event() {
            Event::Stopped(Stopped { cause: Cause::Error(line), .. }) => Some(line),
            other => panic!("{other:?}"),
        }
    };
    let Some(line) = told(VmConfig { vcpus: 0, ..config() }, &[]) else { return };
    assert_eq!(line, "a VM has from 1 to 254 vCPUs, not 0");
    let line = told(VmConfig { memory_mib: 1, ..config() }, &[]).unwrap();
    assert!(line.starts_with("a VM has from 2 to "), "{line}");
    let line = told(config(), &[tempfile::tempfile().unwrap()]).unwrap();
    assert_eq!(line, "the boot request: the descriptor \"disk 0\" is not expected");
    let disks = vec![Disk { read_only: false, empty: false }];
    let line = told(VmConfig { disks, ..config() }, &[]).unwrap();
    assert_eq!(line, "the boot request: the descriptor \"disk 0\" is missing");
    let disks = vec![Disk { read_only: false, empty: true }];
    let line = told(VmConfig { disks, ..config() }, &[tempfile::tempfile().unwrap()]).unwrap();
    assert_eq!(line, "the boot request: the descriptor \"disk 0\" is not expected");
    let line = told(VmConfig { cmdline: "x".repeat(3000), ..config() }, &[]).unwrap();
    assert!(line.starts_with("the kernel command line has 3"), "{line}");
}

// Sets the device up and waits until an interrupt says that its configuration has changed; prints a mark if the capacity is 64
// sectors, and then sleeps. The device's registers are at 0xd0000000.
micro_guest!(
    waits_for_the_capacity,
    "mov esi, 0xd0000000",
    "mov dword ptr [esi + 0x70], 3",
    "mov dword ptr [esi + 0x24], 1",
    "mov dword ptr [esi + 0x20], 1",
    "mov dword ptr [esi + 0x70], 11",
    "mov dword ptr [esi + 0x70], 15",
    "mov dx, 0x3f8",
    "cmp dword ptr [esi + 0x100], 0",
    "jne 3f",
    "mov al, '0'",
    "out dx, al",
    "2: test dword ptr [esi + 0x60], 2",
    "jz 2b",
    "cmp dword ptr [esi + 0x100], 64",
    "jne 3f",
    "mov al, '+'",
    "out dx, al",
    "3: hlt",
    "jmp 3b",
);

#[test]
fn a_disk_is_attached_once_and_the_guest_is_told_of_its_capacity() {
    let vmm = Vmm::start();
    let mut log = tempfile::tempfile().unwrap();
    let first = tempfile::tempfile().unwrap();
    first.set_len(4096).unwrap();
    let disks = vec![Disk { read_only: false, empty: true }, Disk { read_only: true, empty: false }];
    let (empty, full) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    full.set_len(64 * 512).unwrap();
    let boot = |vmm: &Vmm| {
        let Ok(kvm) = OpenOptions::new().read(true).write(true).open("/dev/kvm") else { return false };
        let kernel = micro_guest::file(waits_for_the_capacity()).unwrap();
        let descriptors = [
            (Name::ConsoleLog, log.as_fd()),
            (Name::Kvm, kvm.as_fd()),
            (Name::Kernel, kernel.as_fd()),
            (Name::Disk(1), first.as_fd()),
        ];
        vmm.channel
            .send(&Request::Boot(VmConfig { disks: disks.clone(), ..config() }), &descriptors)
            .unwrap();
        true
    };
    if !boot(&vmm) {
        let _ = writeln!(io::stderr(), "skipped: /dev/kvm cannot be opened");
        return;
    }
    assert_eq!(vmm.event(), Event::Running);
    let said = |log: &mut File| {
        let mut text = String::new();
        log.rewind().unwrap();
        log.read_to_string(&mut text).unwrap();
        text
    };
    let attach = |index: u8, descriptors: &[(Name, BorrowedFd<'_>)]| {
        vmm.channel.send(&Request::AttachDisk { index }, descriptors).unwrap();
        match vmm.event() {
            Event::Disk { index: answered, state } if answered == index => state,
            other => panic!("{other:?}"),
        }
    };
    let refused = |why: &str| DiskState::Refused(why.to_owned());
    let right = (Name::Disk(0), full.as_fd());
    let refusals = [
        (attach(2, &[right]), "the VM has 2 disks, from 0 on"),
        (attach(255, &[]), "the VM has 2 disks, from 0 on"),
        (attach(1, &[(Name::Disk(1), full.as_fd())]), "the disk has had its file from the boot on"),
        (attach(0, &[]), "the descriptor \"disk 0\" is missing"),
        (attach(0, &[(Name::Disk(1), full.as_fd())]), "the descriptor \"disk 0\" is missing"),
        (attach(0, &[right, (Name::Stream, full.as_fd())]), "the descriptor \"stream\" is not expected"),
        (attach(0, &[(Name::Disk(0), empty.as_fd())]), "the file is smaller than a sector"),
    ];
    for (answer, why) in refusals {
        assert_eq!(answer, refused(why));
    }
    let begun = Instant::now();
    while said(&mut log) != "0" {
        assert!(begun.elapsed() < Duration::from_secs(20), "the guest does not run: {:?}", said(&mut log));
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(attach(0, &[right]), DiskState::Attached);
    assert_eq!(attach(0, &[right]), refused("the disk has a file already"));
    while said(&mut log) != "0+" {
        assert!(begun.elapsed() < Duration::from_secs(20), "the guest is not told: {:?}", said(&mut log));
        thread::sleep(Duration::from_millis(5));
    }
    vmm.channel.send(&Request::Stop, &[]).unwrap();
    assert!(matches!(vmm.event(), Event::Stopped(Stopped { cause: Cause::Requested, .. })));
}

#[test]
fn a_connection_to_a_guest_without_a_driver_waits_and_ends_with_the_vm() {
    let vmm = Vmm::start();
    let log = tempfile::tempfile().unwrap();
    let vsock = Some(Vsock { cid: 3, accept: vec![1024] });
    if !vmm.boot(VmConfig { vsock, ..config() }, sleeps(), &log, &[]) {
        return;
    }
    assert_eq!(vmm.event(), Event::Running);
    let (ours, theirs) =
        socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC).unwrap();
    vmm.channel.send(&Request::Connect { port: 1025 }, &[(Name::Stream, theirs.as_fd())]).unwrap();
    drop(theirs);
    vmm.channel.send(&Request::Stop, &[]).unwrap();
    assert!(matches!(vmm.event(), Event::Stopped(_)));
    assert_eq!(File::from(ours).read(&mut [0]).unwrap(), 0);
}

/// Runs `test` in a mount namespace of its own in which `directory` is a shared mount, as a shim makes it.
fn with_shared_tree(directory: &Path, test: impl FnOnce(&Path) + Send) {
    let none: Option<&str> = None;
    thread::scope(|scope| {
        let run = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            mount(none, "/", none, MsFlags::MS_SLAVE | MsFlags::MS_REC, none).unwrap();
            mount(Some(directory), directory, none, MsFlags::MS_BIND, none).unwrap();
            let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
            mount(none, directory, none, flags, none).unwrap();
            mount(none, directory, none, MsFlags::MS_SHARED, none).unwrap();
            test(directory);
        });
        if let Err(panic) = run.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

#[test]
fn the_jail_holds_the_shared_tree_and_what_is_mounted_there_later() {
    if !nix::unistd::geteuid().is_root() {
        let _ = writeln!(io::stderr(), "the jail's test is skipped: mounts need root");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("rootfs")).unwrap();
    with_shared_tree(directory.path(), |tree| {
        let vmm = Vmm::start();
        let log = tempfile::tempfile().unwrap();
        let shared = Some(Shared { tag: "lazaret".into(), path: tree.to_owned() });
        let mut disk = tempfile::tempfile().unwrap();
        disk.write_all(&[0; 4096]).unwrap();
        let config = VmConfig { shared, disks: vec![Disk { read_only: true, empty: false }], ..config() };
        if !vmm.boot(config, sleeps(), &log, &[disk]) {
            return;
        }
        assert_eq!(vmm.event(), Event::Running);

        let root = vmm.proc("root");
        let names: Vec<_> = fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["shared"], "the jail's root holds more than the tree");
        for place in ["", "shared", "shared/rootfs"] {
            let made = File::create(format!("{root}/{place}/file")).map_err(|error| error.kind());
            assert_eq!(made.err(), Some(ErrorKind::ReadOnlyFilesystem), "the jail's /{place} is writable");
        }
        let mounts = fs::read_to_string(vmm.proc("mountinfo")).unwrap();
        assert_eq!(mounts.lines().count(), 2, "{mounts}");
        assert!(mounts.contains(" /shared ro,nosuid,nodev"), "{mounts}");
        assert!(!mounts.contains("shared:"), "what is mounted in the jail would come out: {mounts}");

        let none: Option<&str> = None;
        mount(Some("tmpfs"), &tree.join("rootfs"), Some("tmpfs"), MsFlags::empty(), none).unwrap();
        fs::write(tree.join("rootfs/late"), "seen").unwrap();
        assert_eq!(fs::read_to_string(format!("{root}/shared/rootfs/late")).unwrap(), "seen");
        fs::write(format!("{root}/shared/rootfs/back"), "seen too").unwrap();
        assert_eq!(fs::read_to_string(tree.join("rootfs/back")).unwrap(), "seen too");

        let status = fs::read_to_string(vmm.proc("status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().to_owned()
        };
        assert_eq!(field("NoNewPrivs:"), "1");
        // CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETGID, SETUID, MKNOD, SETFCAP
        assert_eq!(field("CapEff:"), "00000000880000db");
        assert_eq!(field("CapPrm:"), "00000000880000db");
        assert_eq!(field("CapInh:"), "0000000000000000");

        // Besides the standard three: the channel, KVM, what was handed over, and the server's own directory of
        // descriptors, which is the root of a mount that hangs nowhere. No path of the host's.
        let of_the_host: Vec<_> = fs::read_dir(vmm.proc("fd"))
            .unwrap()
            .map(|entry| entry.unwrap())
            .filter(|entry| !matches!(entry.file_name().to_str(), Some("0" | "1" | "2")))
            .map(|entry| (entry.path(), fs::read_link(entry.path()).unwrap().to_string_lossy().into_owned()))
            .filter(|(_, target)| target.starts_with('/') && !target.ends_with("(deleted)"))
            .filter(|(_, target)| target != "/dev/kvm")
            .collect();
        let [(own_descriptors, target)] = &of_the_host[..] else {
            panic!("stray descriptors: {of_the_host:?}")
        };
        assert_eq!(target, "/");
        assert!(own_descriptors.join("0").is_symlink(), "not the directory of descriptors");
        for above in ["../status", "../../sys/kernel/core_pattern", "../proc"] {
            let reached = fs::symlink_metadata(own_descriptors.join(above)).map_err(|error| error.kind());
            assert_eq!(reached.err(), Some(ErrorKind::NotFound), "{above} is in reach");
        }
        assert!(!Path::new(&vmm.proc("fd/77")).exists(), "a stray descriptor is still open");
    });
}

#[test]
fn a_stop_that_comes_before_the_vcpus_run_is_a_stop() {
    // The request is there before the VM is: it is read as soon as the event loop runs.
    for _ in 0..20 {
        let mut vmm = Vmm::start();
        let log = tempfile::tempfile().unwrap();
        if !vmm.boot(VmConfig { vcpus: 8, ..config() }, sleeps(), &log, &[]) {
            return;
        }
        vmm.channel.send(&Request::Stop, &[]).unwrap();
        assert_eq!(vmm.event(), Event::Running);
        assert_eq!(vmm.event(), Event::Stopped(Stopped { cause: Cause::Requested, console: Vec::new() }));
        assert!(vmm.process.wait().unwrap().success());
    }
}

/// Runs `test` in a network namespace of its own, where root can make taps.
fn in_network_namespace(test: impl FnOnce() + Send) {
    if !nix::unistd::geteuid().is_root() {
        let _ = writeln!(io::stderr(), "skipped: a tap needs root");
        return;
    }
    thread::scope(|scope| {
        let run = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            test();
        });
        if let Err(panic) = run.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

const NIC: Nic = Nic { mac: [2, 0, 0, 0, 0, 1], mtu: 1500 };

impl Vmm {
    /// Asks for a plug; what the VMM says of that slot, which is to be `slot`.
    fn plug(&self, slot: u8, nic: Nic, taps: &[Tap]) -> NicState {
        let taps: Vec<_> = (0..).zip(taps).map(|(queue, tap)| (Name::Tap(queue), tap.as_fd())).collect();
        self.channel.send(&Request::PlugNic { slot, nic }, &taps).unwrap();
        self.nic(slot)
    }

    fn unplug(&self, slot: u8) -> NicState {
        self.channel.send(&Request::UnplugNic { slot }, &[]).unwrap();
        self.nic(slot)
    }

    fn nic(&self, slot: u8) -> NicState {
        match self.event() {
            Event::Nic { slot: told, state } if told == slot => state,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_tap_is_plugged_into_a_slot_of_the_jailed_vmm_and_unplugged() {
    in_network_namespace(|| {
        let vmm = Vmm::start();
        let log = tempfile::tempfile().unwrap();
        if !vmm.boot(VmConfig { nics: 2, ..config() }, sleeps(), &log, &[]) {
            return;
        }
        assert_eq!(vmm.event(), Event::Running);
        let refused = |why: &str| NicState::Refused(why.to_owned());
        for slot in [1, 0, 1] {
            // One queue for each of the two vCPUs. What is left here is closed: the device is the VMM's alone.
            let taps = Tap::open("tap0", 2).unwrap();
            assert_eq!(vmm.plug(slot, NIC, &taps), NicState::Plugged);
            drop(taps);
            assert_eq!(vmm.plug(slot, NIC, &Tap::open("tap1", 2).unwrap()), refused("the slot is in use"));
            assert_eq!(vmm.unplug(slot), NicState::Unplugged);
            assert_eq!(vmm.unplug(slot), refused("nothing is plugged in"));
            // It is closed by then, and so it is gone: but for a child of this process between its fork and its exec.
            let begun = Instant::now();
            while mtu_of("tap0").is_ok() {
                assert!(begun.elapsed() < Duration::from_secs(10), "the tap is still open");
                thread::yield_now();
            }
        }
        assert_eq!(vmm.plug(2, NIC, &[]), refused("the VM has 2 slots for network interfaces, from 0 on"));
        assert_eq!(vmm.plug(0, NIC, &[]), refused("the descriptor \"tap queue 0\" is missing"));
        let taps = Tap::open("tap0", 3).unwrap();
        assert_eq!(vmm.plug(0, NIC, &taps), refused("the descriptor \"tap queue 2\" is not expected"));
        let mtu = vmm.plug(0, Nic { mtu: 60, ..NIC }, &taps[..2]);
        assert_eq!(mtu, refused("an MTU is from 68 to 65535, not 60"));
        vmm.channel.send(&Request::PlugNic { slot: 0, nic: NIC }, &[(Name::Tap(0), log.as_fd())]).unwrap();
        let NicState::Refused(why) = vmm.nic(0) else { panic!("a file was taken for a tap") };
        assert!(
            why.starts_with("the descriptor \"tap queue 0\": it is not a queue of a tap device"),
            "{why}"
        );
    });
}

#[test]
fn there_are_no_more_slots_than_interrupt_lines() {
    let vmm = Vmm::start();
    let log = tempfile::tempfile().unwrap();
    if !vmm.boot(VmConfig { nics: 20, ..config() }, sleeps(), &log, &[]) {
        return;
    }
    let Event::Stopped(Stopped { cause: Cause::Error(line), .. }) = vmm.event() else { panic!("it runs") };
    assert_eq!(line, "no interrupt line is left for another device; there are 19");
}
