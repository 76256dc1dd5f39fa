//! `lazaret-vmm` by hand: flags, exit status, the terminal. Micro-guests, on the local /dev/kvm.

#![allow(clippy::unwrap_used, reason = "these are tests: they fail by panicking")]

use lazaret_vmm::micro_guest;
use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::tcgetattr;
use nix::unistd::Pid;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

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
// Says `>`, then prints what is typed, and resets after `q`.
micro_guest!(
    echoes,
    "mov dx, 0x3f8",
    "mov al, '>'",
    "out dx, al",
    "2: mov dx, 0x3fd",
    "in al, dx",
    "test al, 1",
    "jz 2b",
    "mov dx, 0x3f8",
    "in al, dx",
    "out dx, al",
    "cmp al, 'q'",
    "jne 2b",
    "mov al, 0xfe",
    "out 0x64, al",
    "3: jmp 3b",
);

/// False, with the reason printed, when there is no KVM.
fn have_kvm() -> bool {
    match File::open("/dev/kvm") {
        Ok(_) => true,
        Err(error) => {
            // Not by a macro of std's: the test harness would swallow it.
            let _ = writeln!(io::stderr(), "skipped: /dev/kvm cannot be opened: {error}");
            false
        }
    }
}

fn kernel(code: &[u8]) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vmlinux");
    fs::write(&path, micro_guest::image(code)).unwrap();
    (directory, path)
}

fn vmm(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lazaret-vmm"));
    command.args(arguments).stdin(Stdio::null());
    command
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn the_guests_reset_is_success_and_its_console_goes_where_it_was_sent() {
    if !have_kvm() {
        return;
    }
    let (directory, kernel) = kernel(says_hi_and_resets());
    let kernel = kernel.to_str().unwrap();
    let output = vmm(&["--kernel", kernel, "--console", "serial", "--vcpus", "2"]).output().unwrap();
    assert_eq!(
        (output.status.code(), output.stdout.as_slice()),
        (Some(0), &b"hi"[..]),
        "{}",
        stderr(&output)
    );

    let log = directory.path().join("log");
    let to_file = format!("file:{}", log.display());
    let output = vmm(&["--kernel", kernel, "--console", &to_file, "--memory", "8M"]).output().unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b""[..]));
    assert_eq!(fs::read_to_string(log).unwrap(), "hi");
}

// Prints the type of the third device, behind console and rng, its link's status and the last byte of its address.
micro_guest!(
    looks_at_its_network_interface,
    "mov dx, 0x3f8",
    "mov eax, [0xd0002008]",
    "add al, '0'",
    "out dx, al",
    "mov al, [0xd0002106]",
    "add al, '0'",
    "out dx, al",
    "mov al, [0xd0002105]",
    "out dx, al",
    "mov al, 0xfe",
    "out 0x64, al",
    "2: jmp 2b",
);

#[test]
fn a_tap_is_plugged_in_from_the_start() {
    if !have_kvm() || !nix::unistd::geteuid().is_root() {
        return;
    }
    let (_directory, kernel) = kernel(looks_at_its_network_interface());
    let arguments = ["--kernel", kernel.to_str().unwrap(), "--console", "serial"];
    for (net, vcpus) in [("tap=lz-test,mac=02:00:00:00:00:21", "1"), ("tap=lz-test,mac=02:0:0:0:0:21", "3")] {
        let mut command = vmm(&[&arguments[..], &["--net", net, "--vcpus", vcpus]].concat());
        // SAFETY: unshare is async-signal-safe.
        unsafe { command.pre_exec(|| Ok(nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?)) };
        let output = command.output().unwrap();
        assert_eq!(
            (output.status.code(), output.stdout.as_slice()),
            (Some(0), &b"11!"[..]),
            "{}",
            stderr(&output)
        );
    }
}

#[test]
fn what_is_typed_reaches_the_serial_port() {
    if !have_kvm() {
        return;
    }
    let (_directory, kernel) = kernel(echoes());
    let mut command = vmm(&["--kernel", kernel.to_str().unwrap(), "--console", "serial"]);
    let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    process.stdin.take().unwrap().write_all(b"word q").unwrap();
    let output = process.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b">word q"[..]));
}

