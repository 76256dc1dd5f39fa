//! The agent as the host sees it: RPCs over a real connection, real streams, containers by the real crun, and cgroups
//! where the machine has version 2. What only a guest has, vsock and the shared tree, is not here.

use crate::test_host::{failure, host, line, process, skipped, text, within};
use lazaret_agent_api::agent::stream_header::Kind;
use lazaret_agent_api::agent::{ContainerRequest, ResizeTerminalRequest};
use serde_json::json;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use ttrpc::Code;

#[tokio::test]
async fn output_exit_codes_and_clean_up() {
    let Some(host) = host("output_exit_codes_and_clean_up").await else { return };
    let sh = |script: &str| host.spec(process(&["sh", "-c", script]));
    let ran = host.run("c1", &sh("echo out; echo err >&2; exit 7")).await;
    assert_eq!(ran, (7, "out\n".into(), "err\n".into()));
    assert_eq!(host.run("c1", &sh("kill -KILL $$; exit 3")).await.0, 3, "the first process shrugs that off");
    assert_eq!(host.run("c1", &host.spec(process(&["true"]))).await, (0, String::new(), String::new()));
    // Its processes are in a namespace of their own.
    assert_eq!(host.run("c1", &sh("echo $$")).await.1, "1\n");
    host.nothing_is_left();
}

#[tokio::test]
async fn what_cannot_be_run_says_why_in_one_line_and_leaves_nothing() {
    let Some(host) = host("what_cannot_be_run_says_why_in_one_line_and_leaves_nothing").await else { return };
    let missing = failure(host.create("c1", &host.spec(process(&["nosuch"]))).await);
    assert_eq!(
        missing,
        (Code::INVALID_ARGUMENT, "exec: \"nosuch\": executable file not found in $PATH".into())
    );
    let mut spec = host.spec(process(&["true"]));
    spec["root"]["path"] = "/no/such/root".into();
    let (code, line) = failure(host.create("c1", &spec).await);
    assert_eq!(code, Code::INVALID_ARGUMENT);
    assert!(line.contains("/no/such/root") && !line.contains('\n'), "{line}");
    for id in ["", "..", "a/b", "-x", &"x".repeat(77)] {
        assert_eq!(failure(host.create(id, &spec).await).0, Code::INVALID_ARGUMENT, "{id}");
    }
    assert_eq!(failure(host.wait("c1", "").await).0, Code::NOT_FOUND);
    host.nothing_is_left();
}

#[tokio::test]
async fn states_and_their_errors() {
    let Some(host) = host("states_and_their_errors").await else { return };
    let idle = host.spec(process(&["sleep", "1000"]));
    host.create("c1", &idle).await.unwrap();
    assert_eq!(failure(host.create("c1", &idle).await).0, Code::ALREADY_EXISTS);
    host.create_exec("c1", "e1", &process(&["true"])).await.unwrap();
    assert_eq!(
        failure(host.start("c1", "e1").await).0,
        Code::FAILED_PRECONDITION,
        "the container is not started"
    );
    host.start("c1", "").await.unwrap();
    assert_eq!(failure(host.start("c1", "").await).0, Code::FAILED_PRECONDITION);
    assert_eq!(failure(host.delete("c1", "").await).0, Code::FAILED_PRECONDITION);
    assert_eq!(failure(host.create_exec("c1", "e1", &process(&["true"])).await).0, Code::ALREADY_EXISTS);
    assert_eq!(failure(host.signal("c1", "e1", libc::SIGTERM, false).await).0, Code::FAILED_PRECONDITION);
    assert_eq!(failure(host.signal("c1", "", 4000, false).await).0, Code::INVALID_ARGUMENT);
    let resize = ResizeTerminalRequest { container_id: "c1".into(), ..Default::default() };
    assert_eq!(failure(host.agent.resize_terminal(within(), &resize).await).0, Code::FAILED_PRECONDITION);
    host.signal("c1", "", libc::SIGKILL, true).await.unwrap();
    assert_eq!(host.wait("c1", "").await.unwrap().exit_status, 137);
    let late = failure(host.signal("c1", "", libc::SIGKILL, false).await);
    assert_eq!(late, (Code::NOT_FOUND, "container c1: process already finished".into()));
    assert_eq!(failure(host.start("c1", "e1").await).0, Code::FAILED_PRECONDITION);
    assert_eq!(host.wait("c1", "").await.unwrap().exit_status, 137, "answers until it is deleted");
    host.delete("c1", "").await.unwrap();
    assert_eq!(failure(host.delete("c1", "").await).0, Code::NOT_FOUND);
    host.nothing_is_left();
}

