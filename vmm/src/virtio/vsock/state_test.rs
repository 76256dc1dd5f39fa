use super::Event::{Credit, Data, Deadline, HostEof, HostRefuses, Malformed, Request, Reset, Response};
use super::Flow::{EndedByGuest, EndedByHost, Open};
use super::Reaction::{Deliver, Discard, Nothing, SendReset, TellShutdown};
use super::State::{Connecting, Gone};
use super::*;

const fn established(to_host: Flow, to_guest: Flow) -> State {
    State::Established { to_host, to_guest }
}

const fn closing(to_host: Flow, to_guest: Flow) -> State {
    State::Closing { to_host, to_guest }
}

const fn shutdown(send: bool, receive: bool) -> Event {
    Event::Shutdown { send, receive }
}

const SENDS_NO_MORE: Event = shutdown(true, false);
const RECEIVES_NO_MORE: Event = shutdown(false, true);
const CLOSES: Event = shutdown(true, true);
const EVENTS: [Event; 13] = [
    Request,
    Response,
    Data,
    Credit,
    shutdown(false, false),
    SENDS_NO_MORE,
    RECEIVES_NO_MORE,
    CLOSES,
    Reset,
    Malformed,
    HostEof,
    HostRefuses,
    Deadline,
];

#[test]
fn transitions() {
    let table = [
        // An answer, a refusal, none, and nonsense.
        (Connecting, Response, State::ESTABLISHED, Nothing),
        (Connecting, Reset, Gone, Nothing),
        (Connecting, Deadline, Gone, SendReset),
        (Connecting, Request, Gone, SendReset),
        (Connecting, Data, Gone, SendReset),
        (Connecting, Credit, Gone, SendReset),
        (Connecting, CLOSES, Gone, SendReset),
        (Connecting, Malformed, Gone, SendReset),
        (Connecting, HostEof, Connecting, Nothing),
        (Connecting, HostRefuses, Connecting, Nothing),
        // Both directions open.
        (State::ESTABLISHED, Data, State::ESTABLISHED, Deliver),
        (State::ESTABLISHED, Credit, State::ESTABLISHED, Nothing),
        (State::ESTABLISHED, Deadline, State::ESTABLISHED, Nothing),
        (State::ESTABLISHED, shutdown(false, false), State::ESTABLISHED, Nothing),
        (State::ESTABLISHED, SENDS_NO_MORE, established(EndedByGuest, Open), Nothing),
        (State::ESTABLISHED, RECEIVES_NO_MORE, established(Open, EndedByGuest), Nothing),
        (State::ESTABLISHED, CLOSES, Gone, SendReset),
        (State::ESTABLISHED, HostEof, established(Open, EndedByHost), TellShutdown),
        (State::ESTABLISHED, HostRefuses, established(EndedByHost, Open), TellShutdown),
        (State::ESTABLISHED, Reset, Gone, Nothing),
        (State::ESTABLISHED, Request, Gone, SendReset),
        (State::ESTABLISHED, Response, Gone, SendReset),
        (State::ESTABLISHED, Malformed, Gone, SendReset),
        // The host sends no more: stdin is closed, output goes on.
        (established(Open, EndedByHost), Data, established(Open, EndedByHost), Deliver),
        (established(Open, EndedByHost), HostEof, established(Open, EndedByHost), Nothing),
        (established(Open, EndedByHost), HostRefuses, closing(EndedByHost, EndedByHost), TellShutdown),
        (established(Open, EndedByHost), SENDS_NO_MORE, closing(EndedByGuest, EndedByHost), TellShutdown),
        (established(Open, EndedByHost), RECEIVES_NO_MORE, established(Open, EndedByGuest), Nothing),
        (established(Open, EndedByHost), CLOSES, Gone, SendReset),
        // The host receives no more.
        (established(EndedByHost, Open), Data, established(EndedByHost, Open), Discard),
        (established(EndedByHost, Open), HostRefuses, established(EndedByHost, Open), Nothing),
        (established(EndedByHost, Open), HostEof, closing(EndedByHost, EndedByHost), TellShutdown),
        (established(EndedByHost, Open), SENDS_NO_MORE, established(EndedByGuest, Open), Nothing),
        (established(EndedByHost, Open), RECEIVES_NO_MORE, closing(EndedByHost, EndedByGuest), TellShutdown),
        // The guest sends no more.
        (established(EndedByGuest, Open), Data, Gone, SendReset),
        (established(EndedByGuest, Open), HostEof, closing(EndedByGuest, EndedByHost), TellShutdown),
        (established(EndedByGuest, Open), HostRefuses, established(EndedByGuest, Open), Nothing),
        (established(EndedByGuest, Open), SENDS_NO_MORE, established(EndedByGuest, Open), Nothing),
        (established(EndedByGuest, Open), RECEIVES_NO_MORE, Gone, SendReset),
        // The guest receives no more.
        (established(Open, EndedByGuest), Data, established(Open, EndedByGuest), Deliver),
        (established(Open, EndedByGuest), HostEof, established(Open, EndedByGuest), Nothing),
        (established(Open, EndedByGuest), HostRefuses, closing(EndedByHost, EndedByGuest), TellShutdown),
        (established(Open, EndedByGuest), SENDS_NO_MORE, Gone, SendReset),
        // Both over, the guest was told.
        (closing(EndedByHost, EndedByHost), Data, closing(EndedByHost, EndedByHost), Discard),
        (closing(EndedByHost, EndedByHost), Credit, closing(EndedByHost, EndedByHost), Nothing),
        (closing(EndedByHost, EndedByHost), SENDS_NO_MORE, closing(EndedByGuest, EndedByHost), Nothing),
        (closing(EndedByHost, EndedByHost), CLOSES, Gone, SendReset),
        (closing(EndedByHost, EndedByHost), Reset, Gone, Nothing),
        (closing(EndedByHost, EndedByHost), Deadline, Gone, SendReset),
        (closing(EndedByGuest, EndedByHost), Data, Gone, SendReset),
        (closing(EndedByGuest, EndedByHost), RECEIVES_NO_MORE, Gone, SendReset),
        (closing(EndedByHost, EndedByGuest), SENDS_NO_MORE, Gone, SendReset),
    ];
    for (state, event, next, reaction) in table {
        assert_eq!(state.on(event), (next, reaction), "{state:?} on {event:?}");
    }
}

