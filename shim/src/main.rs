//! `containerd-shim-lazaret-v2`: containerd's way into a microVM.
//!
//! ```text
//!   containerd ──runs──► start | delete | -info | -v
//!              ──ttrpc─► the server that `start` leaves behind, one for each sandbox
//!                          │ control channel (SOCK_SEQPACKET, descriptors)
//!                          ▼
//!                        lazaret-vmm ══ guest: kernel, lazaret-agent, the container
//! ```
//!
//! containerd reads standard output and standard error of `start` as one, so nothing but the reply is written there
//! when it succeeds; the log goes to the bundle's `log` pipe.

use lazaret_shim::args::{Action, Args};
use lazaret_shim::{bootstrap, delete, info, start};
use std::error::Error;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // containerd shows what is written here inside a line of its own.
            let end = if std::io::stderr().is_terminal() { "\n" } else { "" };
            eprint!("lazaret: {error}{end}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let args = Args::parse(std::env::args_os().skip(1))?;
    let reply = match args.action {
        Action::Version => format!("containerd-shim-lazaret-v2 {}\n", info::VERSION).into_bytes(),
        Action::Info => {
            // containerd pipes options, which change nothing; reading them spares it a broken pipe.
            bootstrap::read_stdin()?;
            info::runtime_info()?
        }
        Action::Start => start::run(&args)?,
        Action::Delete => delete::run(&args)?,
    };
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(&reply)?;
    Ok(stdout.flush()?)
}
