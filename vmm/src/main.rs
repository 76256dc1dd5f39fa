//! The command line of `lazaret-vmm`.

use clap::Parser;
use lazaret_vmm::{control, probe, standalone};
use log::{LevelFilter, Log, Metadata, Record};
use std::cmp::Ordering::{Equal, Greater, Less};
use std::io::{self, Write};
use std::os::fd::RawFd;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};

const EXAMPLES: &str = "\
Examples:
  Boot a kernel with a root disk on this terminal; Ctrl-A x ends it:
    lazaret-vmm --kernel vmlinux --disk root.erofs,ro --cmdline 'console=hvc0 root=/dev/vda ro reboot=k panic=-1'
  Two vCPUs, 1 GiB, a writable disk and a shared directory (mount -t virtiofs data /mnt):
    lazaret-vmm --kernel vmlinux --disk root.img --vcpus 2 --memory 1G --shared data=/srv/data
  Give it a network interface, with a tap that is made beforehand:
    ip tuntap add tap0 mode tap vnet_hdr; ip link set tap0 up
    lazaret-vmm --kernel vmlinux --disk root.img --net tap=tap0
  See a kernel die before it has virtio:
    lazaret-vmm --kernel vmlinux --console serial --cmdline 'earlyprintk=ttyS0 console=ttyS0'
  Can this machine's KVM run a kernel?
    lazaret-vmm --probe

The guest ends the VM by a reset (reboot=k); without ACPI, `poweroff` only halts it: use `reboot`.

Exit status: 0 the guest ended the VM (or the probe found a good KVM); 1 the VM could not be built or failed (or the
probe found none); 2 wrong usage; 3 the VM was stopped from outside: Ctrl-A x, SIGINT, SIGTERM or SIGHUP.";

/// Runs one virtual machine on KVM.
#[derive(Debug, Parser)]
#[command(name = "lazaret-vmm", version, after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    machine: standalone::Flags,
    /// Say whether /dev/kvm can run a kernel, as one line of JSON: {"kvm":"absent|unusable|good","detail":"..."}
    #[arg(long, exclusive = true)]
    probe: bool,
    /// Take orders from lazaret's shim over the inherited control channel N
    #[arg(long, value_name = "N", exclusive = true)]
    control_fd: Option<RawFd>,
}

static STDERR: Stderr = Stderr { lines: AtomicU32::new(0) };

fn main() -> ExitCode {
    // It fails when a logger is set, and none is.
    let _ = log::set_logger(&STDERR);
    log::set_max_level(LevelFilter::Info);
    let cli = Cli::parse();
    if cli.probe {
        let verdict = probe::probe();
        let good = verdict.kvm == probe::Kvm::Good;
        println!("{}", serde_json::to_string(&verdict).unwrap_or_default());
        return if good { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let result = match cli.control_fd {
        Some(fd) => control::run(fd).map(|()| ExitCode::SUCCESS).map_err(|error| error.to_string()),
        None => standalone::run(&cli.machine)
            .map(|by_guest| if by_guest { ExitCode::SUCCESS } else { ExitCode::from(3) })
            .map_err(|error| error.to_string()),
    };
    result.unwrap_or_else(|error| {
        eprintln!("lazaret-vmm: {error}");
        ExitCode::FAILURE
    })
}

/// Log lines go to stderr, which the shim reads. A guest can provoke them: there is an end to it.
struct Stderr {
    lines: AtomicU32,
}

/// Lines one VM may log.
const MAX_LINES: u32 = 500;

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let line = self.lines.fetch_add(1, Ordering::Relaxed);
        // A reader that has gone must not end the VM, as it would by `eprintln!`.
        let _ = match line.cmp(&MAX_LINES) {
            Less => writeln!(io::stderr(), "lazaret-vmm: {}: {}", record.level(), record.args()),
            Equal => writeln!(io::stderr(), "lazaret-vmm: further messages are left out"),
            Greater => {
                self.lines.store(MAX_LINES + 1, Ordering::Relaxed);
                Ok(())
            }
        };
    }

    fn flush(&self) {}
}
