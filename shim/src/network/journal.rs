//! What the wiring has changed in a namespace that outlives the sandbox, for the `delete` action to undo when the shim was killed.

use super::ports::restore_range;
use super::{NetworkError, filters, namespace};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// A file in the sandbox's state directory, written before the namespace is changed.
#[derive(Debug, Clone)]
pub(crate) struct Journal {
    pub file: PathBuf,
    /// The namespace's own file.
    pub namespace: PathBuf,
}

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    namespace: PathBuf,
    /// Those that have, or are about to have, an ingress qdisc of ours, by index.
    interfaces: BTreeSet<u32>,
    /// The range of ports for outgoing connections that the namespace had.
    port_range: String,
}

impl Journal {
    /// # Errors
    /// Of the file.
    pub(super) fn write(&self, interfaces: BTreeSet<u32>, port_range: &str) -> io::Result<()> {
        let entry = Entry { namespace: self.namespace.clone(), interfaces, port_range: port_range.into() };
        let new = self.file.with_extension("json.new");
        fs::write(&new, serde_json::to_vec(&entry)?)?;
        fs::rename(new, &self.file)
    }
}

/// Undoes what a journal tells of. A namespace or an interface that is gone has nothing to undo.
///
/// # Errors
/// [`NetworkError`] when the namespace cannot be entered.
pub(crate) fn undo(journal: &Path) -> Result<(), NetworkError> {
    let Some(entry) = fs::read(journal).ok().and_then(|bytes| serde_json::from_slice::<Entry>(&bytes).ok())
    else {
        return Ok(());
    };
    let namespace = match File::open(&entry.namespace) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened.map_err(NetworkError::Namespace)?,
    };
    namespace::run_and_wait(namespace.into(), move || {
        entry.interfaces.iter().for_each(|index| filters::remove_ingress(*index));
        restore_range(&entry.port_range);
        Ok(())
    })
}
