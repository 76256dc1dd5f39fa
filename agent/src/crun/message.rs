//! crun's log, down to the one line a user needs.

/// The last of what a log of errors, a line each, says.
pub(super) fn last_error(log: &str) -> Option<String> {
    let line = log.lines().map(str::trim).rfind(|line| !line.is_empty())?;
    Some(as_others_say_it(line.to_owned()))
}

/// A command that cannot be run, in runc's words: Docker looks for them, to make exit status 126 or 127 of them.
fn as_others_say_it(message: String) -> String {
    let named = |before: &str, after: &str| {
        let rest = message.strip_prefix(before)?.strip_prefix('`')?;
        rest.split_once('`').filter(|(_, rest)| rest.starts_with(after)).map(|(name, _)| name.to_owned())
    };
    let missing = named("executable file ", " not found").or_else(|| named("cannot find ", " in $PATH"));
    if let Some(command) = missing {
        return match command.contains('/') {
            true => format!("exec: {command:?}: stat {command}: no such file or directory"),
            false => format!("exec: {command:?}: executable file not found in $PATH"),
        };
    }
    if let Some(path) = named("the path ", " exists but it is not executable") {
        return format!("exec: {path:?}: permission denied");
    }
    if let Some(path) = named("the path ", " is not a regular file") {
        return format!("exec: {path:?}: is a directory");
    }
    message
}

#[cfg(test)]
#[path = "message_test.rs"]
mod tests;
