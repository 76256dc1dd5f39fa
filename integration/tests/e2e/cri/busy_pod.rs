//! What is done with a pod that runs: commands, logs, statistics, limits, ports.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use lazaret_integration::cri::{Code, PodContainer, api};
use lazaret_integration::leftovers::eventually;
use lazaret_integration::{beside_others, is_lazaret};

use super::super::localhost::request;
use super::{APP_MEMORY, busy_pod, limits, node, volume};

#[test]
fn containers_come_after_the_init_container_and_share_what_a_pod_shares() {
    let _host = beside_others();
    let together = node();
    let busy = busy_pod(&together);
    assert_eq!(busy.init.status().exit_code, 7);
    assert_eq!(busy.app.says(&["cat", "/volume/of-init"]), "busy");
    busy.app.says(&["sh", "-c", "echo of-app >/volume/of-app"]);
    let file = format!("{}/of-app", volume(&busy.pod));
    assert_eq!(fs::read_to_string(file).expect("the volume is the host's"), "of-app\n");
    let namespace = |container: &PodContainer, kind: &str| {
        container.says(&["readlink", &format!("/proc/self/ns/{kind}")])
    };
    for kind in ["net", "ipc", "uts"] {
        assert_eq!(namespace(&busy.app, kind), namespace(&busy.server, kind), "{kind}");
    }
    assert_ne!(namespace(&busy.app, "pid"), namespace(&busy.server, "pid"));
    assert_eq!(namespace(&busy.app, "pid"), namespace(&busy.debugger, "pid"));
    assert_eq!(busy.debugger.says(&["sh", "-c", "tr '\\0' ' ' </proc/1/cmdline"]), "sleep 1000000");
    busy.app.says(&["sh", "-c", "echo shared >/dev/shm/file"]);
    assert_eq!(busy.server.says(&["cat", "/dev/shm/file"]), "shared");
    assert_eq!(busy.debugger.says(&["wget", "-qO-", "http://127.0.0.1:81/hello"]), "hello");
    for container in [&busy.app, &busy.server] {
        assert_eq!(container.says(&["hostname"]), "busy");
        assert!(container.says(&["cat", "/etc/hosts"]).contains("localhost"));
        assert!(container.says(&["ip", "address", "show", "eth0"]).contains(&busy.pod.address()));
    }
}

#[test]
fn fifty_commands_in_a_row_and_ten_at_once_each_have_their_own_output() {
    let _host = beside_others();
    let together = node();
    let busy = busy_pod(&together);
    for number in 0..50 {
        assert_eq!(busy.app.says(&["echo", &number.to_string()]), number.to_string());
    }
    let run = |number: usize| {
        let container = [&busy.app, &busy.server, &busy.debugger][number % 3];
        let ran =
            container.exec(&["sh", "-c", &format!("echo {number}; echo err{number} >&2; exit {number}")]);
        assert_eq!(ran.code, i32::try_from(number).expect("a small number"));
        assert_eq!((ran.out, ran.err), (format!("{number}\n"), format!("err{number}\n")));
    };
    thread::scope(|scope| (0..10).for_each(|number| _ = scope.spawn(move || run(number))));
}

#[test]
fn a_command_that_takes_too_long_is_ended_and_the_deadline_told() {
    let _host = beside_others();
    let together = node();
    let busy = busy_pod(&together);
    let begun = Instant::now();
    let late = together.node.cri.exec(&busy.server.id, &["sleep", "4242"], Duration::from_secs(2));
    assert_eq!(late.expect_err("it takes longer").code(), Code::DeadlineExceeded);
    assert!(
        begun.elapsed() < Duration::from_secs(60),
        "{:?}, so it was the test's own deadline",
        begun.elapsed()
    );
    let left = busy.server.says(&["ps", "-o", "args"]);
    assert!(left.contains("sleep 1000000") && !left.contains("sleep 4242"), "{left}");
}

#[test]
fn a_command_leaves_a_background_child_with_its_output_and_its_own_is_complete() {
    let _host = beside_others();
    let together = node();
    let busy = busy_pod(&together);
    // Under runc CRI waits until the child has ended.
    let child = if is_lazaret() { "sleep 4343" } else { "sleep 10" };
    let begun = Instant::now();
    let ran = busy.server.exec(&["sh", "-c", &format!("{child} & echo started")]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "started\n"));
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    if is_lazaret() {
        assert!(busy.server.says(&["ps", "-o", "args"]).contains(child));
    }
}

