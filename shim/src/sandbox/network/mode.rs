//! What network a sandbox is to have: by its annotations, else by the configuration.

use crate::config::{Config, NetworkDefault};
use crate::error::{Error, Result};
use crate::network::Published;
use crate::sandbox::container::spec::{NetworkNamespace, Spec};
use std::fs;
use std::os::unix::fs::MetadataExt;

const MODE_ANNOTATION: &str = "io.lazaret.net";
const PUBLISH_ANNOTATION: &str = "io.lazaret.net.publish";

/// The network of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NetworkMode {
    /// The loopback interface alone, whatever the network namespace holds.
    None,
    /// What the network namespace holds.
    Namespace,
    /// A user-mode network where the network namespace holds no interface.
    User(UserNetwork),
}

/// A user-mode network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UserNetwork {
    /// The annotation that does not allow what else the namespace holds.
    pub asked_by: Option<&'static str>,
    pub published: Vec<Published>,
}

impl NetworkMode {
    /// What `spec` asks for, else the configuration.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an annotation that means nothing, or contradicts another.
    pub(crate) fn of(spec: &Spec, config: &Config) -> Result<Self> {
        let refuse = |annotation: &str, value: &str, expected: &str| {
            Err(Error::InvalidArgument(format!("annotation {annotation}={value:?}: {expected}")))
        };
        let publish = spec.annotation(PUBLISH_ANNOTATION);
        let published = match publish.map(Published::parse_list).transpose() {
            Ok(published) => published.unwrap_or_default(),
            Err(line) => return refuse(PUBLISH_ANNOTATION, publish.unwrap_or_default(), &line),
        };
        let default = if is_host(&spec.network_namespace()) { config.host_network } else { config.network };
        let annotation = spec.annotation(MODE_ANNOTATION);
        let mode = match (annotation, default) {
            (Some("none"), _) => Self::None,
            (Some("user"), _) | (None, NetworkDefault::User) => {
                let asked_by = annotation.map(|_| MODE_ANNOTATION);
                let asked_by = asked_by.or_else(|| publish.map(|_| PUBLISH_ANNOTATION));
                return Ok(Self::User(UserNetwork { asked_by, published }));
            }
            (None, NetworkDefault::None) => Self::Namespace,
            (Some(value), _) => return refuse(MODE_ANNOTATION, value, "expected user or none"),
        };
        match publish {
            Some(value) => {
                let expected =
                    format!("it is for a user-mode network, which {MODE_ANNOTATION}=user asks for");
                refuse(PUBLISH_ANNOTATION, value, &expected)
            }
            None => Ok(mode),
        }
    }
}

/// Whether a spec asks for the host's network namespace, by leaving the namespace out or by naming the host's own.
#[must_use]
pub(in crate::sandbox) fn is_host(asked: &NetworkNamespace) -> bool {
    match asked {
        NetworkNamespace::New => false,
        NetworkNamespace::Host => true,
        NetworkNamespace::Path(path) => {
            let both = fs::metadata(path).and_then(|theirs| Ok((theirs, fs::metadata("/proc/self/ns/net")?)));
            // A path that is not there is an error later, when it is opened.
            both.is_ok_and(|(theirs, ours)| (theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino()))
        }
    }
}

#[cfg(test)]
#[path = "mode_test.rs"]
mod tests;
