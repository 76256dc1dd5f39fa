//! What people do with `docker`, on a dockerd whose runtime lazaret is: as under runc, where a VM can mean it.

use std::fs;

use lazaret_integration::dockerd::Dockerd;
use lazaret_integration::shared::Shared;
use lazaret_integration::{alone, beside_few, is_lazaret, leftovers};
use nix::sys::signal::Signal;

static DOCKERD: Shared<Dockerd> = Shared::new(module_path!(), Dockerd::start);

/// Every flag of `docker run` that changes what a container sees, at once.
const FLAGS: &str = r#"
set -e
echo file-content >file; printf 'FROM_FILE=yes\nTWO=2\n' >env; mkdir -p dir; echo in-dir >dir/x
cat >probe <<'END'
section() { echo "== $1"; }
section user; id -u; id -g; id -G
section directory; pwd
section environment; env | grep -E '^(FROM_FILE|TWO|ONE|HOSTNAME|PATH)=' | sort
section hostname; hostname; cat /etc/hostname
section hosts; grep -E 'added|chosen' /etc/hosts | sed 's/172[0-9.]*/OWN/'
section names; grep -vE '^#|^$' /etc/resolv.conf
section limits; grep -E 'open files|core' /proc/self/limits
section capabilities; grep ^Cap /proc/self/status
section privileges; grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status
section shm; df -k /dev/shm | tail -1 | awk '{ print $2 }'
section sysctl; cat /proc/sys/net/ipv4/ip_unprivileged_port_start
section root; touch /x 2>&1
section tmpfs; echo a >/scratch/a && cat /scratch/a; grep ' /scratch ' /proc/mounts | cut -d' ' -f3
section binds; cat /the/file /dir/x; touch /dir/y 2>&1; rm /the/file 2>&1
section volumes; ls -d /anonymous; cat /named/n
section init; tr '\0' ' ' </proc/1/cmdline | cut -c1-17
section devices; ls /dev
section resources; cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max /sys/fs/cgroup/cpu.max
END
docker volume create named$N >/dev/null
docker run --rm --runtime $RUNTIME -v named$N:/named busybox sh -c 'echo kept >/named/n; chmod 777 /named'
docker run --rm --runtime $RUNTIME --user 1000:2000 --group-add 3000 --workdir /work --env-file env -e ONE=1 --hostname chosen \
    --add-host added:10.9.8.7 --dns 9.9.9.9 --dns-search example.org --ulimit nofile=123:456 --ulimit core=0 \
    --cap-drop ALL --cap-add NET_BIND_SERVICE --security-opt no-new-privileges --shm-size 5m \
    --sysctl net.ipv4.ip_unprivileged_port_start=77 --read-only --tmpfs /scratch:size=1m,mode=1777 --tmpfs /work \
    -v $PWD/file:/the/file:ro --mount type=bind,src=$PWD/dir,dst=/dir,readonly -v /anonymous \
    --mount type=volume,src=named$N,dst=/named -v $PWD/probe:/probe:ro --init --memory 128m --cpus 0.9 --pids-limit 77 \
    --label a=b --stop-signal INT --log-driver json-file busybox sh /probe 2>/dev/null
docker volume rm named$N >/dev/null
docker run --rm --runtime $RUNTIME --security-opt seccomp=unconfined --log-driver local busybox grep ^Seccomp: /proc/self/status
docker run -t --rm --runtime $RUNTIME busybox sh -c 'test -t 0 && test -t 1 && echo terminal'
echo typed | docker run -i --rm --runtime $RUNTIME busybox cat
"#;

#[test]
fn every_flag_of_run_means_what_it_means_under_runc() {
    let _host = beside_few();
    let found = DOCKERD.sandbox().compare(FLAGS);
    for part in [
        "10.9.8.7\tadded",
        "in-dir\n",
        "== volumes\n/anonymous\nkept\n",
        "== shm\n5120\n",
        "134217728\n77\n90000 100000",
        "typed\n",
    ] {
        assert!(found.contains(part), "{part:?} in {found}");
    }
}

/// From run to removal, by every command that looks at a container or changes it.
const LIFE: &str = r#"
name=life$N
code() { "$@"; echo "-> $?"; }
code docker run -d --runtime $RUNTIME --name $name --label x=y --stop-signal USR1 busybox sh -c '
    trap "echo told; exit 5" USR1; echo up; echo problem >&2; while :; do sleep 0.2; done' | tail -n 1
