use super::State::{Created, Ended, Running, Starting};
use super::*;

const EXIT: Exit = Exit { status: 7, at_ns: 1 };
const LATER: Exit = Exit { status: 8, at_ns: 2 };

#[test]
fn transitions() {
    type Step = fn(&mut State);
    let start: Step = |state| state.start().unwrap_or_default();
    let end: Step = |state| state.end(EXIT);
    let table: [(State, Step, State); 12] = [
        (Created, start, Starting),
        (Starting, start, Starting),
        (Running, start, Running),
        (Ended(LATER), start, Ended(LATER)),
        (Starting, State::started, Running),
        // It was gone before its start was known.
        (Ended(LATER), State::started, Ended(LATER)),
        (Starting, State::not_started, Created),
        (Ended(LATER), State::not_started, Ended(LATER)),
        (Created, end, Ended(EXIT)),
        (Starting, end, Ended(EXIT)),
        (Running, end, Ended(EXIT)),
        (Ended(LATER), end, Ended(LATER)),
    ];
    for (i, (before, step, after)) in table.into_iter().enumerate() {
        let mut state = before;
        step(&mut state);
        assert_eq!(state, after, "row {i}, from {before:?}");
    }
}

#[test]
fn what_may_be_done_when() {
    let table = [
        (Created, false, Err(StateError::NotStarted), Ok(())),
        (Created, true, Ok(()), Ok(())),
        (Starting, false, Err(StateError::NotStarted), Err(StateError::Running)),
        (Starting, true, Ok(()), Err(StateError::Running)),
        (Running, true, Ok(()), Err(StateError::Running)),
        (Ended(EXIT), true, Err(StateError::Finished), Ok(())),
    ];
    for (state, there, signal, delete) in table {
        assert_eq!(state.may_signal(there), signal, "signal {state:?}");
        assert_eq!(state.may_delete(), delete, "delete {state:?}");
    }
}

#[test]
fn a_process_starts_once() {
    let mut state = Created;
    assert_eq!(state.start(), Ok(()));
    assert_eq!(state.start(), Err(StateError::Started));
}

#[test]
fn an_ended_process_is_not_found_and_other_wrong_states_are_preconditions() {
    assert!(
        matches!(StateError::Finished.of("x"), RpcError::NotFound(line) if line == "x: process already finished")
    );
    for error in [StateError::Started, StateError::NotStarted, StateError::Running] {
        assert!(matches!(error.of("x"), RpcError::FailedPrecondition(_)));
    }
}
