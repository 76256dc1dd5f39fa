//! Streams that the host opens to the guest.

use std::time::Duration;
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener, VsockStream};

/// How long no stream is accepted after an attempt failed, for want of memory or descriptors.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// Listens on a port.
///
/// # Errors
/// The kernel's.
pub(crate) fn bind(port: u32) -> std::io::Result<VsockListener> {
    VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port))
}

/// Hands every stream from the host to `serve`, for as long as the guest lives. `what` names the streams in the log.
pub(crate) async fn for_each_host_stream(
    listener: VsockListener,
    what: &str,
    mut serve: impl FnMut(VsockStream),
) {
    let mut refused_one = false;
    loop {
        match listener.accept().await {
            // vsock has no namespaces: a container can dial this port over the guest's loopback. Only the VMM can come
            // with the host's CID.
            Ok((stream, peer)) if peer.cid() == VMADDR_CID_HOST => serve(stream),
            Ok((_, peer)) => {
                // It is logged once: a container must not be able to fill the log.
                if !std::mem::replace(&mut refused_one, true) {
                    log::warn!("refused a {what} stream from CID {}, which is not the host", peer.cid());
                }
            }
            Err(error) => {
                log::error!("cannot accept a {what} stream: {error}");
                tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
            }
        }
    }
}
