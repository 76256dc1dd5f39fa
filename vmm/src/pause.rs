//! Whether the vCPUs may be in the guest: a state machine, without threads.
//!
//! ```text
//!              pause                 every vCPU is out
//!   Running ─────────► Pausing ─────────────────────────► Paused
//!      ▲                  │ give_up                          │ resume
//!      └──────────────────┴──────────────────────────────────┘         end, from each: Ended
//! ```

/// Why a pause or a resume is refused. What the VM does goes on as before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the VM is being paused")]
    Pausing,
    #[error("the VM is paused already")]
    Paused,
    #[error("the VM is not paused")]
    NotPaused,
    #[error("the VM has ended")]
    Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The guest runs.
    Running,
    /// The vCPUs were asked to leave the guest, and one of them has not left yet.
    Pausing,
    /// No vCPU is in the guest, and none enters it.
    Paused,
    /// The VM ends: no vCPU is held back any more.
    Ended,
}

/// The phase, and how many vCPUs wait outside the guest. The two are apart because a vCPU that was let go may not have
/// gone when the next pause begins: it counts for that one, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pause {
    phase: Phase,
    vcpus: usize,
    outside: usize,
}

impl Pause {
    pub(crate) const fn new(vcpus: usize) -> Self {
        Self { phase: Phase::Running, vcpus, outside: 0 }
    }

    pub(crate) const fn phase(self) -> Phase {
        self.phase
    }

    /// A pause is asked for.
    ///
    /// # Errors
    /// [`Refusal`].
    pub(crate) fn pause(&mut self) -> Result<(), Refusal> {
        match self.phase {
            Phase::Running => {
                self.phase = Phase::Pausing;
                self.look();
                Ok(())
            }
            Phase::Pausing => Err(Refusal::Pausing),
            Phase::Paused => Err(Refusal::Paused),
            Phase::Ended => Err(Refusal::Ended),
        }
    }

    /// The guest is to run on.
    ///
    /// # Errors
    /// [`Refusal`].
    pub(crate) fn resume(&mut self) -> Result<(), Refusal> {
        match self.phase {
            Phase::Paused => {
                self.phase = Phase::Running;
                Ok(())
            }
            Phase::Pausing => Err(Refusal::Pausing),
            Phase::Running => Err(Refusal::NotPaused),
            Phase::Ended => Err(Refusal::Ended),
        }
    }

    /// A pause takes too long: the guest runs on. False when there is none that is unfinished.
    pub(crate) fn give_up(&mut self) -> bool {
        let unfinished = self.phase == Phase::Pausing;
        if unfinished {
            self.phase = Phase::Running;
        }
        unfinished
    }

    /// A vCPU waits outside the guest.
    pub(crate) fn left(&mut self) {
        self.outside += 1;
        self.look();
    }

    /// It waits no more, and enters the guest.
    pub(crate) fn enters(&mut self) {
        self.outside = self.outside.saturating_sub(1);
    }

    /// Whether a vCPU is to wait outside the guest.
    pub(crate) const fn holds(self) -> bool {
        matches!(self.phase, Phase::Pausing | Phase::Paused)
    }

    pub(crate) fn end(&mut self) {
        self.phase = Phase::Ended;
    }

    fn look(&mut self) {
        if self.phase == Phase::Pausing && self.outside == self.vcpus {
            self.phase = Phase::Paused;
        }
    }
}

#[cfg(test)]
#[path = "pause_test.rs"]
mod tests;
