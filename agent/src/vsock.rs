//! Streams that the host opens to the guest.

use std::time::Duration;
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener, VsockStream};

/// How long nothing is accepted when nothing can be, for want of memory or descriptors.
const BREATH: Duration = Duration::from_millis(100);

/// Listens on a port.
///
/// # Errors
/// The kernel's.
pub(crate) fn bind(port: u32) -> std::io::Result<VsockListener> {
    VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port))
}

/// Hands every stream from the host to `serve`, for as long as the guest lives. `what` they are for is for the log.
pub(crate) async fn each_of_the_host(
    listener: VsockListener,
    what: &str,
    mut serve: impl FnMut(VsockStream),
) {
    let mut strangers = false;
    loop {
        match listener.accept().await {
            // vsock has no namespaces: a container can dial this port over the guest's loopback. Only the VMM can come
            // with the host's CID.
            Ok((stream, peer)) if peer.cid() == VMADDR_CID_HOST => serve(stream),
            Ok((_, peer)) => {
                // Once: a container does not get to fill the log.
                if !std::mem::replace(&mut strangers, true) {
                    log::warn!("refused a {what} stream from CID {}, which is not the host", peer.cid());
                }
            }
            Err(error) => {
                log::error!("cannot accept a {what} stream: {error}");
                tokio::time::sleep(BREATH).await;
            }
        }
    }
}
