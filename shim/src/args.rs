//! The command line containerd calls the shim with: Go's `flag` style, one dash, all flags before the action.

use lazaret_agent_api::{InvalidIdentifier, check_identifier};
use std::ffi::OsString;
use std::path::PathBuf;

/// What the binary is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Start,
    Delete,
    /// `-info`: describe the runtime.
    Info,
    /// `-v`: print the version.
    Version,
}

/// The parsed command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Args {
    pub action: Action,
    /// containerd's namespace.
    pub namespace: String,
    /// The container's id; for all but a pod's members the sandbox's too.
    pub id: String,
    /// containerd's gRPC address. Part of the name of the socket, so that two containerds do not meet.
    pub address: String,
    pub publish_binary: String,
    /// Only with `delete`; the working directory is the bundle as well.
    pub bundle: Option<PathBuf>,
    pub debug: bool,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgsError {
    #[error("unknown flag {0}; this is a containerd shim, which containerd runs (try `lazaret --help`)")]
    UnknownFlag(String),
    #[error("flag -{0} needs a value")]
    MissingValue(String),
    #[error("flag -{flag}: {value:?} is neither true nor false")]
    NotBool { flag: String, value: String },
    #[error("an argument is not UTF-8: {0:?}")]
    NotUtf8(OsString),
    #[error("no action; expected start or delete (this is a containerd shim, which containerd runs)")]
    NoAction,
    #[error("unknown action {0:?}; expected start or delete")]
    UnknownAction(String),
    #[error("flag -{flag}: {source}")]
    BadIdentifier { flag: &'static str, source: InvalidIdentifier },
}

impl Args {
    /// Reads the arguments that follow the binary's name.
    ///
    /// # Errors
    /// [`ArgsError`], each of which names the argument.
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, ArgsError> {
        let mut args = Self {
            action: Action::Version,
            namespace: String::new(),
            id: String::new(),
            address: String::new(),
            publish_binary: String::new(),
            bundle: None,
            debug: false,
        };
        let mut arguments =
            arguments.into_iter().map(|argument| argument.into_string().map_err(ArgsError::NotUtf8));
        let (mut version, mut info) = (false, false);
        let action = loop {
            let Some(argument) = arguments.next().transpose()? else { break None };
            // Go's parser stops at the first word that is no flag; what follows the action is not the shim's.
            let Some(flag) = argument.strip_prefix('-').filter(|flag| !flag.is_empty()) else {
                break Some(argument);
            };
            let flag = flag.strip_prefix('-').unwrap_or(flag);
            let (name, inline) = match flag.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (flag.to_owned(), None),
            };
            let switch = match name.as_str() {
                "v" | "version" => Some(&mut version),
                "info" => Some(&mut info),
                "debug" => Some(&mut args.debug),
                _ => None,
            };
            if let Some(switch) = switch {
                *switch = parse_bool(&name, inline.as_deref())?;
                continue;
            }
            let known = ["namespace", "id", "address", "publish-binary", "bundle", "socket", "debug-socket"];
            if !known.contains(&name.as_str()) {
                return Err(ArgsError::UnknownFlag(argument));
            }
            let value = match inline {
                Some(value) => value,
                None => arguments.next().transpose()?.ok_or_else(|| ArgsError::MissingValue(name.clone()))?,
            };
            match name.as_str() {
                "namespace" => args.namespace = value,
                "id" => args.id = value,
                "address" => args.address = value,
                "publish-binary" => args.publish_binary = value,
                "bundle" => args.bundle = Some(value.into()),
                // Go shims pass themselves these two when they start their server; lazaret forks instead.
                _ => {}
            }
        };
        args.action = match (version, info, action.as_deref()) {
            (true, ..) => return Ok(args),
            (_, true, _) => Action::Info,
            (.., Some("start")) => Action::Start,
            (.., Some("delete")) => Action::Delete,
            (.., None) => return Err(ArgsError::NoAction),
            (.., Some(other)) => return Err(ArgsError::UnknownAction(other.into())),
        };
        if args.action != Action::Info {
            check_flag("id", &args.id)?;
            check_flag("namespace", &args.namespace)?;
        }
        Ok(args)
    }
}

fn parse_bool(flag: &str, value: Option<&str>) -> Result<bool, ArgsError> {
    match value {
        None | Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
        Some(other) => Err(ArgsError::NotBool { flag: flag.into(), value: other.into() }),
    }
}

/// Both values become names of directories.
fn check_flag(flag: &'static str, value: &str) -> Result<(), ArgsError> {
    check_identifier(value).map_err(|source| ArgsError::BadIdentifier { flag, source })
}

#[cfg(test)]
#[path = "args_test.rs"]
mod tests;
