//! The network of a guest: taps of the sandbox's network namespace in the guest's slots.
//!
//! ```text
//!   Start ─► wire the namespace ─► plug a tap into each slot ─► ConfigureNetwork ─► the container's process
//! ```
//!
//! Whoever makes the network may do that as late as between Create and Start, so the namespace is looked at by Start, and again
//! whenever it changes. Where nobody has made one, and a user-mode network is asked for, Start makes that first.

mod localhost;
pub(in crate::sandbox) mod loopback;
pub(in crate::sandbox) mod mode;
pub(in crate::sandbox) mod relay;
pub(crate) mod resolv_conf;

use crate::error::{Error, Result};
use crate::network::{Changes, Journal, NetworkError, Options, Pasta, Wiring};
use crate::sandbox::vm::Vm;
use crate::sync::lock;
use lazaret_agent_api::agent::ConfigureNetworkRequest;
use lazaret_vmm_wire as wire;
use mode::{NetworkMode, UserNetwork};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

/// Slots of a guest: the interfaces that a sandbox can have. Each takes one of the VM's 19 interrupts.
pub(in crate::sandbox) const NIC_SLOTS: u8 = 4;

impl From<NetworkError> for Error {
    fn from(error: NetworkError) -> Self {
        let line = error.to_string();
        match error {
            NetworkError::Late(_) => Self::DeadlineExceeded(line),
            NetworkError::Namespace(_)
            | NetworkError::Monitor(_)
            | NetworkError::Read { .. }
            | NetworkError::PastaSpawn { .. } => Self::Internal(line),
            _ => Self::FailedPrecondition(line),
        }
    }
}

/// What a guest's network is wired by.
pub(crate) struct Network {
    options: Options,
    mode: NetworkMode,
    /// Where the namespace's interface is pasta's.
    pasta: Mutex<Option<Pasta>>,
    wiring: Arc<Mutex<Wiring>>,
    /// What the guest has. Whoever changes it holds the lock from the namespace to the agent.
    pub(in crate::sandbox) configured: tokio::sync::Mutex<ConfigureNetworkRequest>,
    /// Whether changes are followed. A Start that failed may be tried again.
    pub(in crate::sandbox) followed: AtomicBool,
}

impl Network {
    /// For a guest with network devices of so many pairs of queues. `journal` is for a namespace that outlives the sandbox.
    #[must_use]
    pub(crate) fn new(
        queue_pairs: u8,
        anti_spoofing: bool,
        journal: Option<Journal>,
        mode: NetworkMode,
    ) -> Self {
        let queue_pairs = queue_pairs.into();
        let options = Options { slots: NIC_SLOTS, queue_pairs, anti_spoofing, to_host: false };
        let pasta = Mutex::default();
        let followed = AtomicBool::new(false);
        let wiring = Arc::new(Mutex::new(Wiring::new(journal)));
        Self { options, mode, pasta, wiring, configured: tokio::sync::Mutex::default(), followed }
    }

    /// Makes the network that the sandbox asks for, where it is not there. False when the sandbox is to have none.
    ///
    /// # Errors
    /// The namespace's, and pasta's.
    pub(in crate::sandbox) async fn prepare(&self, vm: &Vm) -> Result<bool> {
        match &self.mode {
            NetworkMode::None => return Ok(false),
            NetworkMode::Namespace => {}
            NetworkMode::User(user) => *lock(&self.pasta) = start_pasta(user, vm).await?,
        }
        Ok(true)
    }

    /// Joins what the VM's network namespace holds now to the VM's slots: what the guest is to have, and why something is not
    /// joined. The caller holds the lock of `configured`.
    ///
    /// # Errors
    /// When the namespace cannot be looked at.
    pub(in crate::sandbox) async fn wire(&self, vm: &Vm) -> Result<(ConfigureNetworkRequest, Vec<Error>)> {
        let options = Options { to_host: lock(&self.pasta).is_some(), ..self.options };
        let update = || Wiring::update(self.wiring.clone(), vm.network_namespace(), options);
        let mut changes = update().await?;
        while !changes.unplug.is_empty() {
            for slot in changes.unplug {
                unplug(vm, slot).await;
            }
            changes = update().await?;
        }
        let Changes { plug, network, failed, .. } = changes;
        let mut failed: Vec<Error> = failed.into_iter().map(Error::from).collect();
        for nic in plug {
            let plugged = vm.plug_nic(nic.slot, wire::Nic { mac: nic.mac, mtu: nic.mtu }, &nic.queues).await;
            if let Err(error) = plugged {
                failed.push(Error::Internal(format!("interface {}: {error}", nic.name)));
            }
        }
        Ok((network, failed))
    }

    /// Gives the namespace its interfaces back, and takes the guest's links down, as long as there is a VM. A user-mode network
    /// ends.
    pub(in crate::sandbox) async fn unwire(&self, vm: &Vm) {
        let mut configured = self.configured.lock().await;
        *configured = ConfigureNetworkRequest::default();
        let wiring = lock(&self.wiring).take();
        let slots = wiring.slots();
        // The kernel waits for its processors when a filter is removed.
        if let Err(error) = tokio::task::spawn_blocking(move || drop(wiring)).await {
            log::error!("unwiring the network: {error}");
        }
        let pasta = lock(&self.pasta).take();
        if let Some(pasta) = pasta {
            pasta.end().await;
        }
        for slot in slots {
            unplug(vm, slot).await;
        }
    }
}

/// Gives the VM's network namespace a user-mode network, unless the namespace holds an interface.
async fn start_pasta(user: &UserNetwork, vm: &Vm) -> Result<Option<Pasta>> {
    let interfaces = Wiring::interfaces(vm.network_namespace()).await?;
    match (interfaces.first(), user.asked_by) {
        (None, _) => Ok(Some(Pasta::start(vm.network_namespace(), &user.published).await?)),
        (Some(_), None) => Ok(None),
        (Some(_), Some(annotation)) => Err(Error::FailedPrecondition(format!(
            "annotation {annotation}: the sandbox's network namespace has a network already ({}): \
             leave out the one or the other",
            interfaces.join(", ")
        ))),
    }
}

/// Empties a slot. The tap goes with that.
async fn unplug(vm: &Vm, slot: u8) {
    if vm.ended().borrow().is_some() {
        return;
    }
    if let Err(error) = vm.unplug_nic(slot).await {
        log::debug!("unplugging network interface {slot}: {error}");
    }
}
