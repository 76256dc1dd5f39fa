use super::*;
use State::{Booting, Ended, Ending, Failed, Ready};

/// A sandbox whose guest and containers are their names.
type Life = Lifecycle<&'static str, &'static str>;

fn why() -> Error {
    Error::Internal("the VM has ended".into())
}

/// A sandbox that was started for container `c1`.
fn of(kind: Kind) -> Membership {
    Membership { id: "c1".into(), kind, shm: None }
}

fn in_state(state: State<&'static str>) -> Life {
    Life { membership: of(Kind::Lone), state, containers: HashMap::new() }
}

fn states() -> [State<&'static str>; 5] {
    [Booting, Ready("guest"), Ending, Failed(why()), Ended]
}

/// A sandbox that is ready, with these containers.
fn ready_with(kind: Kind, members: &[(&str, Member<&'static str>)]) -> Life {
    let containers = members.iter().map(|(id, member)| ((*id).into(), member.clone())).collect();
    Life { membership: of(kind), state: Ready("guest"), containers }
}

const KINDS: [Kind; 3] = [Kind::Lone, Kind::Pod, Kind::Group];

#[test]
fn each_event_leads_from_each_state_to_one() {
    type Row = (&'static str, fn(&mut Life), [State<&'static str>; 5]);
    let rows: [Row; 3] = [
        ("booted", |life| life.booted("new"), [Ready("new"), Ready("guest"), Ending, Failed(why()), Ended]),
        ("end", Life::end, [Ending, Ending, Ending, Ended, Ended]),
        ("gone", |life| life.gone(why()), [Failed(why()), Failed(why()), Ended, Failed(why()), Ended]),
    ];
    for (event, act, expected) in rows {
        for (state, expected) in states().into_iter().zip(expected) {
            let mut life = in_state(state.clone());
            act(&mut life);
            assert_eq!(life.state, expected, "{event} in {state:?}");
        }
    }
}

#[test]
fn a_state_says_whether_there_is_a_guest_and_whether_one_is_to_come() {
    //               ready, ending, over
    let expected = [
        (false, false, false),
        (true, false, false),
        (false, true, false),
        (false, false, true),
        (false, true, true),
    ];
    for (state, expected) in states().into_iter().zip(expected) {
        let life = in_state(state);
        assert_eq!((life.is_ready(), life.is_ending(), life.is_over()), expected, "{:?}", life.state);
    }
    assert_eq!(in_state(Booting).guest(), Ok(None));
    assert_eq!(in_state(Ready("guest")).guest(), Ok(Some("guest")));
    assert_eq!(in_state(Failed(why())).guest(), Err(why()));
    for state in [Ending, Ended] {
        assert!(matches!(in_state(state).guest(), Err(Error::FailedPrecondition(_))));
    }
}

#[test]
fn a_container_is_taken_while_the_guest_boots_and_when_it_is_ready() {
    for state in [Booting, Ready("guest")] {
        let mut life = in_state(state);
        life.reserve("c1").unwrap();
        assert!(life.is_creating() && !life.is_empty());
        assert!(matches!(life.container("c1"), Err(Error::NotFound(_))), "it is not made yet");
        assert!(life.ids().is_empty());
    }
    for state in [Ending, Ended] {
        assert!(matches!(in_state(state).reserve("c1"), Err(Error::FailedPrecondition(_))));
    }
}

#[test]
fn the_first_create_without_a_vm_is_answered_why_and_the_sandbox_has_ended() {
    let mut life = in_state(Failed(why()));
    assert_eq!(life.reserve("c1"), Err(why()));
    assert_eq!(life.state, Ended);
    assert!(life.is_empty());
    assert!(matches!(life.reserve("c1"), Err(Error::FailedPrecondition(_))));
}

#[test]
fn an_id_is_taken_until_its_container_is_removed() {
    for member in [Member::Creating, Member::Present("one"), Member::Ended("one")] {
        let mut life = ready_with(Kind::Lone, &[("c1", member)]);
        assert!(matches!(life.reserve("c1"), Err(Error::AlreadyExists(_))));
        life.remove("c1");
        assert!(life.reserve("c1").is_ok());
    }
}

#[test]
fn another_container_is_taken_where_the_sandbox_is_shared_and_lives() {
    use Member::{Creating, Ended, Present};
    type Members = Vec<(&'static str, Member<&'static str>)>;
    let rows: [(Members, [bool; 3]); 6] = [
        // In a                                                lone, pod, group.
        (vec![], [false, false, false]),
        (vec![("c1", Creating)], [false, false, false]),
        (vec![("c1", Present("one"))], [false, true, true]),
        (vec![("c1", Present("one")), ("c2", Ended("two"))], [false, true, true]),
        (vec![("c1", Ended("one")), ("c2", Present("two"))], [false, false, true]),
        (vec![("c2", Present("two"))], [false, false, true]),
    ];
    for (members, taken) in rows {
        for (kind, taken) in KINDS.into_iter().zip(taken) {
            let mut life = ready_with(kind, &members);
            let reserved = life.reserve("c3");
            assert_eq!(reserved.is_ok(), taken, "{kind:?} with {members:?}");
            let refused =
                |error: &Error| matches!(error, Error::FailedPrecondition(line) if !line.contains('\n'));
            assert!(reserved.as_ref().err().is_none_or(refused), "{reserved:?}");
            assert_eq!(life.state, Ready("guest"), "a Create of another changes nothing");
        }
    }
}

#[test]
fn a_stranger_does_not_take_the_reason_why_there_is_no_vm() {
    for kind in KINDS {
        let mut life = Life { membership: of(kind), state: Failed(why()), containers: HashMap::new() };
        assert!(matches!(life.reserve("c2"), Err(Error::FailedPrecondition(_))));
        assert_eq!(life.reserve("c1"), Err(why()));
    }
}

#[test]
fn a_container_is_found_from_its_creation_to_its_removal() {
    let mut life = in_state(Ready("guest"));
    life.reserve("c1").unwrap();
    life.created("c1", "one");
    assert_eq!((life.container("c1"), life.ids()), (Ok("one"), vec!["c1".to_owned()]));
    assert!(!life.is_creating());
    life.container_ended("c1");
    assert_eq!((life.container("c1"), life.ids()), (Ok("one"), vec!["c1".to_owned()]));
    assert_eq!(life.remove("c1"), Some("one"));
    assert!(life.is_empty() && life.ids().is_empty());
    assert!(matches!(life.container("c1"), Err(Error::NotFound(_))));
    assert_eq!(life.remove("c1"), None);
}

#[test]
fn the_end_of_a_container_and_a_failed_create_end_the_sandbox_that_lives_by_it() {
    use Member::{Creating, Present};
    type Members = Vec<(&'static str, Member<&'static str>)>;
    type Row<'a> = (&'a str, Members, [Option<&'a State<&'static str>>; 3]);
    let (on, off) = (Ready("guest"), Ending);
    // Which one ends, beside which; the state of a lone sandbox, of a pod, of a group. A lone one has no other container.
    let rows: [Row; 8] = [
        ("c1", vec![], [Some(&off), Some(&off), Some(&off)]),
        ("c1", vec![("c2", Member::Ended("two"))], [None, Some(&off), Some(&off)]),
        ("c1", vec![("c2", Present("two"))], [None, Some(&off), Some(&on)]),
        ("c1", vec![("c2", Creating)], [None, Some(&off), Some(&on)]),
        ("c2", vec![("c1", Present("one"))], [None, Some(&on), Some(&on)]),
        ("c2", vec![("c1", Present("one")), ("c3", Present("three"))], [None, Some(&on), Some(&on)]),
        ("c2", vec![("c1", Member::Ended("one"))], [None, Some(&off), Some(&off)]),
        ("c2", vec![("c1", Member::Ended("one")), ("c3", Creating)], [None, Some(&off), Some(&on)]),
    ];
    for (id, others, states) in rows {
        for (kind, expected) in KINDS.into_iter().zip(states) {
            let Some(expected) = expected else { continue };
            let mut life = ready_with(kind, &[others.clone(), vec![(id, Present("it"))]].concat());
            life.container_ended(id);
            assert_eq!(&life.state, expected, "{kind:?}: the end of {id} beside {others:?}");

            let mut life = ready_with(kind, &[others.clone(), vec![(id, Creating)]].concat());
            life.create_failed(id);
            assert_eq!(&life.state, expected, "{kind:?}: a failed Create of {id} beside {others:?}");
            assert!(!life.containers.contains_key(id));
        }
    }
}