until docker logs $name | grep -q up; do sleep 0.2; done
code docker exec $name sh -c 'echo in; echo err >&2; exit 7' 2>err; cat err
code docker exec -e A=b -w /tmp -u 1 $name sh -c 'echo $A; pwd; id -u'
docker exec $name no-such-command >/dev/null 2>&1; echo "-> $?"
docker logs $name 2>&1 | sort
timeout 3 docker logs -f $name 2>/dev/null; echo "-> $?"
[ "$(docker top $name | wc -l)" -ge 2 ] && echo top
docker stats --no-stream --format '{{.Name}} {{.PIDs}}' $name | sed "s/$N/N/; s/ [1-9][0-9]*$/ some/"
docker pause $name | sed "s/$N/N/"
docker inspect -f '{{.State.Status}} {{.State.Paused}}' $name
code docker exec $name true 2>/dev/null
docker unpause $name | sed "s/$N/N/"
docker exec $name true
docker inspect -f '{{.State.Status}} {{.State.Paused}}' $name
docker update --memory 200m --memory-swap 200m --cpus 0.7 --pids-limit 50 $name >/dev/null 2>&1
docker exec $name cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max /sys/fs/cgroup/pids.max
echo copied >into; docker cp -q into $name:/into; docker exec $name cat /into
docker exec $name sh -c 'echo made >/made'; docker cp -q $name:/made made; cat made
docker diff $name | grep -vE ' (/var|/var/run|/var/run/docker.sock|/run|/run/docker.sock)$' | sort
docker rename $name other$N; name=other$N
code docker stop -t 60 $name | sed "s/$N/N/"
docker inspect -f '{{.State.ExitCode}} {{.State.OOMKilled}} {{.State.Status}}' $name
docker logs $name 2>/dev/null
docker start $name >/dev/null; docker restart -t 60 $name >/dev/null
docker inspect -f '{{.State.Running}}' $name
docker kill -s KILL $name >/dev/null; docker wait $name
docker commit $name committed$N >/dev/null; docker run --rm --runtime $RUNTIME committed$N cat /made
docker export $name | tar -t | grep -x made
code docker rm $name >/dev/null
docker rmi -f committed$N >/dev/null
code docker run --rm --runtime $RUNTIME busybox sh -c 'exit 42'
code docker run --rm --runtime $RUNTIME busybox sh -c 'kill -TERM $$'
code docker run --rm --runtime $RUNTIME busybox no-such-command 2>/dev/null
docker run -d --runtime $RUNTIME --name $name busybox sleep 1000 >/dev/null
code docker rm -f $name >/dev/null
docker run -d --runtime $RUNTIME --name $name --restart on-failure:2 busybox sh -c 'echo once; exit 3' >/dev/null
until [ "$(docker inspect -f '{{.State.Status}} {{.RestartCount}}' $name)" = 'exited 2' ]; do sleep 0.5; done
docker events --since 60m --until $(($(date +%s) + 5)) --filter container=$name --filter event=die --filter event=start --format '{{.Action}}' | tail -n 2
docker logs $name; docker rm $name >/dev/null
docker run -d --runtime $RUNTIME --name $name --health-cmd 'test -e /well' --health-interval 1s --health-retries 2 busybox sleep 1000 >/dev/null
until docker inspect -f '{{.State.Health.Status}}' $name | grep -x unhealthy; do sleep 0.5; done
docker exec $name touch /well
until docker inspect -f '{{.State.Health.Status}}' $name | grep -x healthy; do sleep 0.5; done
docker rm -f $name >/dev/null
"#;

#[test]
fn a_container_is_run_looked_at_changed_and_ended_as_under_runc() {
    let _host = beside_few();
    let found = DOCKERD.sandbox().compare(LIFE);
    for part in [
        "paused true",
        "209715200\n70000 100000\n50\n",
        "made\n",
        "5 false exited",
        "told\n",
        "137\n",
        "start\ndie\nonce\nonce\nonce\n",
        "unhealthy\nhealthy\n",
    ] {
        assert!(found.contains(part), "{part:?} in {found}");
    }
}

