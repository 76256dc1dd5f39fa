//! The one rule for identifiers: of containers, execs, containerd's namespaces and volumes.
//!
//! An identifier becomes the name of a file, a directory or a cgroup, so it can neither leave its directory nor name
//! another one. The rule is containerd's own (`identifiers.Validate`), which all its clients are held to. Shim and agent
//! share it, so that no identifier boots a VM whose agent then refuses it.

/// The longest identifier, in bytes.
pub const MAX_IDENTIFIER: usize = 76;

/// Why a text is refused as an identifier. The message quotes the text and says the rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not an identifier: expected letters and digits, with a single '.', '_' or '-' between them, \
     at most {MAX_IDENTIFIER} characters"
)]
pub struct InvalidIdentifier(String);

/// Checks that `text` is an identifier: `^[A-Za-z0-9]+([._-][A-Za-z0-9]+)*$`, at most [`MAX_IDENTIFIER`] bytes.
///
/// # Errors
/// [`InvalidIdentifier`], which quotes no more of the text than an identifier could have.
pub fn check_identifier(text: &str) -> Result<(), InvalidIdentifier> {
    let is_part = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if text.len() <= MAX_IDENTIFIER && text.split(['.', '_', '-']).all(is_part) {
        Ok(())
    } else {
        Err(InvalidIdentifier(text.chars().take(MAX_IDENTIFIER).collect()))
    }
}

#[cfg(test)]
#[path = "identifier_test.rs"]
mod tests;