#[tokio::test]
async fn a_container_that_was_never_started_can_be_deleted() {
    let Some(host) = host("a_container_that_was_never_started_can_be_deleted").await else { return };
    host.create("c1", &host.spec(process(&["sleep", "1000"]))).await.unwrap();
    host.delete("c1", "").await.unwrap();
    host.nothing_is_left();
}

#[tokio::test]
async fn execs_run_with_their_own_stdio_user_and_directory() {
    let Some(host) = host("execs_run_with_their_own_stdio_user_and_directory").await else { return };
    host.idle("c1").await;
    let mut spec =
        process(&["sh", "-c", "cat; pwd; id -u; cat /proc/self/oom_score_adj; echo $WHO >&2; exit 3"]);
    spec["oomScoreAdj"] = 77.into();
    spec["user"] = json!({ "uid": 7, "gid": 8 });
    spec["cwd"] = "/tmp".into();
    spec["env"] = json!(["PATH=/bin", "WHO=me"]);
    host.create_exec("c1", "e1", &spec).await.unwrap();
    let mut stdin = host.attach("c1", "e1", Kind::STDIN).await;
    let stdout = host.attach("c1", "e1", Kind::STDOUT).await;
    let stderr = host.attach("c1", "e1", Kind::STDERR).await;
    host.start("c1", "e1").await.unwrap();
    stdin.write_all(b"hello\n").await.unwrap();
    stdin.shutdown().await.unwrap();
    assert_eq!(text(stdout).await, "hello\n/tmp\n7\n77\n");
    assert_eq!(text(stderr).await, "me\n");
    assert_eq!(host.wait("c1", "e1").await.unwrap().exit_status, 3);
    host.delete("c1", "e1").await.unwrap();
    assert_eq!(failure(host.wait("c1", "e1").await).0, Code::NOT_FOUND);

    host.create_exec("c1", "e2", &process(&["nosuch"])).await.unwrap();
    let stdout = host.attach("c1", "e2", Kind::STDOUT).await;
    let stderr = host.attach("c1", "e2", Kind::STDERR).await;
    let missing = failure(host.start("c1", "e2").await);
    assert_eq!(
        missing,
        (Code::INVALID_ARGUMENT, "exec: \"nosuch\": executable file not found in $PATH".into())
    );
    assert_eq!((text(stdout).await, text(stderr).await), (String::new(), String::new()));
    assert_eq!(host.wait("c1", "e2").await.unwrap().exit_status, 127);

    host.signal("c1", "", libc::SIGKILL, false).await.unwrap();
    host.wait("c1", "").await.unwrap();
    host.delete("c1", "").await.unwrap();
    host.nothing_is_left();
}

#[tokio::test]
async fn the_end_of_a_container_ends_its_execs_which_are_told_first() {
    let Some(host) = host("the_end_of_a_container_ends_its_execs_which_are_told_first").await else { return };
    host.idle("c1").await;
    host.create_exec("c1", "e1", &process(&["sleep", "1000"])).await.unwrap();
    let unread = host.attach("c1", "e1", Kind::STDOUT).await;
    host.start("c1", "e1").await.unwrap();
    host.signal("c1", "", libc::SIGKILL, false).await.unwrap();
    let order = std::sync::Mutex::new(Vec::new());
    let note = async |exec_id: &'static str| {
        let exit = host.wait("c1", exec_id).await.unwrap();
        order.lock().unwrap().push((exec_id, exit.exit_status));
    };
    tokio::join!(note(""), note("e1"));
    assert_eq!(order.into_inner().unwrap(), [("e1", 137), ("", 137)]);
    drop(unread);
    host.delete("c1", "").await.unwrap();
}

