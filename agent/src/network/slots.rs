//! The network devices that hold no interface yet: a container must not see them, or it would find devices without a use
//! where other runtimes show the loopback interface alone. They wait in a network namespace of their own.

use super::{NetworkError, devices};
use crate::sync::lock;
use lazaret_agent_api::SLOT_ADDRESS;
use lazaret_agent_api::agent::{ConfigureNetworkRequest, Interface};
use lazaret_netlink::packet::RouteNetlinkMessage;
use lazaret_netlink::packet::link::LinkAttribute;
use lazaret_netlink::{Netlink, NetlinkError};
use nix::sched::{CloneFlags, unshare};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Mutex;
use tokio::sync::OnceCell;

/// Where the devices wait.
#[derive(Debug)]
pub(crate) struct Slots {
    /// It keeps the namespace, which has no process.
    namespace: File,
    netlink: Mutex<Netlink>,
    /// What the host asked for last.
    pub(super) configured: Mutex<ConfigureNetworkRequest>,
}

impl Slots {
    /// Moves the devices of empty slots out of this thread's network namespace.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub(crate) fn set_aside() -> Result<Self, NetworkError> {
        let (namespace, netlink) = new_namespace()?;
        let mut home = Netlink::open().map_err(NetworkError::List)?;
        for (address, device) in devices(&mut home)? {
            if address.starts_with(&SLOT_ADDRESS) && !device.is_up {
                let to = LinkAttribute::NetNsFd(namespace.as_raw_fd());
                move_device(&mut home, device.index, to, &slot_name(&address)).map_err(|source| {
                    let what = "set the unused device aside".into();
                    NetworkError::Set { interface: device.name, what, source }
                })?;
            }
        }
        Ok(Self::new(namespace, netlink))
    }

    /// In a test, whose machine has devices of its own.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        let (namespace, netlink) = new_namespace().expect("these tests need root");
        Self::new(namespace, netlink)
    }

    fn new(namespace: File, netlink: Netlink) -> Self {
        Self { namespace, netlink: Mutex::new(netlink), configured: Mutex::default() }
    }

    /// Moves the devices of `interfaces` into this thread's network namespace, under the interfaces' names.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub(super) fn fetch(&self, interfaces: &[Interface]) -> Result<(), NetworkError> {
        let mut netlink = lock(&self.netlink);
        let home = open_own_namespace().map_err(NetworkError::Namespace)?;
        let waiting = devices(&mut netlink)?;
        for interface in interfaces {
            let Some(device) = waiting.get(&interface.device) else { continue };
            let to = LinkAttribute::NetNsFd(home.as_raw_fd());
            move_device(&mut netlink, device.index, to, &interface.name).map_err(|source| {
                let what = "have a device of that name".into();
                NetworkError::Set { interface: interface.name.clone(), what, source }
            })?;
        }
        Ok(())
    }

    /// Moves the devices of `interfaces` out of the network namespace of `home`, and with them go their addresses and routes.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub(super) fn put_back(&self, home: &mut Netlink, interfaces: &[&Interface]) -> Result<(), NetworkError> {
        if interfaces.is_empty() {
            return Ok(());
        }
        let here = devices(home)?;
        for interface in interfaces {
            let Some(device) = here.get(&interface.device) else { continue };
            let to = LinkAttribute::NetNsFd(self.namespace.as_raw_fd());
            move_device(home, device.index, to, &slot_name(&interface.device)).map_err(|source| {
                let what = "take the device away".into();
                NetworkError::Set { interface: interface.name.clone(), what, source }
            })?;
        }
        Ok(())
    }
}

/// What a device is called while its slot is empty.
fn slot_name(device: &[u8]) -> String {
    format!("slot{}", device.last().copied().unwrap_or_default())
}

fn move_device(netlink: &mut Netlink, index: u32, to: LinkAttribute, name: &str) -> Result<(), NetlinkError> {
    let mut message = super::messages::with(index, to);
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    netlink.request(RouteNetlinkMessage::SetLink(message), 0)
}

/// The guest's slots, set aside when they are first asked for.
///
/// # Errors
/// [`NetworkError`].
pub(crate) async fn of_guest(slots: &OnceCell<Slots>) -> Result<&Slots, NetworkError> {
    let set_aside = || async {
        let failed = |error| NetworkError::Namespace(io::Error::other(error));
        tokio::task::spawn_blocking(Slots::set_aside).await.map_err(failed)?
    };
    slots.get_or_try_init(set_aside).await
}

/// A namespace, and a socket in it.
fn new_namespace() -> Result<(File, Netlink), NetworkError> {
    let make = || {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| NetworkError::Namespace(errno.into()))?;
        let namespace = open_own_namespace().map_err(NetworkError::Namespace)?;
        Ok((namespace, Netlink::open().map_err(NetworkError::List)?))
    };
    // A thread cannot leave its namespace and be where it was; so one is spent.
    let failed = || NetworkError::Namespace(io::Error::other("its thread failed"));
    std::thread::spawn(make).join().map_err(|_| failed())?
}

fn open_own_namespace() -> io::Result<File> {
    File::open("/proc/thread-self/ns/net")
}
