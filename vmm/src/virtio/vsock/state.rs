//! The state machine of one connection: what may happen, and what it leads to. No IO.
//!
//! Data flows in two directions that end apart. A direction is over when either side says so: its sender has no more, or
//! its receiver takes no more.

use super::packet::{SHUTDOWN_RECEIVE, SHUTDOWN_SEND};

/// One direction of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    Open,
    /// The host ended it: end of file from its socket, or it refuses to take more.
    EndedByHost,
    /// The guest ended it with a `SHUTDOWN` packet.
    EndedByGuest,
}

/// Where a connection stands between us and the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// The guest was asked to accept and has not answered. Nothing is read from the host's socket yet.
    Connecting,
    /// Both know each other; at least one direction is open.
    Established { to_host: Flow, to_guest: Flow },
    /// Both directions are over and the guest was told; it owes us its reset, and gets ours if that takes too long.
    Closing { to_host: Flow, to_guest: Flow },
    /// The guest has no part in it any more. What it sent before still flows to the host's socket, then that is closed.
    Gone,
}

/// What happens to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// A packet of the guest's.
    Request,
    Response,
    Data,
    Credit,
    Shutdown {
        send: bool,
        receive: bool,
    },
    Reset,
    /// A packet that is none: an unknown operation, a payload shorter than its header says, more than its credit.
    Malformed,
    /// The host's socket is at its end of file.
    HostEof,
    /// The host's socket takes no more.
    HostRefuses,
    /// The guest did not answer in time.
    Deadline,
}

/// What is to be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reaction {
    Nothing,
    /// Pass the packet's payload on to the host.
    Deliver,
    /// Throw the packet's payload away: the host has ended this direction, and the guest is told so.
    Discard,
    /// Send a `SHUTDOWN` with [`State::shutdown_flags`].
    TellShutdown,
    /// Send a reset: the guest forgets the connection.
    SendReset,
}

impl State {
    pub(super) const ESTABLISHED: Self = Self::Established { to_host: Flow::Open, to_guest: Flow::Open };

    /// The state after `event`, and what to do.
    pub(super) fn on(self, event: Event) -> (Self, Reaction) {
        match self {
            Self::Connecting => match event {
                Event::Response => (Self::ESTABLISHED, Reaction::Nothing),
                Event::Reset => (Self::Gone, Reaction::Nothing),
                // Events of the host's socket count from the guest's answer on.
                Event::HostEof | Event::HostRefuses => (self, Reaction::Nothing),
                _ => (Self::Gone, Reaction::SendReset),
            },
            Self::Established { to_host, to_guest } | Self::Closing { to_host, to_guest } => match event {
                Event::Data => match to_host {
                    Flow::Open => (self, Reaction::Deliver),
                    Flow::EndedByHost => (self, Reaction::Discard),
                    Flow::EndedByGuest => (Self::Gone, Reaction::SendReset),
                },
                Event::Credit => (self, Reaction::Nothing),
                Event::Shutdown { send, receive } => self.with(
                    if send { Flow::EndedByGuest } else { to_host },
                    if receive { Flow::EndedByGuest } else { to_guest },
                ),
                Event::HostEof if to_guest == Flow::Open => self.with(to_host, Flow::EndedByHost),
                Event::HostRefuses if to_host == Flow::Open => self.with(Flow::EndedByHost, to_guest),
                Event::HostEof | Event::HostRefuses => (self, Reaction::Nothing),
                Event::Deadline if matches!(self, Self::Established { .. }) => (self, Reaction::Nothing),
                Event::Reset => (Self::Gone, Reaction::Nothing),
                Event::Request | Event::Response | Event::Malformed | Event::Deadline => {
                    (Self::Gone, Reaction::SendReset)
                }
            },
            Self::Gone => (self, Reaction::Nothing),
        }
    }

    /// The same connection with its directions as given.
    fn with(self, to_host: Flow, to_guest: Flow) -> (Self, Reaction) {
        match (to_host, to_guest) {
            // A guest that closes sends both flags and waits for this reset (Linux: eight seconds, then it gives up).
            (Flow::EndedByGuest, Flow::EndedByGuest) => (Self::Gone, Reaction::SendReset),
            (Flow::Open, _) | (_, Flow::Open) => {
                let next = Self::Established { to_host, to_guest };
                let unannounced = next.shutdown_flags() & !self.shutdown_flags() != 0;
                (next, if unannounced { Reaction::TellShutdown } else { Reaction::Nothing })
            }
            _ => {
                let next = Self::Closing { to_host, to_guest };
                let unannounced = !matches!(self, Self::Closing { .. });
                (next, if unannounced { Reaction::TellShutdown } else { Reaction::Nothing })
            }
        }
    }

    /// What a `SHUTDOWN` packet to the guest says: what the guest does not know yet. A flag once sent stays true unsaid.
    pub(super) fn shutdown_flags(self) -> u32 {
        match self {
            Self::Established { to_host, to_guest } => {
                let receive = if to_host == Flow::EndedByHost { SHUTDOWN_RECEIVE } else { 0 };
                let send = if to_guest == Flow::EndedByHost { SHUTDOWN_SEND } else { 0 };
                receive | send
            }
            // Both directions are over, whichever side ended them. With both flags the guest can release its end.
            Self::Closing { .. } => SHUTDOWN_RECEIVE | SHUTDOWN_SEND,
            Self::Connecting | Self::Gone => 0,
        }
    }

    /// Whether data of the host's may go to the guest.
    pub(super) fn sends_to_guest(self) -> bool {
        matches!(self, Self::Established { to_guest: Flow::Open, .. })
    }

    /// Whether the host may still be told more by the guest.
    pub(super) fn host_expects_more(self) -> bool {
        matches!(self, Self::Connecting | Self::Established { to_host: Flow::Open, .. })
    }

    /// Whether the host takes what it is sent.
    pub(super) fn host_takes(self) -> bool {
        !matches!(
            self,
            Self::Established { to_host: Flow::EndedByHost, .. }
                | Self::Closing { to_host: Flow::EndedByHost, .. }
        )
    }

    /// Whether what the host writes reaches nobody any more.
    pub(super) fn guest_refuses(self) -> bool {
        match self {
            Self::Established { to_guest, .. } | Self::Closing { to_guest, .. } => {
                to_guest == Flow::EndedByGuest
            }
            Self::Connecting => false,
            Self::Gone => true,
        }
    }
}

#[cfg(test)]
#[path = "state_test.rs"]
mod tests;
