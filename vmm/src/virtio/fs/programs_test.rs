use super::*;

const NODE: u64 = 7;
const NOW: Duration = Duration::from_secs(1_000_000);

/// A program that has been left alone for long.
fn program() -> Attr {
    Attr { size: 100, mode: libc::S_IFREG | 0o755, mtime: 1000, ctime: 1000, ..Attr::default() }
}

#[test]
fn a_program_is_kept_from_the_second_opening_on_until_it_changes() {
    let programs = Programs::default();
    assert!(!programs.is_unchanged(NODE, &program(), NOW), "nothing is known of it");
    assert!(programs.is_unchanged(NODE, &program(), NOW));
    assert!(!programs.is_unchanged(NODE + 1, &program(), NOW), "another file");
    let changes: [fn(&mut Attr); 5] = [
        |attributes| attributes.size = 99,
        |attributes| attributes.mtime = 1001,
        |attributes| attributes.mtimensec = 1,
        |attributes| attributes.ctime = 1001,
        |attributes| attributes.ctimensec = 1,
    ];
    for change in changes {
        let mut changed = program();
        change(&mut changed);
        assert!(!programs.is_unchanged(NODE, &changed, NOW), "{changed:?}");
        assert!(programs.is_unchanged(NODE, &changed, NOW), "{changed:?}");
        programs.is_unchanged(NODE, &program(), NOW);
    }
}

#[test]
fn what_has_just_changed_is_not_kept_since_the_next_change_may_have_the_same_time() {
    let programs = Programs::default();
    for age in [Duration::ZERO, Duration::from_millis(1999)] {
        let now = Duration::from_secs(1000) + age;
        assert!(!programs.is_unchanged(NODE, &program(), now));
        assert!(!programs.is_unchanged(NODE, &program(), now), "{age:?} after the change");
    }
    let now = Duration::from_secs(1002);
    assert!(!programs.is_unchanged(NODE, &program(), now));
    assert!(programs.is_unchanged(NODE, &program(), now));
}

#[test]
fn a_file_of_the_future_or_of_before_1970_is_not_kept() {
    let programs = Programs::default();
    for ctime in [NOW.as_secs() + 1, u64::MAX] {
        let attributes = Attr { ctime, ctimensec: 999_999_999, ..program() };
        assert!(!programs.is_unchanged(NODE, &attributes, NOW));
        assert!(!programs.is_unchanged(NODE, &attributes, NOW));
    }
}

#[test]
fn data_is_never_kept() {
    let programs = Programs::default();
    let data = Attr { mode: libc::S_IFREG | 0o644, ..program() };
    assert!(!programs.is_unchanged(NODE, &data, NOW));
    assert!(!programs.is_unchanged(NODE, &data, NOW));
}

#[test]
fn a_guest_that_opens_many_files_does_not_fill_the_host() {
    let programs = Programs::default();
    for node in 0..3 * MAX_PROGRAMS as u64 {
        programs.is_unchanged(node, &program(), NOW);
    }
    assert!(sync::lock(&programs.0).len() <= MAX_PROGRAMS);
}