#[test]
fn logs_have_both_streams_whole_and_go_on_in_a_new_file() {
    let _host = beside_others();
    let together = node();
    let busy = busy_pod(&together);
    let long = "x".repeat(40_000);
    eventually(|| {
        let out = busy.app.logged("stdout");
        let whole = out == format!("busy\n{long}\n");
        if whole { Ok(()) } else { Err(format!("{} bytes: {}", out.len(), &out[..out.len().min(100)])) }
    });
    assert_eq!(busy.app.logged("stderr"), "error\n");

    let say = "while :; do echo said; sleep 0.2; done";
    let talker = busy.pod.start("talker", &["sh", "-c", say]);
    eventually(|| if talker.logged("stdout").contains("said") { Ok(()) } else { Err("no line".into()) });
    let log = format!("{}/talker.log", busy.pod.config.log_directory);
    fs::rename(&log, format!("{log}.1")).expect("it is there");
    together.node.cri.reopen_log(&talker.id).expect("it runs");
    eventually(|| if talker.logged("stdout").contains("said") { Ok(()) } else { Err("no line".into()) });
}

#[test]
fn statistics_are_of_each_container_and_of_the_pod_with_one_that_has_ended() {
    let _host = beside_others();
    let together = node();
    let (busy, cri) = (busy_pod(&together), &together.node.cri);
    let value = |value: Option<api::UInt64Value>| value.expect("it is told").value;
    for container in [&busy.app, &busy.server, &busy.debugger] {
        let stats = cri.stats(&container.id).expect("it runs");
        assert!(value(stats.cpu.expect("it is told").usage_core_nano_seconds) > 0);
        let memory = stats.memory.expect("it is told");
        let working_set = value(memory.working_set_bytes);
        assert!(working_set > 0 && working_set <= value(memory.usage_bytes), "{memory:?}");
        assert!(value(memory.usage_bytes) < 64 << 20, "{memory:?}");
    }
    let app = cri.stats(&busy.app.id).expect("it runs").memory.expect("it is told");
    let limit = u64::try_from(APP_MEMORY).expect("it is one");
    assert!((limit / 2..=limit).contains(&value(app.available_bytes)), "{app:?}");

    let listed = cri.list_stats(&busy.pod.id).expect("one that has ended does no harm");
    let ids: Vec<_> = listed.into_iter().map(|stats| stats.attributes.expect("an id").id).collect();
    for container in [&busy.app, &busy.server, &busy.debugger] {
        assert!(ids.contains(&container.id), "{ids:?}");
    }

    let stats = cri.pod_stats(&busy.pod.id).expect("it runs").linux.expect("it is Linux");
    assert!(value(stats.cpu.expect("it is told").usage_core_nano_seconds) > 0);
    assert!(value(stats.memory.expect("it is told").working_set_bytes) > 0);
    let interface = stats.network.expect("it is told").default_interface.expect("there is one");
    assert_eq!(interface.name, "eth0");
    assert!(value(stats.process.expect("it is told").process_count) > 0);
    assert!(stats.containers.len() >= 3, "{:?}", stats.containers);
}

#[test]
fn limits_of_a_running_container_are_changed() {
    let _host = beside_others();
    let together = node();
    let (busy, cri) = (busy_pod(&together), &together.node.cri);
    let mut config = busy.pod.container_config("limited", &["sleep", "1000000"]);
    config.linux.as_mut().expect("it is Linux").resources = Some(limits(APP_MEMORY, 50_000));
    let limited = busy.pod.start_with(&config);
    let found = || limited.says(&["cat", "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/cpu.max"]);
    assert_eq!(found(), format!("{APP_MEMORY}\n50000 100000"));
    for (memory, quota) in [(APP_MEMORY * 2, 70_000), (APP_MEMORY, 50_000)] {
        cri.update(&limited.id, limits(memory, quota)).expect("it runs");
        assert_eq!(found(), format!("{memory}\n{quota} 100000"));
    }
}

#[test]
fn ports_are_forwarded_as_containerd_does_by_localhost_of_the_pods_network_namespace() {
    let _host = beside_others();
    let together = node();
    let busy = busy_pod(&together);
    busy.server.says(&["sh", "-c", "until netstat -ltn | grep -q ::1:82; do sleep 0.1; done"]);
    let pid = busy.server.pid();
    for to in ["127.0.0.1:80", "127.0.0.1:81", "[::1]:82"] {
        assert!(request(pid, to).ends_with("hello\n"), "{to}");
    }
}