#[test]
fn a_signal_ends_the_vm_and_is_told_apart() {
    if !have_kvm() {
        return;
    }
    let (_directory, kernel) = kernel(echoes());
    let mut command = vmm(&["--kernel", kernel.to_str().unwrap(), "--console", "serial"]);
    let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut prompt = [0];
    process.stdout.as_mut().unwrap().read_exact(&mut prompt).unwrap();
    kill(Pid::from_raw(process.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    assert_eq!(process.wait().unwrap().code(), Some(3));
}

#[test]
fn the_terminal_is_raw_meanwhile_and_put_right_at_the_end() {
    if !have_kvm() {
        return;
    }
    let (_directory, kernel) = kernel(echoes());
    let terminal = openpty(None, None).unwrap();
    let before = tcgetattr(&terminal.slave).unwrap();
    let mut command = vmm(&["--kernel", kernel.to_str().unwrap(), "--console", "serial"]);
    command.stdin(Stdio::from(terminal.slave.try_clone().unwrap()));
    command.stdout(Stdio::from(terminal.slave.try_clone().unwrap()));
    let mut process = command.spawn().unwrap();
    let mut screen = File::from(terminal.master);
    let mut prompt = [0];
    screen.read_exact(&mut prompt).unwrap();
    assert_ne!(tcgetattr(&terminal.slave).unwrap(), before);
    // Ctrl-C and a doubled Ctrl-A are the guest's; Ctrl-A x is ours.
    screen.write_all(b"\x03\x01\x01").unwrap();
    let mut echo = [0; 2];
    screen.read_exact(&mut echo).unwrap();
    assert_eq!(&echo, b"\x03\x01");
    screen.write_all(b"\x01x").unwrap();
    assert_eq!(process.wait().unwrap().code(), Some(3));
    assert_eq!(tcgetattr(&terminal.slave).unwrap(), before);
}

#[test]
fn bad_input_is_one_line_that_says_what_and_why() {
    let (directory, kernel) = kernel(says_hi_and_resets());
    let kernel = kernel.to_str().unwrap();
    let truncated = directory.path().join("truncated");
    fs::write(&truncated, &micro_guest::image(&[0x90; 4096])[..1000]).unwrap();
    let truncated = truncated.to_str().unwrap();
    let mut table = vec![
        (vec!["--console", "none"], "--kernel is needed"),
        (vec!["--kernel", "/no/such/kernel"], "cannot open /no/such/kernel: No such file"),
    ];
    if have_kvm() {
        table.extend([
            (vec!["--kernel", truncated], "the kernel image is truncated"),
            (vec!["--kernel", "/etc/passwd"], "not an uncompressed Linux kernel"),
            (
                vec!["--kernel", kernel, "--disk", "/no/such/disk,ro"],
                "cannot open /no/such/disk: No such file",
            ),
            (vec!["--kernel", kernel, "--vcpus", "0"], "a VM has from 1 to 254 vCPUs, not 0"),
            (vec!["--kernel", kernel, "--memory", "1"], "a VM has from 2 to"),
        ]);
    }
    for (arguments, message) in table {
        let output = vmm(&arguments).output().unwrap();
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {text}");
        assert!(text.starts_with("lazaret-vmm: ") && text.contains(message), "{arguments:?}: {text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
    for arguments in [
        &["--memory", "lots"][..],
        &["--console", "file:"],
        &["--shared", "tag"],
        &["--net", "tap0"],
        &["--net", "mac=02:00:00:00:00:01"],
        &["--net", "tap=tap0,mac=02:00:00:00:00"],
        &["--net", "tap=a-name-too-long-"],
        &["--probe", "--vcpus", "2"],
    ] {
        assert_eq!(vmm(arguments).output().unwrap().status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn help_shows_examples_and_what_the_exit_status_means() {
    let output = vmm(&["--help"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains("Examples:") && text.contains("Exit status:"), "{text}");
}