/// Networks of every kind, with names, published ports, and interfaces that come and go.
const NETWORKS: &str = r#"
docker network create --subnet 10.7$N.0.0/24 user$N >/dev/null
docker network create --internal --subnet 10.8$N.0.0/24 inner$N >/dev/null
docker network create --ipv6 --subnet fd00:7$N::/64 --subnet 10.9$N.0.0/24 six$N >/dev/null
own() { sed "s/10\.\([789]\)$N/10.\1N/g; s/fd00:7$N/fd00:7N/g; s/172\.17\.0\.[2-9]/172.17.0.OWN/g"; }
addresses='ip -o -4 addr show | tr -s " " | cut -d" " -f2,4'
docker run -d --runtime $RUNTIME --name web$N --network user$N --network-alias www -p 808$N:80 -p 535$N:53/udp busybox sh -c '
    mkdir /www; echo page >/www/index.html; httpd -f -h /www' >/dev/null
echo "== a network of the user's"
docker run --rm --runtime $RUNTIME --network user$N busybox sh -c "
    until wget -qO- http://web$N/; do sleep 0.2; done; wget -qO- http://www/; $addresses; ip route; nslookup web$N >/dev/null && echo known
    nslookup no.such.name >/dev/null || echo unknown" 2>/dev/null | own
echo '== published ports'
for host in 127.0.0.1 '[::1]' "$(ip -o -4 addr show dev eth0 | tr -s ' /' '  ' | cut -d' ' -f4)"; do busybox wget -qO- http://$host:808$N/; done
docker port web$N | sed "s/$N\$/N/" | sort
echo '== no network'
docker run --rm --runtime $RUNTIME --network none busybox sh -c 'ls /sys/class/net; ip route'
echo '== the default bridge'
docker run --rm --runtime $RUNTIME busybox sh -c "$addresses; ip route; ping -c 1 172.17.0.1 | grep received" | own
echo '== an internal network'
docker run --rm --runtime $RUNTIME --network inner$N busybox sh -c 'ip route; ping -c 1 -W 1 10.0.2.15 2>&1 | grep received || echo unreachable' | own
echo '== IPv6'
docker run --rm --runtime $RUNTIME --network six$N busybox sh -c "
    ip -o -6 addr show dev eth0 scope global | tr -s ' ' | cut -d' ' -f4; ping -6 -c 1 fd00:7$N::1 | grep received" | own
echo '== connect and disconnect'
docker network connect inner$N web$N
docker exec web$N sh -c "until ip addr show dev eth1 2>/dev/null | grep -q 'inet '; do sleep 0.2; done; $addresses" | own
docker run --rm --runtime $RUNTIME --network inner$N busybox wget -qO- http://web$N/
docker exec web$N cat /etc/hosts | grep "10\.[78]$N\." | cut -f1 | own
docker network disconnect inner$N web$N
docker exec web$N sh -c "while ip link show dev eth1 >/dev/null 2>&1; do sleep 0.2; done; $addresses" | own
docker rm -f web$N >/dev/null
docker network rm user$N inner$N six$N >/dev/null
"#;

#[test]
fn networks_of_every_kind_are_as_under_runc() {
    let _host = beside_few();
    let found = DOCKERD.sandbox().compare(NETWORKS);
    for part in [
        "page\npage\nlo 127.0.0.1/8\neth0 10.7N.0.3/24",
        "known\nunknown\n",
        "== published ports\npage\npage\npage\n",
        "== no network\nlo\n",
        "1 packets received",
        "eth1 10.8N.0.2/24\npage\n",
    ] {
        assert!(found.contains(part), "{part:?} in {found}");
    }
}

#[test]
fn what_a_vm_cannot_have_is_refused_in_one_line() {
    if !is_lazaret() {
        return;
    }
    let _host = beside_few();
    let dockerd = DOCKERD.sandbox();
    dockerd
        .sh("docker run -d --runtime $RUNTIME --name neighbour --ipc shareable busybox sleep 1000")
        .success();
    for (flags, expected) in [
        ("--pid host", "the host's pid namespace"),
        ("--ipc host", "the host's ipc namespace"),
        ("--pid container:neighbour", "another container's pid namespace"),
        ("--ipc container:neighbour", "another container's ipc namespace"),
        ("--network container:neighbour", "wired to another sandbox"),
        ("--device /dev/kvm", "/dev/kvm"),
    ] {
        let run =
            dockerd.sh(&format!("docker run --rm --runtime $RUNTIME --name refused {flags} busybox true"));
        assert_ne!(run.code, 0, "{flags}: {run}");
        assert!(run.err().contains(expected), "{flags}: {run}");
        let left = dockerd.sh("docker ps --all --quiet --filter name=refused").success().out();
        assert_eq!(left, "", "{flags}");
    }
    dockerd.sh("docker rm -f neighbour").success();
}

