//! `lazaret`: what an operator wants to know of this host and its sandboxes. It reads, and changes nothing but the volumes it is
//! told to remove.
//!
//! ```text
//!   lazaret doctor    lazaret-vmm --probe, guest files, containerd   what is missing, and what to do
//!   lazaret ps        /run/lazaret/*/*/state.json                    the sandboxes
//!   lazaret logs ID   /run/lazaret/*/ID/console.log                  guest kernel and agent
//!   lazaret volume    <disk_dir>/volumes/*                           what Docker daemons have kept
//!   lazaret docker ID /run/lazaret/*/ID/docker.sock                  docker, on a sandbox's daemon
//! ```

use clap::{Parser, Subcommand};
use lazaret_shim::config::Config;
use lazaret_shim::operator::{docker, doctor, sandboxes, volumes};
use lazaret_shim::{info, state::STATE_ROOT};
use serde::Serialize;
use std::error::Error;
use std::ffi::OsString;
use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::process::ExitCode;

/// Looks after lazaret, the containerd runtime that gives every sandbox a microVM of its own.
#[derive(Debug, Parser)]
#[command(name = "lazaret", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Checks whether this host can run sandboxes; ends with status 1 if it cannot.
    Doctor {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Lists the sandboxes of this host.
    Ps {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Prints what a sandbox's kernel and agent wrote to their console.
    Logs {
        /// The sandbox's id, or an unmistakable beginning of it.
        id: String,
        /// containerd's namespace, where the id alone is not enough.
        #[arg(short, long)]
        namespace: Option<String>,
    },
    /// Runs docker on the daemon of a sandbox that exports its socket (io.lazaret.docker.export=true).
    ///
    /// That daemon is the sandbox's: what docker tells a daemon, registry passwords among it, the sandbox reads, and what it
    /// answers may be anything.
    Docker {
        /// containerd's namespace, where the id alone is not enough.
        #[arg(short, long)]
        namespace: Option<String>,
        /// The sandbox's id, or an unmistakable beginning of it.
        id: String,
        /// Docker's own arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
        arguments: Vec<OsString>,
    },
    /// Looks after the volumes that Docker daemons keep their data on (io.lazaret.docker.volume).
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Prints the configuration in force, each key with its meaning.
    Config {
        /// Print the defaults instead.
        #[arg(long)]
        default: bool,
    },
    /// Prints lazaret's version.
    Version,
}

#[derive(Debug, Subcommand)]
enum VolumeCommand {
    /// Lists the volumes: the most each can hold, what it takes of the host's disk, and the sandbox that has it.
    Ls {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Removes volumes, with what is on them; ends with status 1 if one is not there or in use.
    Rm {
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(status) => status,
        Err(error) => {
            // A reader that has seen enough, as in `lazaret logs ID | head`, is no failure.
            let closed = error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == ErrorKind::BrokenPipe);
            if !closed {
                eprintln!("lazaret: {error}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode, Box<dyn Error>> {
    let root = Path::new(STATE_ROOT);
    let mut out = io::stdout().lock();
    match command {
        Command::Doctor { json } => {
            let checks = doctor::examine();
            let text = if json { to_json(&checks)? } else { doctor::render(&checks) };
            out.write_all(text.as_bytes())?;
            if checks.iter().any(|check| check.verdict == doctor::Verdict::Bad) {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Ps { json } => {
            let found = sandboxes::list(root);
            let text = if json { to_json(&found)? } else { sandboxes::render(&found) };
            out.write_all(text.as_bytes())?;
        }
        Command::Logs { id, namespace } => {
            let sandbox = sandboxes::find(root, namespace.as_deref(), &id)?;
            out.write_all(&sandboxes::console(&sandbox)?)?;
        }
        Command::Docker { namespace, id, arguments } => {
            let sandbox = sandboxes::find(root, namespace.as_deref(), &id)?;
            match docker::exec(&sandbox, &arguments)? {}
        }
        Command::Volume(VolumeCommand::Ls { json }) => {
            let found = volumes::list(&Config::load(None)?, root)?;
            let text = if json { to_json(&found)? } else { volumes::render(&found) };
            out.write_all(text.as_bytes())?;
        }
        Command::Volume(VolumeCommand::Rm { names }) => {
            let config = Config::load(None)?;
            let mut status = ExitCode::SUCCESS;
            for name in names {
                if let Err(error) = volumes::remove(&config, root, &name) {
                    eprintln!("lazaret: {error}");
                    status = ExitCode::FAILURE;
                }
            }
            return Ok(status);
        }
        Command::Config { default } => {
            let config = if default { Config::default() } else { Config::load(None)? };
            out.write_all(config.describe().as_bytes())?;
        }
        Command::Version => writeln!(out, "lazaret {}", info::VERSION)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn to_json<T: Serialize>(value: &[T]) -> serde_json::Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}
