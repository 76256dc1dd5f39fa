//! Files that a sandbox shares with the host.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::thread::sleep;
use std::time::Duration;

use lazaret_integration::beside_others;
use lazaret_integration::container::Container;

/// A program that says a word, as long as the others' word.
fn program(word: &str) -> String {
    format!("#!/bin/sh\necho {word}\n")
}

#[test]
fn a_program_that_the_host_changes_runs_as_it_is_now() {
    let _host = beside_others();
    let folder = format!("/var/tmp/lazaret-test-files-{}", std::process::id());
    fs::create_dir_all(&folder).expect("a folder to share");
    let (path, next) = (format!("{folder}/program"), format!("{folder}/next"));
    let write = |path: &str, word: &str| {
        fs::write(path, program(word)).expect("the folder is there");
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("it was just written");
    };
    write(&path, "one");
    // Its age makes it a program that the guest may keep.
    sleep(Duration::from_secs(3));

    let mount = format!("type=bind,src={folder},dst=/shared,options=rbind:rw");
    let container = Container::new("files").flags(&["--mount", &mount]);
    container.detach(&["sleep", "1000"]);
    let says = || container.exec(&["/shared/program"]).success().out();
    assert_eq!([says(), says()], ["one\n", "one\n"]);

    // In place, with the size and the time of modification that it had.
    let modified = fs::metadata(&path).and_then(|program| program.modified()).expect("it is there");
    fs::write(&path, program("two")).expect("it is there");
    let changed = File::options().write(true).open(&path).expect("it is there");
    changed.set_modified(modified).expect("it is ours");
    drop(changed);
    assert_eq!([says(), says()], ["two\n", "two\n"]);

    write(&next, "six");
    fs::rename(&next, &path).expect("both are there");
    // The guest believes a name for a second.
    sleep(Duration::from_secs(2));
    assert_eq!(says(), "six\n");
    container.remove();
    fs::remove_dir_all(&folder).expect("it is ours");
}