#[test]
fn a_privileged_container_has_all_of_its_vm_and_nothing_of_the_host() {
    if !is_lazaret() {
        return;
    }
    let _host = beside_few();
    let dockerd = DOCKERD.sandbox();
    let script = r#"docker run --rm --runtime sandboxed --privileged busybox sh -c '
        grep ^CapEff: /proc/self/status; mkdir /m; mount -t tmpfs none /m && echo mounted; uname -r; ls -d /dev/sda* /dev/ttyS1 2>/dev/null'"#;
    let run = dockerd.sh(script);
    let out = run.out();
    assert!(out.contains("000001ffffffffff\nmounted\n"), "{run}");
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").expect("/proc is mounted");
    assert!(!out.contains(kernel.trim()) && !out.contains("/dev/ttyS1"), "{run}");
}

#[test]
fn a_paused_container_uses_no_processor_and_its_clock_is_right_afterwards() {
    if !is_lazaret() {
        return;
    }
    let _host = beside_few();
    let script = r#"
        id=$(docker run -d --runtime $RUNTIME --name paused busybox sh -c 'while :; do :; done')
        docker pause paused >/dev/null
        usage() { grep ^usage_usec /sys/fs/cgroup/docker/$id/vm/cpu.stat; }
        before=$(usage); sleep 5; [ "$before" = "$(usage)" ] && echo still
        docker stats --no-stream --format '{{.PIDs}}' paused
        docker unpause paused >/dev/null
        apart=$(($(docker exec paused date +%s) - $(date +%s)))
        [ $apart -ge -15 ] && [ $apart -le 1 ] && echo right
        docker pause paused >/dev/null
        docker kill paused >/dev/null; docker wait paused; docker rm paused"#;
    let out = DOCKERD.sandbox().sh(script).success().out();
    assert_eq!(out, "still\n1\nright\n137\npaused\n");
}

