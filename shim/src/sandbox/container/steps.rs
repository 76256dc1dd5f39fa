//! What work that may block is at, for those who wait for it: a path on a file server that is gone does not come back to
//! say so.

use crate::sync::lock;
use std::sync::{Arc, Mutex};

/// The work was given up by those who waited for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("given up: it took too long")]
pub struct Abandoned;

/// The steps of one piece of work, shared with those who wait for it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Steps(Arc<Mutex<Progress>>);

#[derive(Debug, Default)]
struct Progress {
    step: String,
    abandoned: bool,
    #[cfg(test)]
    left: Option<usize>,
}

impl Steps {
    /// Begins a step.
    ///
    /// # Errors
    /// [`Abandoned`]: the work is to undo what it did.
    pub(crate) fn enter(&self, step: String) -> Result<(), Abandoned> {
        let mut progress = lock(&self.0);
        #[cfg(test)]
        if let Some(left) = &mut progress.left {
            match left.checked_sub(1) {
                Some(fewer) => *left = fewer,
                None => progress.abandoned = true,
            }
        }
        if progress.abandoned {
            return Err(Abandoned);
        }
        progress.step = step;
        Ok(())
    }

    /// Gives the work up: no further step begins. Returns the step that the work is at.
    pub(crate) fn abandon(&self) -> String {
        let mut progress = lock(&self.0);
        progress.abandoned = true;
        progress.step.clone()
    }

    /// Steps that are abandoned after so many.
    #[cfg(test)]
    pub(crate) fn abandoned_after(steps: usize) -> Self {
        Self(Arc::new(Mutex::new(Progress { left: Some(steps), ..Progress::default() })))
    }
}
