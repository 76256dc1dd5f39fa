//! Where a container finds the socket of the private Docker daemon.

use super::{Guest, Object, SpecError};
use lazaret_agent_api::DOCKER_SOCKET;
use serde_json::{Value, json};
use std::path::Path;

/// Where programs look for it. In most images the first is the second.
const USUAL: [&str; 2] = ["/var/run/docker.sock", "/run/docker.sock"];

/// Mounts the socket where programs look for it, unless something is mounted there, and where `DOCKER_HOST` in the environment
/// says. Tells when that is a place where it cannot be.
///
/// # Errors
/// [`SpecError::NoDocker`] for a container that counts on a daemon in a sandbox without one; [`SpecError::Shape`].
pub(super) fn mount_socket(spec: &mut Object, guest: &Guest) -> Result<Option<String>, SpecError> {
    let named = docker_host(spec);
    let root = spec.get("root").and_then(|root| root.get("path")?.as_str()).unwrap_or_default().to_owned();
    let mounts = spec.entry("mounts").or_insert_with(|| json!([])).as_array_mut();
    let mounts = mounts.ok_or(SpecError::Shape("mounts"))?;
    if !guest.docker_socket.exists() {
        let counted_on = mounts.iter().any(|mount| text(mount, "source") == DOCKER_SOCKET);
        return if counted_on { Err(SpecError::NoDocker) } else { Ok(None) };
    }
    let named = named.filter(|path| !USUAL.contains(&path.as_str()));
    let (named, refused) = match named {
        Some(path) if has_room(&path, mounts, &root) => (Some(path), None),
        Some(path) => (None, Some(format!("DOCKER_HOST: there can be no socket at {path:?}"))),
        None => (None, None),
    };
    let usual = !mounts.iter().any(|mount| USUAL.contains(&text(mount, "destination")));
    for place in usual.then_some(USUAL[0]).into_iter().chain(named.as_deref()) {
        mounts.push(json!({
            "destination": place, "type": "bind", "source": guest.docker_socket,
            "options": ["bind", "nosuid", "nodev", "noexec"],
        }));
    }
    Ok(refused)
}

/// The path that the environment says Docker's socket is at, if it is one.
fn docker_host(spec: &Object) -> Option<String> {
    let environment = spec.get("process")?.get("env")?.as_array()?;
    // The last of a name counts, as for a shell.
    let mut hosts = environment.iter().filter_map(|entry| entry.as_str()?.strip_prefix("DOCKER_HOST="));
    hosts.next_back()?.strip_prefix("unix://").map(str::to_owned)
}

/// Whether a socket can be mounted at `path` without anybody's harm: a variable in an image's environment must neither keep the
/// container from being made, nor hide what is mounted, nor make a file in what the user has mounted from the host.
fn has_room(path: &str, mounts: &[Value], root: &str) -> bool {
    let Some(relative) = path.strip_prefix('/') else { return false };
    if relative.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return false;
    }
    let below = |inner: &str, outer: &str| Path::new(inner).starts_with(outer);
    let hidden = |place: &str| below(place, path);
    let of_the_user = |mount: &Value| {
        let place = text(mount, "destination");
        hidden(place) || (text(mount, "type") == "bind" && below(path, place))
    };
    !["/proc", "/sys", "/dev"].iter().any(|place| below(path, place))
        && !USUAL.into_iter().any(hidden)
        && !mounts.iter().any(of_the_user)
        && !Path::new(root).join(relative).symlink_metadata().is_ok_and(|metadata| metadata.is_dir())
}

fn text<'a>(mount: &'a Value, key: &str) -> &'a str {
    mount.get(key).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
#[path = "docker_test.rs"]
mod tests;
