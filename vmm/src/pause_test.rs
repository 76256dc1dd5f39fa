use super::*;

fn at(phase: Phase, outside: usize) -> Pause {
    Pause { phase, vcpus: 2, outside }
}

#[test]
fn what_may_be_asked_for_when() {
    type Answer = Result<Phase, Refusal>;
    // The phase, and what becomes of a pause and of a resume.
    let table: [(Phase, Answer, Answer); 4] = [
        (Phase::Running, Ok(Phase::Pausing), Err(Refusal::NotPaused)),
        (Phase::Pausing, Err(Refusal::Pausing), Err(Refusal::Pausing)),
        (Phase::Paused, Err(Refusal::Paused), Ok(Phase::Running)),
        (Phase::Ended, Err(Refusal::Ended), Err(Refusal::Ended)),
    ];
    for (phase, pause, resume) in table {
        let ask = |what: fn(&mut Pause) -> Result<(), Refusal>| {
            let mut state = at(phase, 1);
            let answer = what(&mut state).map(|()| state.phase());
            assert!(answer.is_ok() || state == at(phase, 1), "a refusal changes nothing: {phase:?}");
            answer
        };
        assert_eq!(ask(Pause::pause), pause, "pause, {phase:?}");
        assert_eq!(ask(Pause::resume), resume, "resume, {phase:?}");
    }
}

#[test]
fn it_is_paused_when_the_last_vcpu_has_left() {
    let mut state = Pause::new(2);
    state.pause().unwrap();
    state.left();
    assert_eq!((state.phase(), state.holds()), (Phase::Pausing, true));
    state.left();
    assert_eq!((state.phase(), state.holds()), (Phase::Paused, true));
    state.resume().unwrap();
    assert_eq!((state.phase(), state.holds()), (Phase::Running, false));
}

#[test]
fn a_vcpu_that_has_not_entered_yet_counts_for_the_next_pause() {
    let mut state = at(Phase::Paused, 2);
    state.resume().unwrap();
    state.enters();
    state.pause().unwrap();
    assert_eq!(state.phase(), Phase::Pausing, "one is in the guest");
    state.left();
    assert_eq!(state.phase(), Phase::Paused);
    state.resume().unwrap();
    state.pause().unwrap();
    assert_eq!(state.phase(), Phase::Paused, "none has entered since");
}

#[test]
fn only_an_unfinished_pause_is_given_up() {
    for (phase, given_up, after) in [
        (Phase::Running, false, Phase::Running),
        (Phase::Pausing, true, Phase::Running),
        (Phase::Paused, false, Phase::Paused),
        (Phase::Ended, false, Phase::Ended),
    ] {
        let mut state = at(phase, 1);
        assert_eq!((state.give_up(), state.phase()), (given_up, after), "{phase:?}");
    }
}

#[test]
fn the_end_lets_every_vcpu_go() {
    for phase in [Phase::Running, Phase::Pausing, Phase::Paused] {
        let mut state = at(phase, 1);
        state.end();
        state.left();
        assert_eq!((state.phase(), state.holds()), (Phase::Ended, false), "{phase:?}");
    }
}