/// A file for `docker compose`: a database, a queue that waits for it to be well, workers and a web server that wait for the queue.
const COMPOSE: &str = r#"
name: shop
x-service: &service { image: busybox, runtime: sandboxed, stop_grace_period: 1s }
services:
  database:
    <<: *service
    command: sh -c 'until [ -e /data/ready ]; do date >/data/ready; done; httpd -f -p 5432 -h /data'
    volumes: [rows:/data]
    healthcheck: { test: wget -qO- http://localhost:5432/ready, interval: 2s, timeout: 20s, retries: 60 }
  queue:
    <<: *service
    command: sh -c 'mkdir /q; wget -qO /q/job http://database:5432/ready && httpd -f -p 6379 -h /q'
    depends_on: { database: { condition: service_healthy } }
    healthcheck: { test: wget -qO- http://localhost:6379/job, interval: 2s, timeout: 20s, retries: 60 }
  worker:
    <<: *service
    command: sh -c 'wget -qO- http://queue:6379/job && echo worked; sleep 1000'
    depends_on: { queue: { condition: service_healthy } }
  web:
    <<: *service
    command: sh -c 'mkdir /w; wget -qO /w/index.html http://queue:6379/job; httpd -f -p 80 -h /w'
    ports: ["8090:80"]
    depends_on: { queue: { condition: service_healthy } }
volumes: { rows: {} }
"#;

#[test]
fn services_of_a_compose_file_wait_for_each_other_scale_and_go() {
    let _host = beside_few();
    let dockerd = DOCKERD.sandbox();
    fs::write(dockerd.folder().join("compose.yml"), COMPOSE).expect("a file for compose");
    let compose = format!(
        "compose='docker compose --ansi never --progress quiet -f {}/compose.yml'\n",
        dockerd.folder().display()
    );
    let script = compose
        + r#"
        $compose up -d --scale worker=3 >&2 || { $compose logs >&2; exit 1; }
        until [ "$($compose logs worker | grep -c worked)" = 3 ]; do sleep 1; done
        until busybox wget -qO page http://127.0.0.1:8090/; do sleep 1; done; wc -l <page
        $compose ps --services --status running | sort | tr '\n' ' '
        $compose ps --quiet | wc -l
        [ $RUNTIME = io.containerd.runc.v2 ] || (cd /run/lazaret/moby && ls -d $($compose ps --quiet --no-trunc) | wc -l)
        $compose down -v >&2
        for kind in container volume network; do docker $kind ls --quiet --filter label=com.docker.compose.project=shop; done"#;
    let out = dockerd.sh(&script).success().out();
    let sandboxes = if is_lazaret() { "6\n" } else { "" };
    assert_eq!(out, format!("1\ndatabase queue web worker 6\n{sandboxes}"));
}

#[test]
fn oom_kills_are_told_whatever_the_limit() {
    let _host = beside_few();
    let script = r#"
        for limit in 16m 32m 64m 128m 256m 1g; do
            docker run --runtime $RUNTIME --name oom --memory $limit busybox sh -c 'x=12345678; while :; do x=$x$x; done' >/dev/null 2>&1
            echo "$limit $? $(docker inspect -f '{{.State.ExitCode}} {{.State.OOMKilled}}' oom)"
            docker rm oom >/dev/null
        done
        docker run --rm --runtime $RUNTIME --pids-limit 30 busybox sh -c 'i=0; while [ $i -lt 60 ]; do sleep 30 & i=$((i + 1)); done' >/dev/null 2>&1
        echo "forks $?""#;
    let out = DOCKERD.sandbox().sh(script).success().out();
    let killed: String =
        ["16m", "32m", "64m", "128m", "256m", "1g"].map(|limit| format!("{limit} 137 137 true\n")).concat();
    assert!(out.starts_with(&killed), "{out}");
    assert!(out.ends_with("forks 2\n"), "{out}");
}

#[test]
fn containers_outlive_their_dockerd_and_are_found_again() {
    let _host = alone();
    let dockerd = DOCKERD.sandbox();
    let start = r#"
        for i in 1 2 3 4 5; do
            docker run -d --runtime $RUNTIME --name c$i busybox sh -c 'echo up; trap "exit 4" TERM; while :; do sleep 0.5; done' >/dev/null
        done
        docker ps --quiet | wc -l"#;
    assert_eq!(dockerd.sh(start).success().out(), "5\n");
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        dockerd.stop(signal);
        dockerd.resume();
        let check = "for i in 1 2 3 4 5; do docker exec c$i echo alive $i; done; docker logs c3";
        let alive = "alive 1\nalive 2\nalive 3\nalive 4\nalive 5\nup\n";
        assert_eq!(dockerd.sh(check).success().out(), alive, "after {signal}");
    }
    let ends = "docker stop -t 60 c1 >/dev/null; docker wait c1; docker kill c2 >/dev/null; docker wait c2
        docker rm --force c1 c2 c3 c4 c5 >/dev/null";
    assert_eq!(dockerd.sh(ends).success().out(), "4\n137\n");
}

#[test]
fn runs_one_after_another_leave_nothing() {
    let _host = alone();
    let script = "for i in $(seq 10); do docker run --rm --runtime $RUNTIME busybox echo $i; done";
    leave_nothing(script, "1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n");
}

#[test]
#[ignore = "once in three runs one of the twenty said nothing; why is not known yet"]
fn runs_at_once_leave_nothing() {
    let _host = alone();
    let script = "for i in $(seq 20); do docker run --rm --runtime $RUNTIME busybox echo at once & done | grep -c 'at once'
        wait";
    leave_nothing(script, "20\n");
}

/// Runs a script that is to say `said`, and looks for what is left of it on the host.
#[track_caller]
fn leave_nothing(script: &str, said: &str) {
    let dockerd = DOCKERD.sandbox();
    dockerd.sh("docker run --rm --runtime $RUNTIME busybox true").success();
    let before = leftovers::Snapshot::take();
    let run = dockerd.sh(script);
    assert_eq!(run.out(), said, "{run}");
    before.assert_nothing_new();
}
