//! The life of a sandbox, and the table of its containers: no IO, no waiting.
//!
//! ```text
//!              booted           end, or nobody is left that it lives by         gone
//!   Booting ────────────► Ready ─────────────────────────────────────► Ending ────────► Ended
//!      │ │                  │ gone: the VM has ended by itself             ▲               ▲
//!      │ └── end ───────────┼──────────────────────────────────────────────┘               │
//!      └──── gone ──────────┴────► Failed(why) ──── end, or a Create that is answered why ─┘
//! ```
//!
//! ```text
//!   reserve ──► Creating ──created──► Present ──container_ended──► Ended ──remove──► (not in the table)
//!                   └───── create_failed ──────────────────────────────────────────► (not in the table)
//! ```
//!
//! When a sandbox ends by itself, the guest is shut down:
//!
//! | sandbox | ends when | takes another container |
//! |---|---|---|
//! | lone | its container has ended, or was not made | never |
//! | pod | the container that has its id has ended, or was not made | while that one has not ended |
//! | group | none is being made, and none runs | while one is made and has not ended |

use super::membership::{Kind, Membership};
use crate::error::{Error, Result};
use std::collections::HashMap;

/// The state of a sandbox whose guest is a `G`.
#[derive(Debug, Clone, PartialEq)]
enum State<G> {
    /// The VM is being started.
    Booting,
    /// The guest answers.
    Ready(G),
    /// No container is taken any more. The guest is shut down, or its start is cut short.
    Ending,
    /// There is no VM, and this is why. A Create is still to be answered with the reason.
    Failed(Error),
    /// There is no VM.
    Ended,
}

/// A container of the sandbox.
#[derive(Debug, Clone, PartialEq)]
enum Member<C> {
    /// Create is under way.
    Creating,
    /// Its own process has not ended.
    Present(C),
    /// Its own process has ended. It is kept until Delete.
    Ended(C),
}

/// A sandbox's state, and its containers by id.
#[derive(Debug)]
pub(super) struct Lifecycle<G, C> {
    membership: Membership,
    state: State<G>,
    containers: HashMap<String, Member<C>>,
}

impl<G: Clone, C: Clone> Lifecycle<G, C> {
    #[must_use]
    pub(super) fn new(membership: Membership) -> Self {
        Self { membership, state: State::Booting, containers: HashMap::new() }
    }

    #[must_use]
    pub(super) fn membership(&self) -> &Membership {
        &self.membership
    }

    /// The guest answers. A sandbox that is ending stays so.
    pub(super) fn booted(&mut self, guest: G) {
        if let State::Booting = self.state {
            self.state = State::Ready(guest);
        }
    }

    /// The sandbox is to end.
    pub(super) fn end(&mut self) {
        self.state = match self.state {
            State::Booting | State::Ready(_) | State::Ending => State::Ending,
            State::Failed(_) | State::Ended => State::Ended,
        };
    }

    /// There is no VM any more, or none came to be. `why` is for those who did not ask for it.
    pub(super) fn gone(&mut self, why: Error) {
        match self.state {
            State::Booting | State::Ready(_) => self.state = State::Failed(why),
            State::Ending => self.state = State::Ended,
            State::Failed(_) | State::Ended => {}
        }
    }

    /// Enters a container that is about to be made.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`]; [`Error::FailedPrecondition`] when the sandbox takes no container any more, not yet, or not
    /// this one; why there is no VM.
    pub(super) fn reserve(&mut self, id: &str) -> Result<()> {
        if self.containers.contains_key(id) {
            return Err(Error::AlreadyExists(format!("container {id} exists")));
        }
        if self.is_ending() {
            return Err(Error::FailedPrecondition(format!("container {id}: its sandbox is ending")));
        }
        // A stranger's Create is nothing to the sandbox, so it is refused before anything changes.
        self.check_place(id)?;
        if let State::Failed(why) = &self.state {
            let why = why.clone();
            self.end();
            return Err(why);
        }
        self.containers.insert(id.into(), Member::Creating);
        Ok(())
    }

    /// Whether there is a place for the container, as far as its id tells.
    fn check_place(&self, id: &str) -> Result<()> {
        let Membership { id: own, kind, .. } = &self.membership;
        let missing = match kind {
            _ if id == own => return Ok(()),
            Kind::Lone => return Err(self.membership.refuse(id)),
            Kind::Pod if self.is_present(own) => return Ok(()),
            Kind::Group if self.containers.keys().any(|other| self.is_present(other)) => return Ok(()),
            Kind::Pod => "holds the pod",
            Kind::Group => "is the group's first",
        };
        Err(Error::FailedPrecondition(format!(
            "container {id}: container {own}, which {missing}, is not made"
        )))
    }

