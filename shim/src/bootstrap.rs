//! What containerd pipes to `start`, and how it wants the answer.
//!
//! ```text
//!   containerd      stdin of `start`                          stdout of `start`
//!   1.6 … 2.2       runtime options as an `Any`, or nothing   the plain address (all of them take it)
//!   2.3 …           BootstrapParams                           BootstrapResult
//! ```
//!
//! An `Any` decodes as `BootstrapParams` too (its type URL lands in `instance_id`), so the message counts as
//! `BootstrapParams` only when it names the sandbox of the command line.

use crate::args::Args;
use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use protobuf::{CodedInputStream, Message, well_known_types::any::Any};
use std::io::{IsTerminal, Read};
use std::path::PathBuf;

/// The bound containerd itself sets on this message, in bytes.
const MAX_INPUT: u64 = 10 << 20;
/// containerd's log level from which on a shim is to be verbose (`LOG_LEVEL_DEBUG`).
const DEBUG_LEVEL: i32 = -4;
/// The task API's version in the reply. Version 2: containerd then calls `delete` for each container when a shim dies.
const TASK_VERSION: i32 = 2;
/// The options containerd knows for runtimes other than runc: where their configuration is.
const RUNTIME_OPTIONS: [&str; 2] = ["runtimeoptions.v1.Options", "containerd.runtimeoptions.v1.Options"];

/// What `start` learns from its standard input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bootstrap {
    protocol: Protocol,
    /// Where events go: containerd's ttrpc socket; empty when it has none.
    pub ttrpc_address: String,
    pub debug: bool,
    /// The configuration file that the runtime's options name.
    pub config_path: Option<PathBuf>,
    /// The directory for the shim's socket, when containerd names one.
    pub socket_dir: Option<PathBuf>,
    /// Type URLs of options that mean nothing to lazaret, for the log.
    pub ignored: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Legacy,
    Bootstrap,
}

#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    #[error("cannot read containerd's parameters from standard input: {0}")]
    Read(#[from] std::io::Error),
    #[error("containerd's parameters are larger than {MAX_INPUT} bytes")]
    TooLarge,
    #[error("containerd's runtime options are malformed: {0}")]
    Options(protobuf::Error),
}

/// Reads everything containerd pipes to the shim; nothing when a person runs it at a terminal.
///
/// # Errors
/// [`BootstrapError::Read`], [`BootstrapError::TooLarge`].
pub fn read_stdin() -> Result<Vec<u8>, BootstrapError> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        return Ok(Vec::new());
    }
    let mut input = Vec::new();
    if stdin.lock().take(MAX_INPUT + 1).read_to_end(&mut input)? as u64 > MAX_INPUT {
        return Err(BootstrapError::TooLarge);
    }
    Ok(input)
}

impl Bootstrap {
    /// Understands the input of `start`; `ttrpc_address` is the environment's, which containerd before 2.3 sets.
    ///
    /// # Errors
    /// [`BootstrapError::Options`].
    pub fn parse(input: &[u8], args: &Args, ttrpc_address: String) -> Result<Self, BootstrapError> {
        let mut bootstrap = Self {
            protocol: Protocol::Legacy,
            ttrpc_address,
            debug: args.debug,
            config_path: None,
            socket_dir: None,
            ignored: Vec::new(),
        };
        let params = BootstrapParams::parse_from_bytes(input)
            .ok()
            .filter(|params| params.instance_id == args.id && params.namespace == args.namespace);
        let Some(params) = params else {
            if let Ok(options) = Any::parse_from_bytes(input) {
                bootstrap.take_options(&options)?;
            }
            return Ok(bootstrap);
        };
        bootstrap.protocol = Protocol::Bootstrap;
        bootstrap.debug |= params.log_level.value() <= DEBUG_LEVEL;
        if !params.containerd_ttrpc_address.is_empty() {
            bootstrap.ttrpc_address = params.containerd_ttrpc_address;
        }
        bootstrap.socket_dir = params.socket_dir.filter(|dir| !dir.is_empty()).map(Into::into);
        for extension in &params.extensions {
            if let Some(options) = extension.value.as_ref() {
                bootstrap.take_options(options)?;
            }
        }
        Ok(bootstrap)
    }

    fn take_options(&mut self, options: &Any) -> Result<(), BootstrapError> {
        let name = options.type_url.rsplit('/').next().unwrap_or_default();
        if RUNTIME_OPTIONS.contains(&name) {
            let path = config_path(&options.value).map_err(BootstrapError::Options)?;
            self.config_path = path.or(self.config_path.take());
        } else if !name.is_empty() {
            self.ignored.push(options.type_url.clone());
        }
        Ok(())
    }

    /// The bytes to print for a sandbox that listens on `address`.
    ///
    /// # Errors
    /// The encoder's, which an address cannot cause.
    pub fn reply(&self, address: &str) -> Result<Vec<u8>, protobuf::Error> {
        match self.protocol {
            Protocol::Legacy => Ok(address.as_bytes().to_vec()),
            Protocol::Bootstrap => BootstrapResult {
                version: TASK_VERSION,
                address: address.into(),
                protocol: "ttrpc".into(),
                ..Default::default()
            }
            .write_to_bytes(),
        }
    }
}

/// `config_path`, field 2 of `runtimeoptions.v1.Options`; the message is small enough to be read by hand.
fn config_path(bytes: &[u8]) -> protobuf::Result<Option<PathBuf>> {
    const CONFIG_PATH: u32 = 2 << 3 | 2;
    let mut input = CodedInputStream::from_bytes(bytes);
    let mut path = None;
    while let Some(tag) = input.read_raw_tag_or_eof()? {
        if tag == CONFIG_PATH {
            path = Some(input.read_string()?).filter(|path| !path.is_empty()).map(Into::into);
        } else {
            protobuf::rt::skip_field_for_tag(tag, &mut input)?;
        }
    }
    Ok(path)
}

#[cfg(test)]
#[path = "bootstrap_test.rs"]
mod tests;
