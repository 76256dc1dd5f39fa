//! Many sandboxes at the same time, and what is left when they are gone.

use std::time::Duration;

use lazaret_integration::alone;
use lazaret_integration::container::Container;
use lazaret_integration::leftovers::Snapshot;

const SANDBOXES: usize = 20;

#[test]
fn twenty_at_once_are_all_right_and_leave_nothing() {
    let _host = alone();
    let before = Snapshot::take();
    let containers: Vec<_> = (0..SANDBOXES).map(|number| Container::new(&format!("many{number}"))).collect();
    let runs: Vec<_> = containers
        .iter()
        .enumerate()
        .map(|(number, container)| {
            container.attach(&["sh", "-c", &format!("echo I am {number}; exit {number}")])
        })
        .collect();
    for (number, run) in runs.into_iter().enumerate() {
        let run = run.finish_within(Duration::from_secs(400));
        assert_eq!((run.code, run.out()), (number as i32, format!("I am {number}\n")), "{run}");
    }
    drop(containers);
    before.assert_nothing_new();
}
