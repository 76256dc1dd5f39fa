//! The private Docker daemon, as far as the host has a part in it: whether there is one, its disk and its socket.

pub(in crate::sandbox) mod disk;
pub(in crate::sandbox) mod socket;

use crate::config::{Config, DOCKER_DISK_MIB};
use crate::error::{Error, Result};
use crate::sandbox::container::spec::Spec;
use crate::sandbox::sizing::parse_memory;
use crate::state::StateDir;
use crate::volume::{Capacity, VolumeName};
use lazaret_agent_api::agent;

const MODE_ANNOTATION: &str = "io.lazaret.docker";
const DISK_ANNOTATION: &str = "io.lazaret.docker.disk";
const VOLUME_ANNOTATION: &str = "io.lazaret.docker.volume";
const EXPORT_ANNOTATION: &str = "io.lazaret.docker.export";
const USERS_ANNOTATION: &str = "io.lazaret.docker.users";

/// The daemon of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Docker {
    /// It answers before the sandbox's container is made; otherwise it is started by the first connection to it.
    pub eager: bool,
    /// Of the disk of its data.
    pub capacity: Capacity,
    /// Where that disk outlives the sandbox.
    pub volume: Option<VolumeName>,
    /// The host has its socket, too.
    pub export: bool,
    /// It is for every user of the sandbox, not only for those who could be root in their container.
    pub any_user: bool,
}

impl Docker {
    /// What `spec` asks for, else the configuration; `None` when the sandbox is to have no daemon.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an annotation that means nothing, or contradicts another.
    pub(crate) fn of(spec: &Spec, config: &Config) -> Result<Option<Self>> {
        let refuse = |annotation: &str, value: &str, expected: &str| {
            Err(Error::InvalidArgument(format!("annotation {annotation}={value:?}: {expected}")))
        };
        let capacity = match spec.annotation(DISK_ANNOTATION) {
            None => Capacity::New(config.docker_disk_mib),
            Some(value) => match parse_memory(value).filter(|mib| DOCKER_DISK_MIB.contains(mib)) {
                Some(mib) => Capacity::Exactly(mib),
                None => {
                    let (least, most) = (DOCKER_DISK_MIB.start(), DOCKER_DISK_MIB.end());
                    let expected = format!(
                        "expected a size from {least}Mi to {most}Mi, in MiB or with a unit, such as 20Gi"
                    );
                    return refuse(DISK_ANNOTATION, value, &expected);
                }
            },
        };
        let volume = match spec.annotation(VOLUME_ANNOTATION) {
            None => None,
            Some(value) => match VolumeName::parse(value) {
                Ok(name) => Some(name),
                Err(error) => return refuse(VOLUME_ANNOTATION, value, &error.to_string()),
            },
        };
        let export = match spec.annotation(EXPORT_ANNOTATION) {
            None | Some("false") => false,
            Some("true") => true,
            Some(value) => return refuse(EXPORT_ANNOTATION, value, "expected true or false"),
        };
        let any_user = match spec.annotation(USERS_ANNOTATION) {
            None => false,
            Some("all") => true,
            Some(value) => return refuse(USERS_ANNOTATION, value, "expected all"),
        };
        let eager = match spec.annotation(MODE_ANNOTATION) {
            None | Some("lazy") => false,
            Some("eager") => true,
            Some("off") => {
                let asks = [
                    (VOLUME_ANNOTATION, volume.is_some()),
                    (EXPORT_ANNOTATION, export),
                    (USERS_ANNOTATION, any_user),
                ];
                return match asks.into_iter().find(|(_, asked)| *asked) {
                    Some((other, _)) => {
                        refuse(MODE_ANNOTATION, "off", &format!("but {other} is for a daemon"))
                    }
                    None => Ok(None),
                };
            }
            Some(value) => return refuse(MODE_ANNOTATION, value, "expected lazy, eager or off"),
        };
        Ok(Some(Self { eager, capacity, volume, export, any_user }))
    }

    /// What the agent is to know of it.
    #[must_use]
    pub(crate) fn for_agent(&self) -> agent::Docker {
        let keep = self.volume.is_some();
        let (eager, export, any_user) = (self.eager, self.export, self.any_user);
        agent::Docker { eager, keep, export, any_user, ..Default::default() }
    }

    /// The socket the host is to have, below the state directory of the sandbox.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when there can be none.
    pub(crate) fn check_socket(&self, state: &StateDir) -> Result<()> {
        if self.export { socket::check(EXPORT_ANNOTATION, &state.docker_socket()) } else { Ok(()) }
    }
}

#[cfg(test)]
#[path = "docker_test.rs"]
mod tests;