#[tokio::test]
async fn a_background_child_that_keeps_stdout_holds_nothing_back() {
    let Some(host) = host("a_background_child_that_keeps_stdout_holds_nothing_back").await else { return };
    host.idle("c1").await;
    host.create_exec("c1", "e1", &process(&["sh", "-c", "sleep 1000 & echo done"])).await.unwrap();
    let stdout = host.attach("c1", "e1", Kind::STDOUT).await;
    host.start("c1", "e1").await.unwrap();
    assert_eq!(text(stdout).await, "done\n");
    assert_eq!(host.wait("c1", "e1").await.unwrap().exit_status, 0);
    host.signal("c1", "", libc::SIGKILL, false).await.unwrap();
    host.wait("c1", "").await.unwrap();
    host.delete("c1", "").await.unwrap();
}

#[tokio::test]
async fn a_terminal_has_its_size_and_takes_keys() {
    let Some(host) = host("a_terminal_has_its_size_and_takes_keys").await else { return };
    let mut spec = process(&[
        "sh",
        "-c",
        "trap 'exit 5' INT; stty size; read line; echo got $line; while :; do :; done",
    ]);
    spec["terminal"] = true.into();
    host.create("c1", &host.spec(spec)).await.unwrap();
    let resize =
        ResizeTerminalRequest { container_id: "c1".into(), width: 132, height: 43, ..Default::default() };
    host.agent.resize_terminal(within(), &resize).await.unwrap();
    let mut stdin = host.attach("c1", "", Kind::STDIN).await;
    let stdout = host.attach("c1", "", Kind::STDOUT).await;
    host.start("c1", "").await.unwrap();
    let mut stdout = BufReader::new(stdout);
    assert_eq!(line(&mut stdout).await, "43 132\r\n");
    stdin.write_all(b"hi\n").await.unwrap();
    assert_eq!(line(&mut stdout).await, "hi\r\n", "the terminal's echo");
    assert_eq!(line(&mut stdout).await, "got hi\r\n");
    // The shell spins: a key that comes between two commands is seen as well.
    const CTRL_C: u8 = 3;
    stdin.write_all(&[CTRL_C]).await.unwrap();
    assert_eq!(host.wait("c1", "").await.unwrap().exit_status, 5);
    host.delete("c1", "").await.unwrap();
}

#[tokio::test]
async fn nothing_of_the_agent_is_open_in_a_container() {
    let Some(host) = host("nothing_of_the_agent_is_open_in_a_container").await else { return };
    let (_, open, _) = host.run("c1", &host.spec(process(&["sh", "-c", "echo /proc/$$/fd/*"]))).await;
    // The shell's own, the last, is for the directory it lists.
    let open: Vec<_> = open.split_whitespace().collect();
    assert_eq!(open[..3], ["/proc/1/fd/0", "/proc/1/fd/1", "/proc/1/fd/2"]);
    assert!(open.len() <= 4, "{open:?}");
}

#[tokio::test]
async fn much_input_and_output_are_complete() {
    let Some(host) = host("much_input_and_output_are_complete").await else { return };
    const SIZE: usize = 20 << 20;
    host.create("c1", &host.spec(process(&["cat"]))).await.unwrap();
    let mut stdin = host.attach("c1", "", Kind::STDIN).await;
    let mut stdout = host.attach("c1", "", Kind::STDOUT).await;
    host.start("c1", "").await.unwrap();
    let sent: Vec<u8> = (0..SIZE).map(|i| (i / 7).to_le_bytes()[0]).collect();
    let send = async {
        stdin.write_all(&sent).await.unwrap();
        stdin.shutdown().await.unwrap();
    };
    let mut got = Vec::new();
    let (_, read) = tokio::join!(send, stdout.read_to_end(&mut got));
    read.unwrap();
    assert!(got == sent, "{} of {SIZE} bytes, or others", got.len());
    assert_eq!(host.wait("c1", "").await.unwrap().exit_status, 0);
    host.delete("c1", "").await.unwrap();
}

