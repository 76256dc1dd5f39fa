//! The loopback interface of the sandbox's network namespace, as far as it is the guest's, too.
//!
//! ```text
//!   Start ─► the network is set up ─► localhost: 127.0.0.1 and ::1 lead into the guest ─► names: 127.0.0.11 answers the guest
//! ```
//!
//! Only a namespace that is wired has this. What does not work is a warning: a sandbox is of use without it.

use super::localhost;
use crate::network::{Localhost, Names};
use crate::sandbox::vm::Vm;
use lazaret_agent_api::{Ack, FORWARD_PORT, NAMES_PORT, RESOLVER};
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

/// Bytes of the container's `/etc/resolv.conf` that are read. Its name servers are at its beginning.
const MAX_RESOLV_CONF: u64 = 64 * 1024;
/// How long the agent may take to listen for name queries.
const NAMES_TIMEOUT: Duration = Duration::from_secs(20);

/// What is carried between the two loopback interfaces, if anything.
#[derive(Debug, Default)]
pub(in crate::sandbox) struct Loopback {
    open: Mutex<Option<Open>>,
}

/// What has to be undone, in this order.
#[derive(Debug, Default)]
struct Open {
    names: Option<Names>,
    /// The task that serves localhost of the namespace.
    localhost: JoinSet<()>,
}

impl Loopback {
    /// Has connections to localhost of the VM's network namespace carried to the guest; and the guest's name queries to the
    /// namespace, when `resolv_conf` says that its resolver is there. Again does nothing.
    pub(in crate::sandbox) async fn open(&self, vm: &Vm, resolv_conf: Option<&Path>) {
        let mut open = self.open.lock().await;
        // Whoever closes this after the VM's end has been here, or comes after this.
        if open.is_some() || vm.ended().borrow().is_some() {
            return;
        }
        let open = open.insert(Open::default());
        match Localhost::open(vm.network_namespace()).await {
            Ok(localhost) => {
                let dialer = vm.dialer();
                let connect = move || {
                    let dialer = dialer.clone();
                    async move { dialer.connect(FORWARD_PORT).await }
                };
                open.localhost.spawn(localhost::serve(localhost, connect));
            }
            Err(error) => log::warn!("{error}"),
        }
        if !names_docker(resolv_conf.map(Path::to_owned)).await {
            return;
        }
        match open_names(vm).await {
            Ok(names) => open.names = Some(names),
            Err(error) => log::warn!("the guest cannot resolve names at {}: {error}", RESOLVER.ip()),
        }
    }

    /// Gives localhost back to the namespace, and ends every connection.
    pub(in crate::sandbox) async fn close(&self) {
        let Some(Open { names, mut localhost }) = self.open.lock().await.take() else { return };
        drop(names);
        // The listeners are closed when the task has ended.
        localhost.shutdown().await;
    }
}

/// Whether the file names dockerd's resolver. dockerd writes that into the file, no later than between Create and Start, for a
/// container in a network whose containers find each other by name. So nothing is opened for a container that would not ask.
async fn names_docker(resolv_conf: Option<PathBuf>) -> bool {
    let Some(path) = resolv_conf else { return false };
    let read = move || {
        // A named pipe must not be waited for.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path)?;
        let mut text = String::new();
        file.take(MAX_RESOLV_CONF).read_to_string(&mut text).map(|_| text)
    };
    let resolver = RESOLVER.ip().to_string();
    let named = |line: &str| {
        let mut words = line.split_whitespace();
        words.next() == Some("nameserver") && words.next() == Some(&resolver)
    };
    match tokio::task::spawn_blocking(read).await.unwrap_or_else(|error| Err(error.into())) {
        Ok(text) => text.lines().any(named),
        Err(error) => {
            log::warn!("the container's /etc/resolv.conf: {error}");
            false
        }
    }
}

/// The agent dials nobody for names: it is dialled, and answers when it listens.
async fn open_names(vm: &Vm) -> io::Result<Names> {
    let attach = async {
        let mut stream = vm.connect(NAMES_PORT).await.map_err(io::Error::other)?;
        match Ack::try_from(stream.read_u8().await?) {
            Ok(Ack::Attached) => stream.into_std(),
            _ => {
                Err(io::Error::other("the agent cannot listen there; its console says why (`lazaret logs`)"))
            }
        }
    };
    let late = |_| io::Error::other(format!("the agent did not answer within {} s", NAMES_TIMEOUT.as_secs()));
    let stream = tokio::time::timeout(NAMES_TIMEOUT, attach).await.map_err(late)??;
    Names::serve(vm.network_namespace(), stream).map_err(io::Error::other)
}

#[cfg(test)]
#[path = "loopback_test.rs"]
mod tests;
