//! What the operator's command `lazaret` does: it reads what shims and installation have left on the host. The one thing
//! it changes is what it is told to: it removes volumes.

pub mod docker;
pub mod doctor;
mod network;
pub mod sandboxes;
pub mod volumes;