#[tokio::test]
async fn every_process_of_a_container_is_listed_and_reached_and_its_nested_cgroups_go() {
    let test = "every_process_of_a_container_is_listed_and_reached_and_its_nested_cgroups_go";
    let Some(host) = host(test).await else { return };
    if !host.cgroups {
        skipped(test, "this machine's cgroup controllers are not version 2's");
        return;
    }
    // Every shell says what it was told, and goes on; the first two nest themselves a cgroup.
    let script = "mkdir -p /sys/fs/cgroup/a/b; echo $$ > /sys/fs/cgroup/a/b/cgroup.procs
        echo +memory > /sys/fs/cgroup/cgroup.subtree_control || exit 1
        trap 'echo told' TERM; (trap 'echo told' TERM; echo there; while :; do sleep 1; done) &
        echo there; while :; do sleep 1; done";
    let mut spec = host.spec(process(&["sh", "-c", script]));
    spec["linux"]["namespaces"] = json!([{ "type": "mount" }, { "type": "cgroup" }]);
    spec["linux"]["resources"] = json!({ "memory": { "limit": 64 << 20 }, "pids": { "limit": 50 } });
    let sys = json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup" });
    spec["mounts"].as_array_mut().unwrap().push(sys);
    let pid = host.create("c1", &spec).await.unwrap();
    let stdout = host.attach("c1", "", Kind::STDOUT).await;
    let mut stdout = BufReader::new(stdout);
    host.start("c1", "").await.unwrap();
    for _ in 0..2 {
        assert_eq!(line(&mut stdout).await, "there\n");
    }
    let asked = ContainerRequest { container_id: "c1".into(), ..Default::default() };
    let pids = host.agent.list_pids(within(), &asked).await.unwrap().pids;
    assert!(pids.contains(&pid) && pids.len() >= 2, "{pid} in {pids:?}");
    let limit = std::fs::read_to_string("/sys/fs/cgroup/lazaret/c1/memory.max").unwrap();
    assert_eq!(limit.trim(), (64 << 20).to_string());
    host.create_exec("c1", "e1", &process(&["true"])).await.unwrap();
    host.start("c1", "e1").await.unwrap();
    assert_eq!(
        host.wait("c1", "e1").await.unwrap().exit_status,
        0,
        "beside cgroups that the container divides"
    );
    host.signal("c1", "", libc::SIGTERM, true).await.unwrap();
    for _ in 0..2 {
        assert_eq!(line(&mut stdout).await, "told\n");
    }
    host.signal("c1", "", libc::SIGKILL, true).await.unwrap();
    assert_eq!(host.wait("c1", "").await.unwrap().exit_status, 137);
    assert!(host.agent.list_pids(within(), &asked).await.unwrap().pids.is_empty());
    host.delete("c1", "").await.unwrap();
    host.nothing_is_left();
}