    fn is_present(&self, id: &str) -> bool {
        matches!(self.containers.get(id), Some(Member::Present(_)))
    }

    /// The container is made.
    pub(super) fn created(&mut self, id: &str, container: C) {
        self.containers.insert(id.into(), Member::Present(container));
    }

    /// The container could not be made. A sandbox that lives by it ends.
    pub(super) fn create_failed(&mut self, id: &str) {
        self.containers.remove(id);
        self.end_if_over();
    }

    /// The container's own process has ended. A sandbox that lives by it ends.
    pub(super) fn container_ended(&mut self, id: &str) {
        if let Some(member) = self.containers.get_mut(id)
            && let Member::Present(container) = member
        {
            *member = Member::Ended(container.clone());
            self.end_if_over();
        }
    }

    fn end_if_over(&mut self) {
        let lives = |member: &Member<C>| !matches!(member, Member::Ended(_));
        let over = match self.membership.kind {
            Kind::Pod => !self.containers.get(&self.membership.id).is_some_and(lives),
            Kind::Lone | Kind::Group => !self.containers.values().any(lives),
        };
        if over {
            self.end();
        }
    }

    /// Forgets a container. What it still has is undone with the result.
    pub(super) fn remove(&mut self, id: &str) -> Option<C> {
        match self.containers.remove(id)? {
            Member::Creating => None,
            Member::Present(container) | Member::Ended(container) => Some(container),
        }
    }

    /// The container of that id.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub(super) fn container(&self, id: &str) -> Result<C> {
        match self.containers.get(id) {
            Some(Member::Present(container) | Member::Ended(container)) => Ok(container.clone()),
            Some(Member::Creating) | None => Err(Error::NotFound(format!("container {id} not found"))),
        }
    }

    /// The guest, if it answers; `None` while it boots.
    ///
    /// # Errors
    /// Why it does not.
    pub(super) fn guest(&self) -> Result<Option<G>> {
        match &self.state {
            State::Booting => Ok(None),
            State::Ready(guest) => Ok(Some(guest.clone())),
            State::Failed(why) => Err(why.clone()),
            State::Ending | State::Ended => Err(Error::FailedPrecondition("the sandbox is ending".into())),
        }
    }

    /// The ids of the containers that are made.
    #[must_use]
    pub(super) fn ids(&self) -> Vec<String> {
        let made = self.containers.iter().filter(|(_, member)| !matches!(member, Member::Creating));
        made.map(|(id, _)| id.clone()).collect()
    }

    /// The containers that are made and have not ended.
    #[must_use]
    pub(super) fn present(&self) -> Vec<C> {
        let present = self.containers.values().filter_map(|member| match member {
            Member::Present(container) => Some(container.clone()),
            Member::Creating | Member::Ended(_) => None,
        });
        present.collect()
    }

    /// Whether a container beside this one runs, or is being made.
    #[must_use]
    pub(super) fn has_others(&self, id: &str) -> bool {
        let other =
            |(other, member): (&String, &Member<C>)| other != id && !matches!(member, Member::Ended(_));
        self.containers.iter().any(other)
    }

    /// Whether no container is there or being made.
    #[must_use]
    pub(super) fn is_empty(&self) -> bool {
        self.containers.is_empty()
    }

    /// Whether a Create is under way.
    #[must_use]
    pub(super) fn is_creating(&self) -> bool {
        self.containers.values().any(|member| matches!(member, Member::Creating))
    }

    /// Whether the guest answers, as far as is known.
    #[must_use]
    pub(super) fn is_ready(&self) -> bool {
        matches!(self.state, State::Ready(_))
    }

    /// Whether the sandbox is to end, or has ended as it was to.
    #[must_use]
    pub(super) fn is_ending(&self) -> bool {
        matches!(self.state, State::Ending | State::Ended)
    }

    /// Whether there is no VM, and none to come.
    #[must_use]
    pub(super) fn is_over(&self) -> bool {
        matches!(self.state, State::Failed(_) | State::Ended)
    }
}

#[cfg(test)]
#[path = "lifecycle_test.rs"]
mod tests;
