use super::*;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::time::Instant;

fn own_network() -> OwnedFd {
    File::open("/proc/thread-self/ns/net").unwrap().into()
}

/// Waits until `check` holds for a process that is about to do it.
fn soon(check: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !check() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test)
}

#[test]
fn it_says_whose_it_is_and_holds_next_to_nothing() {
    run(async {
        let counted = Arc::new(());
        let anchor = Anchor::start("a-container-with-a-name", &own_network(), None, counted.clone()).unwrap();
        let read = |file: &str| fs::read_to_string(format!("/proc/{}/{file}", anchor.pid())).unwrap();
        soon(|| read("comm") == "lazaret:a-conta\n");
        assert_eq!(read("cmdline"), "lazaret:a-container-with-a-name\0");
        assert_eq!(read("environ"), "");
        soon(|| fs::read_dir(format!("/proc/{}/fd", anchor.pid())).unwrap().count() == 0);
        let resident: u64 = read("statm").split(' ').nth(1).unwrap().parse().unwrap();
        assert!(resident * 4 <= 300, "{resident} pages");
        assert_eq!(Arc::strong_count(&counted), 2);
        anchor.end().await;
        assert!(!fs::exists(format!("/proc/{}", anchor.pid())).unwrap(), "it is reaped");
        assert_eq!(Arc::strong_count(&counted), 1);
    });
}

#[test]
fn its_end_by_another_hand_is_noticed() {
    run(async {
        let anchor = Anchor::start("c1", &own_network(), None, Arc::new(())).unwrap();
        let early = tokio::time::timeout(Duration::from_millis(50), anchor.ended()).await;
        assert!(early.is_err());
        let pid = nix::unistd::Pid::from_raw(anchor.pid().try_into().unwrap());
        // Signals that do not end a process do not end it.
        nix::sys::signal::kill(pid, nix::sys::signal::SIGCHLD).unwrap();
        nix::sys::signal::kill(pid, nix::sys::signal::SIGTERM).unwrap();
        tokio::time::timeout(Duration::from_secs(20), anchor.ended()).await.unwrap();
        anchor.end().await;
    });
}

#[test]
fn it_is_in_the_network_namespace_that_is_given() {
    let made = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("these tests need root");
        own_network()
    });
    let network = made.join().unwrap();
    run(async {
        let anchor = Anchor::start("c1", &network, None, Arc::new(())).unwrap();
        let theirs = fs::read_link(format!("/proc/{}/ns/net", anchor.pid())).unwrap();
        let given = fs::read_link(format!("/proc/self/fd/{}", network.as_raw_fd())).unwrap();
        assert_eq!(theirs, given);
        assert_ne!(theirs, fs::read_link("/proc/self/ns/net").unwrap());
        anchor.end().await;
    });
}

#[test]
fn it_does_not_outlive_who_has_started_it() {
    let started = std::thread::spawn(|| {
        let file = program_file().unwrap();
        command("c1", &file, own_network()).spawn().unwrap()
    });
    let mut child = started.join().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
}