#[tokio::test]
async fn a_file_that_is_no_program_ends_at_once_and_says_why() {
    let test = "a_file_that_is_no_program_ends_at_once_and_says_why";
    let Some(host) = host(test).await else { return };
    let junk = host.dir.path().join("rootfs/bin/junk");
    std::fs::write(&junk, "junk").unwrap();
    std::fs::set_permissions(&junk, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let (status, _, err) = host.run("c1", &host.spec(process(&["/bin/junk"]))).await;
    assert_ne!(status, 0);
    assert!(err.ends_with("Exec format error\n") && err.lines().count() == 1, "{err:?}");
    host.nothing_is_left();
}

#[tokio::test]
async fn a_container_without_a_cgroup_has_no_numbers_and_one_that_is_none_is_not_found() {
    let test = "a_container_without_a_cgroup_has_no_numbers_and_one_that_is_none_is_not_found";
    let Some(host) = host(test).await else { return };
    assert_eq!(failure(host.stats("c1").await).0, Code::NOT_FOUND);
    assert_eq!(failure(host.wait_oom("c1", 0).await).0, Code::NOT_FOUND);
    assert_eq!(failure(host.update("c1", &json!({})).await).0, Code::NOT_FOUND);
    if host.cgroups {
        skipped(test, "the rest is for machines without cgroups of version 2");
        return;
    }
    host.idle("c1").await;
    let none = failure(host.stats("c1").await);
    assert_eq!(none, (Code::NOT_FOUND, "container c1: it has no cgroup".into()));
    let none = failure(host.wait_oom("c1", 0).await);
    assert_eq!(none, (Code::FAILED_PRECONDITION, "container c1: its memory is not counted".into()));
    host.signal("c1", "", libc::SIGKILL, false).await.unwrap();
    assert_eq!(host.wait("c1", "").await.unwrap().oom_kills, 0);
    let ended = failure(host.update("c1", &json!({})).await);
    assert_eq!(ended, (Code::FAILED_PRECONDITION, "container c1 is not running".into()));
    host.delete("c1", "").await.unwrap();
}

#[tokio::test]
async fn limits_change_and_numbers_are_there_until_the_container_is_deleted() {
    let test = "limits_change_and_numbers_are_there_until_the_container_is_deleted";
    let Some(host) = host(test).await else { return };
    if !host.cgroups {
        skipped(test, "this machine's cgroup controllers are not version 2's");
        return;
    }
    let mut spec = host.spec(process(&["sleep", "1000"]));
    spec["linux"]["resources"] = json!({ "memory": { "limit": 64 << 20 }, "pids": { "limit": 50 } });
    host.create("c1", &spec).await.unwrap();
    host.start("c1", "").await.unwrap();
    let stats = host.stats("c1").await.unwrap();
    assert_eq!((stats.pids.current, stats.pids.limit), (1, 50));
    assert_eq!(stats.memory.usage_limit, 64 << 20);
    assert!(stats.memory.usage > 0 && stats.cpu.usage_usec > 0, "{stats:?}");
    let limits =
        json!({ "memory": { "limit": 32 << 20 }, "pids": { "limit": 20 }, "devices": [{ "allow": false }] });
    host.update("c1", &limits).await.unwrap();
    host.update("c1", &json!({ "memory": { "limit": 0 } })).await.unwrap();
    let stats = host.stats("c1").await.unwrap();
    assert_eq!((stats.memory.usage_limit, stats.pids.limit), (32 << 20, 20));
    let small = json!({ "memory": { "limit": 1, "checkBeforeUpdate": true } });
    let (code, line) = failure(host.update("c1", &small).await);
    assert_eq!(code, Code::FAILED_PRECONDITION, "{line}");
    let (code, line) = failure(host.update("c1", &json!({ "unified": { "memory.max": "much" } })).await);
    assert_eq!((code, line.contains('\n')), (Code::INVALID_ARGUMENT, false), "{line}");
    let (code, _) = failure(host.update("c1", &json!([])).await);
    assert_eq!(code, Code::INVALID_ARGUMENT);
    host.signal("c1", "", libc::SIGKILL, false).await.unwrap();
    assert_eq!(host.wait("c1", "").await.unwrap().oom_kills, 0);
    let stats = host.stats("c1").await.unwrap();
    assert_eq!((stats.pids.current, stats.memory_events.oom_kill), (0, 0));
    assert!(stats.memory_events.is_some() && stats.cpu.usage_usec > 0, "{stats:?}");
    assert_eq!(failure(host.update("c1", &limits).await).0, Code::FAILED_PRECONDITION);
    let (deleted, waited) = tokio::join!(host.delete("c1", ""), host.wait_oom("c1", 0));
    deleted.unwrap();
    assert_eq!(failure(waited).0, Code::NOT_FOUND);
    assert_eq!(failure(host.stats("c1").await).0, Code::NOT_FOUND);
    host.nothing_is_left();
}

#[tokio::test]
async fn a_container_that_takes_more_than_its_limit_is_killed_and_that_is_told() {
    let test = "a_container_that_takes_more_than_its_limit_is_killed_and_that_is_told";
    let Some(host) = host(test).await else { return };
    if !host.cgroups {
        skipped(test, "this machine's cgroup controllers are not version 2's");
        return;
    }
    let mut spec = host.spec(process(&["sh", "-c", "x=12345678; while :; do x=$x$x; done"]));
    spec["linux"]["resources"] = json!({ "memory": { "limit": 32 << 20, "swap": 32 << 20 } });
    host.create("c1", &spec).await.unwrap();
    let waits = host.wait_oom("c1", 0);
    let run = async {
        host.start("c1", "").await.unwrap();
        host.wait("c1", "").await.unwrap()
    };
    let (killed, exit) = tokio::join!(waits, run);
    assert_eq!((killed.unwrap(), exit.exit_status, exit.oom_kills), (1, 137, 1));
    assert_eq!(host.stats("c1").await.unwrap().memory_events.oom_kill, 1);
    let no_more = tokio::time::timeout(Duration::from_millis(100), host.wait_oom("c1", 1)).await;
    assert!(no_more.is_err(), "{no_more:?}");
    assert_eq!(host.wait_oom("c1", 0).await.unwrap(), 1, "the count is there for who asks late");
    host.delete("c1", "").await.unwrap();
    host.nothing_is_left();
}
