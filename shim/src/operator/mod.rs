//! What the operator's command `lazaret` does: it reads what shims and installation have left on the host, and changes
//! nothing.

pub mod doctor;
pub mod sandboxes;
