use super::*;
use crate::state::ProcessId;
use std::os::unix::fs::symlink;
use std::sync::Barrier;

/// A host with a budget, and its sandboxes.
struct Host(tempfile::TempDir);

fn ourselves() -> Option<ProcessId> {
    ProcessId::of(i32::try_from(std::process::id()).unwrap()).ok()
}

fn gone() -> Option<ProcessId> {
    Some(ProcessId { pid: 1, start_time: u64::MAX })
}

impl Host {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn budget(&self, limit_mib: u64) -> Budget {
        Budget::new(&self.0.path().join("disks"), limit_mib, &self.0.path().join("run"))
    }

    fn state(&self, id: &str) -> StateDir {
        let state = StateDir::new(&self.0.path().join("run"), "default", id);
        let _ = state.create();
        state
    }

    /// Enters a disk for a sandbox that runs.
    fn enter(&self, budget: &Budget, id: &str, mib: u64) -> Result<Record, BudgetError> {
        let (state, mut record) = (self.state(id), Record { vmm: ourselves(), ..Record::default() });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(budget.lock())?.enter(mib, None, &state, &mut record)?;
        assert_eq!(state.load().as_ref(), Some(&record));
        Ok(record)
    }
}

#[test]
fn disks_are_entered_up_to_the_limit_and_not_beyond() {
    let host = Host::new();
    let budget = host.budget(1000);
    host.enter(&budget, "a", 600).unwrap();
    let error = host.enter(&budget, "b", 401).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the Docker disks of this host have 1000 MiB together (docker_disks_mib), with no room for one of 401 MiB"
    );
    assert_eq!(host.state("b").load(), None, "a refused disk is not entered");
    host.enter(&budget, "b", 400).unwrap();
    assert!(matches!(host.enter(&budget, "c", 1), Err(BudgetError::Exceeded { taken: 1000, .. })));
    // A sandbox that enters its disk again does not count twice.
    host.enter(&budget, "a", 600).unwrap();
    assert!(matches!(host.enter(&budget, "a", u64::MAX), Err(BudgetError::Exceeded { taken: 400, .. })));
}

#[test]
fn a_volume_that_its_last_sandbox_still_has_counts_once() {
    let host = Host::new();
    let (budget, volume) = (host.budget(1000), Path::new("/disks/volumes/cache"));
    let mut record = host.enter(&budget, "a", 600).unwrap();
    record.docker_volume = Some(volume.into());
    host.state("a").save(&record).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let enter = |volume| {
        let entry = runtime.block_on(budget.lock()).unwrap();
        entry.enter(600, Some(volume), &host.state("b"), &mut Record::default())
    };
    assert!(matches!(
        enter(Path::new("/disks/volumes/other")),
        Err(BudgetError::Exceeded { taken: 600, .. })
    ));
    enter(volume).unwrap();
}

#[test]
fn without_a_limit_disks_are_entered_all_the_same() {
    let host = Host::new();
    let record = host.enter(&host.budget(0), "a", u64::MAX).unwrap();
    assert_eq!(record.docker_disk.unwrap().mib, u64::MAX);
    let limited = host.enter(&host.budget(1000), "b", 1);
    assert!(matches!(limited, Err(BudgetError::Exceeded { taken: u64::MAX, .. })), "{limited:?}");
}

#[test]
fn a_sandbox_counts_until_its_vmm_has_ended() {
    let host = Host::new();
    let budget = host.budget(1000);
    let entered = host.enter(&budget, "a", 1000).unwrap();
    let state = host.state("a");
    let free = || host.enter(&budget, "b", 1).is_ok();
    for (shim, vmm, counts) in [
        (ourselves(), ourselves(), true),
        // A shim that was killed: its VMM still has the disk.
        (gone(), ourselves(), true),
        // Between the entry and the VMM's start.
        (ourselves(), None, true),
        (ourselves(), gone(), false),
        (gone(), None, false),
        (None, None, false),
    ] {
        state.save(&Record { shim, vmm, ..entered.clone() }).unwrap();
        assert_eq!(free(), !counts, "{shim:?} {vmm:?}");
        host.state("b").remove().unwrap();
    }
}

#[test]
fn only_disks_of_the_same_directory_count_by_whatever_name() {
    let host = Host::new();
    let budget = host.budget(1000);
    host.enter(&budget, "a", 1000).unwrap();
    let elsewhere = Budget::new(&host.0.path().join("other"), 1000, &host.0.path().join("run"));
    host.enter(&elsewhere, "b", 1000).unwrap();
    symlink(host.0.path().join("disks"), host.0.path().join("link")).unwrap();
    let linked = Budget::new(&host.0.path().join("link"), 1000, &host.0.path().join("run"));
    assert!(matches!(host.enter(&linked, "c", 1), Err(BudgetError::Exceeded { taken: 1000, .. })));
}

#[test]
fn of_many_who_enter_at_once_as_many_do_as_have_room() {
    for _ in 0..10 {
        let host = Host::new();
        let (budget, together) = (host.budget(250), Barrier::new(6));
        let enter = |number: usize| {
            let (host, budget, together) = (&host, &budget, &together);
            move || {
                together.wait();
                host.enter(budget, &format!("s{number}"), 100)
            }
        };
        let entered: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..6).map(|number| scope.spawn(enter(number))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(entered.iter().filter(|record| record.is_ok()).count(), 2, "{entered:?}");
        let refused = |error: &BudgetError| matches!(error, BudgetError::Exceeded { taken: 200, .. });
        assert!(entered.iter().filter_map(|record| record.as_ref().err()).all(refused), "{entered:?}");
    }
}

#[test]
fn a_lock_that_is_not_released_is_not_waited_for_for_ever() {
    let host = Host::new();
    let budget = host.budget(1000);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let held = budget.lock().await.unwrap();
        let error = budget.lock().await.unwrap_err().to_string();
        assert!(error.contains("/disks has been locked for"), "{error}");
        // One that is released in time is waited for.
        let (next, ()) = tokio::join!(budget.lock(), async {
            tokio::time::sleep(LOCK_TIMEOUT / 4).await;
            drop(held);
        });
        next.unwrap();
    });
}

#[test]
fn a_directory_that_cannot_be_used_is_named() {
    let host = Host::new();
    fs::write(host.0.path().join("disks"), "no directory").unwrap();
    let error = host.enter(&host.budget(1000), "a", 1).unwrap_err().to_string();
    assert!(
        error.contains("/disks: ") && error.ends_with("disk_dir of config.toml sets the directory"),
        "{error}"
    );
}
