//! What a container writes is in its snapshot afterwards, as it was written.

use std::fs;

use lazaret_integration::command::host;
use lazaret_integration::container::{Container, DEBIAN};
use lazaret_integration::{RUNC, beside_others};

/// Writes one of each kind, on a Debian that has `setfattr`.
const WRITE: &str = "set -e
    echo content >/file; chown 1234:2345 /file; chmod 4751 /file
    setfattr -n user.lazaret -v value /file
    setfattr -n security.capability -v 0x0100000200040000000000000000000000000000 /usr/bin/env
    ln -s target /symlink; ln /file /hardlink
    mkdir /directory; chmod 1777 /directory; echo inner >/directory/inner
    mkfifo /fifo; mknod /device c 1 3
    truncate -s 10M /sparse
    rm /etc/issue; rm -r /usr/share/perl5; mkdir /usr/share/perl5
    mv /etc/issue.net /etc/issue.moved
    touch -d @1000000000 /file /directory /directory/inner /fifo /device /sparse
    touch -h -d @1000000001 /symlink";

/// Writes under this runtime, then describes what the snapshotter has of it.
fn written_under(runtime: &str) -> String {
    let container = Container::new("snapshot").image(DEBIAN).under(runtime);
    container.detach(&["sh", "-c", &format!("{WRITE}\necho done >/done; exec sleep 1000")]);
    container.exec(&["sh", "-c", "until [ -s /done ]; do :; done"]).success();
    container.task("delete", &["--force"]);
    let view = format!("/var/tmp/{}", container.id);
    fs::create_dir(&view).expect("a folder to mount on");
    let mount = host("ctr", &["snapshots", "mounts", &view, &container.id]);
    host("sh", &["-c", &mount]);
    let describe = "cd $0
        stat -c '%n %F %a %u:%g %s %h %Y %t,%T' file hardlink directory directory/inner fifo device symlink sparse
        stat -c %b sparse; readlink symlink; cat file directory/inner
        getfattr --absolute-names -h -d -m '^(user|security)' file usr/bin/env
        ls -A usr/share/perl5 | wc -l; ls etc/issue etc/issue.net etc/issue.moved 2>&1";
    let described = host("sh", &["-c", &format!("({describe}) 2>&1 || true"), &view]);
    host("umount", &[&view]);
    fs::remove_dir(&view).expect("it is empty again");
    described
}

#[test]
fn files_are_in_the_snapshot_with_owner_mode_times_and_attributes() {
    let _host = beside_others();
    let ours = written_under(&lazaret_integration::runtime());
    let runc = written_under(RUNC);
    assert_eq!(ours, runc);
    for expected in [
        "file regular file 4751 1234:2345 8 2 1000000000",
        "user.lazaret=\"value\"",
        "inner\n",
        "character special file",
    ] {
        assert!(runc.contains(expected), "{expected:?} in {runc}");
    }
}
