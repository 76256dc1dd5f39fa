//! What people do with Docker, done in a sandbox: no network, no privilege, Debian's docker CLI.

use lazaret_integration::docker::{client, load_busybox, sh};
use lazaret_integration::{alone, is_lazaret};

#[test]
fn images_are_built_and_services_find_each_other_by_name() {
    if !is_lazaret() {
        return;
    }
    // Beside other guests, an emulated one is too slow for the limits that dockerd has within.
    let _host = alone();
    let client = client("docker-build");
    client.detach(&["sleep", "1000"]);
    load_busybox(&client);
    let script = r#"
        mkdir /app && cd /app && cat >Dockerfile <<'END'
FROM busybox AS build
RUN echo built on $(uname -s) >/out
FROM busybox
COPY --from=build /out /out
CMD cat /out
END
        for buildkit in 1 0; do
            DOCKER_BUILDKIT=$buildkit docker build --quiet --no-cache --tag app . >/dev/null 2>log || { cat log >&2; exit 1; }
            docker run --rm app
            docker image rm --force app >/dev/null
        done"#;
    assert_eq!(sh(&client, script).success().out(), "built on Linux\nbuilt on Linux\n");

    let script = r#"
        mkdir /services && cd /services && cat >compose.yaml <<'END'
services:
  web:
    image: busybox
    command: sh -c 'mkdir /www && echo from web >/www/index.html && exec httpd -f -h /www'
    stop_grace_period: 0s
  client:
    image: busybox
    depends_on: [web]
    command: sh -c 'until wget -qO- http://web/; do sleep 1; done'
END
        docker compose run --rm --quiet-pull client 2>log || { cat log >&2; exit 1; }
        docker compose ps --services
        docker compose down 2>log || { cat log >&2; exit 1; }
        docker ps --all --quiet; docker network ls --filter type=custom --quiet"#;
    assert_eq!(sh(&client, script).success().out(), "from web\nweb\n");

    let script = r#"
        docker network create app >/dev/null
        docker run --detach --network app --name server busybox \
            sh -c 'mkdir /www && echo from server >/www/index.html && exec httpd -f -h /www' >/dev/null
        docker run --rm --network app busybox sh -c 'until wget -qO- http://server/; do :; done'
        docker run --rm busybox wget -qO- -T 5 http://server/ 2>&1 | grep -o 'bad address'"#;
    assert_eq!(sh(&client, script).success().out(), "from server\nbad address\n");
}

#[test]
fn containers_are_looked_at_limited_restarted_and_killed() {
    if !is_lazaret() {
        return;
    }
    let _host = alone();
    let client = client("docker-life");
    client.detach(&["sleep", "1000"]);
    load_busybox(&client);
    let script = r#"
        docker run --detach --name one --label x=y busybox sh -c 'echo out; echo err >&2; exec sleep 1000' >/dev/null
        docker exec one sh -c 'echo in exec; exit 3' || echo exec $?
        echo piped | docker exec -i one cat
        until [ "$(docker logs one 2>&1 | sort)" = "$(printf 'err\nout')" ]; do sleep 1; done; echo logs
        docker stats --no-stream --format '{{.Name}} {{.PIDs}}' one
        docker top one -o pid,args | grep -o 'sleep 1000'
        docker kill one; docker wait one; docker rm one"#;
    let said = "in exec\nexec 3\npiped\nlogs\none 1\nsleep 1000\none\n137\none\n";
    assert_eq!(sh(&client, script).success().out(), said);

    let script = r#"
        docker run --detach --name try --restart on-failure:2 busybox sh -c 'echo try; exit 1' >/dev/null
        until [ "$(docker inspect --format '{{.RestartCount}} {{.State.Status}}' try)" = "2 exited" ]; do sleep 1; done
        docker logs try
        docker run --rm --volume data:/d busybox sh -c 'echo kept >/d/file'
        docker run --rm --volume data:/d busybox cat /d/file
        docker run --name big --memory 16m busybox tail /dev/zero || echo big $?
        until [ "$(docker inspect --format '{{.State.OOMKilled}}' big)" = true ]; do sleep 1; done
        docker run --rm --cpus 0.5 --pids-limit 20 busybox sh -c 'cat /sys/fs/cgroup/pids.max'"#;
    assert_eq!(sh(&client, script).success().out(), "try\ntry\ntry\nkept\nbig 137\n20\n");

    let script = r#"
        seq 20 | xargs -P 4 -I {} docker run --detach --name many-{} busybox sleep 1000 >/dev/null
        docker ps --quiet --filter name=many- | wc -l
        docker exec many-20 hostname | wc -l
        docker rm --force $(docker ps --quiet --all) >/dev/null
        docker ps --all --quiet"#;
    assert_eq!(sh(&client, script).success().out(), "20\n1\n");
}
