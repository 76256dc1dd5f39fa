//! All connections of a device, by number and by ports, and the watch on their sockets.

use super::connection::{Connection, Ports};
use super::device::Timeouts;
use super::state::State;
use super::timer::Timer;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::AsRawFd;
use std::time::Instant;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// The most connections at a time, those included that only drain to the host.
pub(super) const MAX_CONNECTIONS: usize = 1024;
/// What the epoll reports the timer as.
pub(super) const TIMER: Number = 0;
/// What it reports the connector as.
pub(super) const WAKE: Number = 1;
const FIRST: Number = 2;
/// Our ports when we connect to the guest: clear of those that services have.
const FIRST_PORT: u32 = 1 << 30;

/// The number of a connection in the table. No number is used twice, so an event that comes late finds no connection.
pub(super) type Number = u64;

#[derive(Debug)]
pub(super) struct Table {
    epoll: Epoll,
    timer: Timer,
    timeouts: Timeouts,
    connections: HashMap<Number, Connection>,
    /// Those the guest knows of.
    by_ports: HashMap<Ports, Number>,
    /// Those with something for the guest, in turn.
    ready: VecDeque<Number>,
    next_number: Number,
    next_port: u32,
}

impl Table {
    pub(super) fn new(timeouts: Timeouts) -> io::Result<Self> {
        let (epoll, timer) = (Epoll::new()?, Timer::new()?);
        epoll.ctl(ControlOperation::Add, timer.as_raw_fd(), EpollEvent::new(EventSet::IN, TIMER))?;
        Ok(Self {
            epoll,
            timer,
            timeouts,
            connections: HashMap::new(),
            by_ports: HashMap::new(),
            ready: VecDeque::new(),
            next_number: FIRST,
            next_port: FIRST_PORT,
        })
    }

    pub(super) fn epoll(&self) -> &Epoll {
        &self.epoll
    }

    pub(super) fn is_full(&self) -> bool {
        self.connections.len() >= MAX_CONNECTIONS
    }

    pub(super) fn find(&self, ports: Ports) -> Option<Number> {
        self.by_ports.get(&ports).copied()
    }

    #[cfg(test)]
    pub(super) fn connections(&self) -> impl ExactSizeIterator<Item = &Connection> {
        self.connections.values()
    }

    pub(super) fn get(&mut self, number: Number) -> Option<&mut Connection> {
        self.connections.get_mut(&number)
    }

    /// A port of ours that has no connection with the guest's `port`. There are more ports than connections.
    pub(super) fn free_port(&mut self, port: u32) -> u32 {
        loop {
            let host = self.next_port;
            self.next_port =
                self.next_port.checked_add(1).filter(|port| *port < u32::MAX).unwrap_or(FIRST_PORT);
            if !self.by_ports.contains_key(&Ports { host, guest: port }) {
                return host;
            }
        }
    }

    /// Adds a connection whose ports are free.
    pub(super) fn insert(&mut self, connection: Connection) -> Number {
        let number = self.next_number;
        self.next_number += 1;
        self.by_ports.insert(connection.ports, number);
        self.connections.insert(number, connection);
        self.settle(number);
        number
    }

    /// The next connection with something for the guest.
    pub(super) fn next_ready(&mut self) -> Option<Number> {
        let number = self.ready.pop_front()?;
        if let Some(connection) = self.connections.get_mut(&number) {
            connection.queued = false;
        }
        Some(number)
    }

    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Brings lists, watch, deadline and socket in line with what the connection has become.
    pub(super) fn settle(&mut self, number: Number) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        connection.advance();
        // The watch goes before the socket is closed: another process may have the same socket open.
        watch(&self.epoll, number, connection, false);
        connection.close_if_done();
        // This comes last: a socket that cannot be watched counts as hung up, of which the guest is told.
        if connection.has_packet() && !connection.queued {
            connection.queued = true;
            self.ready.push_back(number);
        }
        let wait = match connection.state() {
            State::Connecting => Some(self.timeouts.connect),
            State::Closing { .. } => Some(self.timeouts.close),
            State::Established { .. } | State::Gone => None,
        };
        match wait {
            Some(wait) if connection.deadline.is_none() => {
                let deadline = Instant::now() + wait;
                connection.deadline = Some(deadline);
                self.timer.at_latest(deadline);
            }
            Some(_) => {}
            None => connection.deadline = None,
        }
        if connection.state() == State::Gone {
            if self.by_ports.get(&connection.ports) == Some(&number) {
                self.by_ports.remove(&connection.ports);
            }
            if connection.is_over() {
                if connection.queued {
                    self.ready.retain(|ready| *ready != number);
                }
                self.connections.remove(&number);
            }
        }
    }

    /// The guest offers no buffers: those that wait for one are not watched for more to read.
    pub(super) fn park(&mut self) {
        for number in &self.ready {
            if let Some(connection) = self.connections.get_mut(number) {
                watch(&self.epoll, *number, connection, true);
            }
        }
    }

    /// Those whose deadline has passed.
    pub(super) fn expired(&mut self) -> Vec<Number> {
        self.timer.acknowledge();
        let now = Instant::now();
        let deadlines = || self.connections.iter().filter_map(|(number, c)| Some((*number, c.deadline?)));
        let expired =
            deadlines().filter(|(_, deadline)| *deadline <= now).map(|(number, _)| number).collect();
        if let Some(next) = deadlines().map(|(_, deadline)| deadline).filter(|deadline| *deadline > now).min()
        {
            self.timer.at_latest(next);
        }
        expired
    }

    /// Ends every connection, as if it had never been.
    pub(super) fn clear(&mut self) {
        for connection in self.connections.values_mut() {
            unwatch(&self.epoll, connection);
        }
        self.connections.clear();
        self.by_ports.clear();
        self.ready.clear();
    }
}

fn watch(epoll: &Epoll, number: Number, connection: &mut Connection, park: bool) {
    let wanted = connection.wanted(park);
    if wanted == connection.watched {
        return;
    }
    let (Some(fd), Some(events)) = (connection.socket().map(AsRawFd::as_raw_fd), wanted) else {
        return unwatch(epoll, connection);
    };
    let operation =
        if connection.watched.is_some() { ControlOperation::Modify } else { ControlOperation::Add };
    match epoll.ctl(operation, fd, EpollEvent::new(events, number)) {
        Ok(()) => connection.watched = wanted,
        Err(error) => {
            log::debug!("vsock: cannot watch the socket of host port {}: {error}", connection.ports.host);
            unwatch(epoll, connection);
            connection.socket_failed();
        }
    }
}

fn unwatch(epoll: &Epoll, connection: &mut Connection) {
    if let (Some(_), Some(socket)) = (connection.watched.take(), connection.socket()) {
        // It is there, or it would not be in `watched`.
        let _ = epoll.ctl(ControlOperation::Delete, socket.as_raw_fd(), EpollEvent::default());
    }
}
