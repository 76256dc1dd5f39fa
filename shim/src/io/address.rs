//! Where a process's stdio is connected to, as containerd writes it.

use super::StdioError;
use std::path::PathBuf;

/// One stdio address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Address {
    /// Not connected.
    None,
    /// A named pipe: a path, or `fifo://`.
    Fifo(PathBuf),
    /// A file that is appended to: `file://`.
    File(PathBuf),
    /// A logging driver: `binary://`.
    Driver(DriverCommand),
}

/// A logging driver's binary, and its arguments: each key of the address's query, and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DriverCommand {
    pub binary: PathBuf,
    pub args: Vec<String>,
}

impl Address {
    /// # Errors
    /// [`StdioError::Scheme`], [`StdioError::Address`].
    pub(super) fn parse(address: &str) -> Result<Self, StdioError> {
        let refuse = |why| StdioError::Address { address: address.into(), why };
        let path = |text: &str| match decode(text) {
            Some(path) if path.starts_with('/') => Ok(PathBuf::from(path)),
            _ => Err(refuse("its path is not absolute, or not encoded as in a URL")),
        };
        match address.split_once("://") {
            None if address.is_empty() => Ok(Self::None),
            None => Ok(Self::Fifo(address.into())),
            // As it is: a pipe's path is no URL for containerd's own shim either.
            Some(("fifo", rest)) => Ok(Self::Fifo(rest.into())),
            Some(("file", rest)) => Ok(Self::File(path(rest)?)),
            Some(("binary", rest)) => {
                let (binary, query) = rest.split_once('?').unwrap_or((rest, ""));
                let pairs = query.split('&').filter(|pair| !pair.is_empty());
                let words = pairs.flat_map(|pair| match pair.split_once('=') {
                    Some((key, value)) => [key, value],
                    None => [pair, ""],
                });
                let args: Option<_> = words.map(|word| decode(&word.replace('+', " "))).collect();
                let args = args.ok_or_else(|| refuse("its query is not encoded as in a URL"))?;
                Ok(Self::Driver(DriverCommand { binary: path(binary)?, args }))
            }
            Some(_) => Err(StdioError::Scheme(address.into())),
        }
    }
}

/// Text without its `%xx`; `None` when it is not encoded well.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        let byte = if *first == b'%' {
            let (digits, tail) = rest.split_at_checked(2)?;
            rest = tail;
            let digits = std::str::from_utf8(digits).ok().filter(|digits| !digits.starts_with('+'))?;
            u8::from_str_radix(digits, 16).ok()?
        } else {
            *first
        };
        bytes.push(byte);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
#[path = "address_test.rs"]
mod tests;