/// Every state there is.
fn states() -> Vec<State> {
    let flows = [Open, EndedByHost, EndedByGuest];
    let mut states = vec![Connecting, Gone];
    for to_host in flows {
        for to_guest in flows {
            match (to_host, to_guest) {
                (EndedByGuest, EndedByGuest) => {}
                (Open, _) | (_, Open) => states.push(established(to_host, to_guest)),
                _ => states.push(closing(to_host, to_guest)),
            }
        }
    }
    states
}

#[test]
fn no_event_leads_out_of_the_states_there_are() {
    let states = states();
    for state in &states {
        for event in EVENTS {
            let (next, _) = state.on(event);
            assert!(states.contains(&next), "{state:?} on {event:?} becomes {next:?}");
        }
    }
}

#[test]
fn a_reset_is_never_answered() {
    for state in states() {
        assert_eq!(state.on(Reset), (Gone, Nothing), "{state:?}");
    }
}

#[test]
fn what_is_gone_stays_gone_and_silent() {
    for event in EVENTS {
        assert_eq!(Gone.on(event), (Gone, Nothing), "{event:?}");
    }
}

#[test]
fn a_direction_that_has_ended_stays_ended() {
    for state in states() {
        for event in EVENTS {
            let (next, _) = state.on(event);
            assert!(state == Connecting || !next.sends_to_guest() || state.sends_to_guest());
            assert!(!next.host_expects_more() || state.host_expects_more());
        }
    }
}

#[test]
fn the_guest_is_told_only_when_there_is_something_to_tell() {
    for state in states() {
        for event in EVENTS {
            let (next, reaction) = state.on(event);
            assert!(reaction != TellShutdown || next.shutdown_flags() != 0, "{state:?} on {event:?}");
        }
    }
    assert_eq!(established(Open, EndedByHost).shutdown_flags(), SHUTDOWN_SEND);
    assert_eq!(established(EndedByHost, Open).shutdown_flags(), SHUTDOWN_RECEIVE);
    assert_eq!(closing(EndedByGuest, EndedByHost).shutdown_flags(), SHUTDOWN_SEND | SHUTDOWN_RECEIVE);
}