#[test]
fn a_pod_takes_containers_after_the_last_of_them_has_gone() {
    let mut life = ready_with(Kind::Pod, &[("c1", Member::Present("one")), ("c2", Member::Present("two"))]);
    life.container_ended("c2");
    assert_eq!(life.remove("c2"), Some("two"));
    life.reserve("c3").unwrap();
    life.created("c3", "three");
    assert_eq!(life.state, Ready("guest"));
}

#[test]
fn who_is_beside_a_container_is_who_runs_or_is_about_to() {
    for (other, beside) in
        [(Member::Creating, true), (Member::Present("two"), true), (Member::Ended("two"), false)]
    {
        let life = ready_with(Kind::Pod, &[("c1", Member::Present("one")), ("c2", other.clone())]);
        assert_eq!(life.has_others("c1"), beside, "{other:?}");
    }
    assert!(!ready_with(Kind::Pod, &[("c1", Member::Present("one"))]).has_others("c1"));
}

#[test]
fn those_present_are_made_and_have_not_ended() {
    let members = [("c1", Member::Present("one")), ("c2", Member::Ended("two")), ("c3", Member::Creating)];
    assert_eq!(ready_with(Kind::Pod, &members).present(), ["one"]);
}

#[test]
fn a_create_that_fails_ends_a_sandbox_in_each_of_its_states() {
    for (state, expected) in states().into_iter().zip([Ending, Ending, Ending, Ended, Ended]) {
        let mut life = in_state(state);
        life.containers.insert("c1".into(), Member::Creating);
        life.create_failed("c1");
        assert_eq!((life.state, life.containers.len()), (expected, 0));
    }
}

#[test]
fn an_end_that_is_known_or_of_a_stranger_changes_nothing() {
    let mut life = ready_with(Kind::Group, &[("c1", Member::Ended("one")), ("c2", Member::Present("two"))]);
    life.container_ended("c1");
    life.container_ended("c3");
    assert_eq!(life.state, Ready("guest"));
    let mut life = in_state(Ready("guest"));
    life.container_ended("c1");
    assert_eq!(life.state, Ready("guest"), "a sandbox that waits for its first container goes on");
}
