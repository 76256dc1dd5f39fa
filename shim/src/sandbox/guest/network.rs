//! The network of a guest follows its network namespace, from the guest's first process on until the VM ends.

use super::{CALL_TIMEOUT, Guest, within};
use crate::error::{Error, Result};
use crate::network::Monitor;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl Guest {
    /// Gives the guest the network that its network namespace holds now; loopback alone, where it holds none. What changes in the
    /// namespace from now on changes in the guest, too. The container's name servers are those of `resolv_conf`.
    ///
    /// # Errors
    /// Of the wiring, the VMM's and the agent's; the namespace is as it was then.
    pub(super) async fn set_up_network(self: &Arc<Self>, resolv_conf: Option<PathBuf>) -> Result<()> {
        if !self.network.prepare(&self.vm).await? {
            return Ok(());
        }
        let monitor = match Monitor::open(self.vm.network_namespace()).await {
            Ok(monitor) => monitor,
            Err(error) => {
                self.unwire_network().await;
                return Err(error.into());
            }
        };
        let failed = match self.update_network(resolv_conf.as_deref()).await {
            Ok(failed) => failed.into_iter().next(),
            Err(error) => Some(error),
        };
        if let Some(error) = failed {
            self.unwire_network().await;
            return Err(error);
        }
        if !self.network.followed.swap(true, Ordering::Relaxed) {
            tokio::spawn(self.clone().follow_network(monitor, resolv_conf));
        }
        Ok(())
    }

    /// Follows the changes of the network namespace until the VM ends.
    async fn follow_network(self: Arc<Self>, monitor: Monitor, resolv_conf: Option<PathBuf>) {
        let mut ended = self.ended();
        loop {
            tokio::select! {
                _ = ended.wait_for(Option::is_some) => return,
                changed = monitor.changed() => if let Err(error) = changed {
                    log::error!("the network namespace is no longer watched: {error}");
                    return;
                }
            }
            self.until_resumed().await;
            match self.update_network(resolv_conf.as_deref()).await {
                Ok(failed) => failed.iter().for_each(|error| log::error!("network: {error}")),
                Err(error) => log::error!("network: {error}"),
            }
        }
    }

    /// Brings the guest's network to what the namespace holds: why interfaces are left out.
    async fn update_network(&self, resolv_conf: Option<&Path>) -> Result<Vec<Error>> {
        let mut configured = self.network.configured.lock().await;
        if !self.is_alive() {
            return Ok(Vec::new());
        }
        let (wanted, failed) = self.network.wire(&self.vm).await?;
        if *configured != wanted {
            let call = self.agent.configure_network(within(CALL_TIMEOUT), &wanted);
            self.call("setting up the network", CALL_TIMEOUT, call).await?;
            let names: Vec<_> = wanted.interfaces.iter().map(|interface| interface.name.as_str()).collect();
            log::info!("the guest has the network interfaces {}", names.join(", "));
            if !wanted.interfaces.is_empty() {
                self.loopback.open(&self.vm, resolv_conf).await;
            }
            *configured = wanted;
        }
        Ok(failed)
    }

    /// Gives the network namespace its interfaces back.
    pub(crate) async fn unwire_network(&self) {
        // Its listeners are on ports that are the namespace's own while it is wired.
        self.loopback.close().await;
        self.network.unwire(&self.vm).await;
    }
}
