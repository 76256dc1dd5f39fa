# shellcheck shell=bash
# What the scripts of the test host share: where things are, booting, reaching and stopping an instance.

host_dir=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
top=$(readlink -f -- "$host_dir/../..")
cache=${XDG_CACHE_HOME:-$HOME/.cache}/lazaret
instances=${XDG_RUNTIME_DIR:-${TMPDIR:-/tmp}}/lazaret-host-$(id -u)

die() {
    echo "test host: $*" >&2
    exit 1
}

# direct_missing: what this machine lacks of what tests take from it, a line each
direct_missing() {
    local command
    for command in containerd ctr runc docker; do command -v $command >/dev/null || echo $command; done
    [ -d /usr/libexec/docker/cli-plugins ] || printf '%s\n' docker-buildx docker-compose
}

# pick_host: on this machine or in the test host? LAZARET_TEST_HOST says, or what this machine can do; then that is told.
pick_host() {
    local vmm=${LAZARET_TARGET_DIR:-$top/target}/x86_64-unknown-linux-gnu/release/lazaret-vmm probe missing=()
    [ -z "${LAZARET_TEST_HOST-}" ] || return 0
    # One line of JSON: {"kvm":"absent|unusable|good","detail":"…"}
    if ! probe=$("$vmm" --probe); then
        echo "/dev/kvm on this machine is of no use ($probe): in the test host instead, which is some 20 times slower"
        return
    fi
    [ "$(id -u)" = 0 ] || missing+=(root)
    [ -e /sys/fs/cgroup/cgroup.controllers ] || missing+=('cgroup v2')
    mapfile -t -O ${#missing[@]} missing < <(direct_missing)
    if [ ${#missing[@]} -gt 0 ]; then
        echo "/dev/kvm is good here, but there is no $(IFS=,; echo "${missing[*]}"): in the test host instead"
    else
        echo "on this machine, with a containerd of its own that leaves nothing behind"
        export LAZARET_TEST_HOST=direct
    fi
}

# alive DIR: is the QEMU of this instance running?
alive() {
    local pid
    pid=$(cat "$1/pid" 2>/dev/null) && grep -qF -- "$1/console.log" "/proc/$pid/cmdline" 2>/dev/null
}

# instance NAME: its folder, or the end
instance() {
    local dir=$instances/$1
    alive "$dir" || die "no instance '$1' is up (start it with integration/host/up --name $1)"
    echo "$dir"
}

# How often a host is booted before its script gives up, and how long one boot may take: an idle machine needs some 10 s.
boots_each=3
boot_seconds=${LAZARET_HOST_BOOT_SECONDS:-180}
# What a kernel says that will not come up: under the emulator a processor's timer can fail to ring.
stall="timer wakeup didn't happen|self-detected stall|detected stalls|blocked for more than|soft lockup|Kernel panic"

# launch_qemu: a part of boot, whose variables it uses. Starts QEMU and sets `answer`: "ready", or why it is not.
launch_qemu() {
    local began=$SECONDS
    for _ in 1 2 3 4 5; do
        rm -f "$dir/ready" "$dir/console.log"
        mkfifo "$dir/ready"
        : >"$dir/console.log"
        # Nobody hands out free ports: take one, and another one if it was taken.
        port=$((20000 + RANDOM % 12000))
        "${launch[@]}" "${qemu[@]}" -netdev "user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:$port-:22" \
            -device virtio-net-pci,netdev=net,romfile= </dev/null >"$dir/ready" 2>"$dir/qemu.log" &
        echo $! >"$dir/pid"
        # One line comes: the guest's, the watcher's of the console, or none within the time; the end of the file is QEMU's end.
        tail -n +1 -s 0.5 -f --pid=$! "$dir/console.log" > >(grep -m1 -oE "$stall" >"$dir/ready") &
        answer=''
        read -r -t "$boot_seconds" answer <"$dir/ready" || answer="no answer after $((SECONDS - began)) s"
        kill $! 2>/dev/null || true
        grep -q 'host forwarding' "$dir/qemu.log" || return 0
    done
}

# boot DIR IMAGE SHARE PERSISTENCE OPTIONS…: boots IMAGE with its files in DIR, and returns when it is ready.
# SHARE: a folder for /mnt/share, or nothing. PERSISTENCE: snapshot (the disk is left as it was) or write.
# OPTIONS are words for guest/init. QEMU goes when the calling script goes, unless host_stays is set.
boot() {
    local dir=$1 image=$2 share=$3 persistence=$4
    shift 4
    mkdir -p "$dir/stage/root"
    install -m755 "$host_dir/guest/init" "$host_dir/guest/dockerd" "$dir/stage/"
    # The folder is the key: whoever may read it is root in the test host.
    chmod 700 "$instances" "$dir"
    rm -f "$dir/key" "$dir/key.pub"
    ssh-keygen -q -t ed25519 -N '' -C lazaret-test-host -f "$dir/key"
    cp "$dir/key" "$dir/key.pub" "$dir/stage/"
    echo "$*" >"$dir/stage/options"

    local drive=(file="$image/disk.img" if=none id=root format=raw cache=unsafe discard=unmap)
    [ "$persistence" = write ] || drive+=(snapshot=on)
    # One processor more than asked for: nothing but the kernel's own work runs on the first (see guest/init).
    # Without erms, fsrm, fsrs and fzrm: a kernel that has them clears and copies pages byte by byte, a step of the emulator each.
    # shellcheck disable=SC2054 # the commas are QEMU's
    local qemu=("$image/qemu/ld-linux-x86-64.so.2" --library-path "$image/qemu" "$image/qemu/qemu-system-x86_64" -L "$image/qemu"
        -nodefaults -no-user-config -display none -no-reboot
        -M q35 -accel "tcg,thread=multi,tb-size=${LAZARET_HOST_TB:-1024}"
        -cpu "${LAZARET_HOST_CPU:-max,+svm,+npt,-erms,-fsrm,-fsrs,-fzrm}"
        -smp "$((${LAZARET_HOST_CPUS:-2} + 1))" -m "${LAZARET_HOST_MEMORY:-6144}"
        -kernel "$image/vmlinux" -initrd "$image/initrd"
        -append "console=ttyS0 quiet panic=-1 oops=panic mitigations=off ${LAZARET_HOST_CMDLINE-}"
        -serial "file:$dir/console.log" -chardev stdio,id=ready,signal=off -serial chardev:ready
        -device virtio-rng-pci
        -drive "$(IFS=,; echo "${drive[*]}")" -device virtio-blk-pci,drive=root
        -fsdev "local,id=build,path=$dir/stage,security_model=none,readonly=on,multidevs=remap"
        -device virtio-9p-pci,fsdev=build,mount_tag=build)
    [ -z "$share" ] || qemu+=(
        -fsdev "local,id=share,path=$(readlink -f -- "$share"),security_model=none,multidevs=remap"
        -device virtio-9p-pci,fsdev=share,mount_tag=share)
    local launch=(setpriv --pdeathsig KILL)
    [ -z "${host_stays-}" ] || launch=(setsid)

    local try port answer=''
    for try in $(seq $boots_each); do
        launch_qemu
        [ "$answer" != ready ] || break
        [ "$try" != $boots_each ] || tail -n 15 "$dir/console.log" "$dir/qemu.log" >&2 || true
        stop_qemu "$dir"
        [ "$try" != $boots_each ] || die "it did not boot, $try times ($answer); above are the last lines of its console and of QEMU"
        echo "test host: boot $try did not come to its end ($answer); booting anew" >&2
    done

    echo "[127.0.0.1]:$port $(cut -d' ' -f1,2 "$dir/key.pub")" >"$dir/known_hosts"
    cat >"$dir/ssh_config" <<-EOF
	Host *
	  HostName 127.0.0.1
	  Port $port
	  User root
	  IdentityFile $dir/key
	  IdentitiesOnly yes
	  UserKnownHostsFile $dir/known_hosts
	  StrictHostKeyChecking yes
	  KexAlgorithms curve25519-sha256
	  Ciphers aes128-gcm@openssh.com
	  ConnectTimeout 60
	  ControlPath $dir/ssh
	  ServerAliveInterval 30
	  ServerAliveCountMax 6
	  EscapeChar none
	  LogLevel ERROR
	EOF
    # One connection is made here and serves every command after it, so that a command starts at once.
    ssh -F "$dir/ssh_config" -o ControlMaster=yes -o ControlPersist=yes -n -f -N host >/dev/null 2>"$dir/ssh.log" ||
        { cat "$dir/ssh.log" >&2; stop "$dir"; die "it booted, but does not let ssh in"; }
}

# stop_qemu DIR: ends the instance's QEMU, if it runs. It is killed: nothing it could still write is wanted.
stop_qemu() {
    local pid
    alive "$1" || return 0
    pid=$(cat "$1/pid")
    kill -KILL "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || tail --pid="$pid" -s 0.1 -f /dev/null
}

# stop DIR: ends the instance; nothing it wrote to its disk is kept
stop() {
    stop_qemu "$1"
    [ ! -S "$1/ssh" ] || ssh -F "$1/ssh_config" -O exit host 2>/dev/null || true
    rm -f "$1/pid" "$1/ready" "$1/key"
}

# run_in DIR COMMAND…: runs it as root in the instance. One word is a shell line; several are a command and its arguments.
run_in() {
    local dir=$1 line status=0 terminal=-T
    shift
    if [ $# -eq 1 ]; then line=$1; else line=$(printf '%q ' "$@"); fi
    if [ $# -eq 0 ]; then line='exec bash -l'; fi
    if [ -t 0 ] && [ -t 1 ]; then terminal=-t; fi
    # With a last line of its own the shell lives to say 128+n for a signal, which ssh could not.
    # In the background, for bash runs a trap during `wait`, but not while a command is in the foreground.
    ssh -F "$dir/ssh_config" $terminal host "$line"$'\n''exit $?' <&0 &
    wait $! || status=$?
    if [ $status = 255 ] && ! alive "$dir"; then
        tail -n 60 "$dir/console.log" >&2
        echo "test host: it went away under the command; above are the last lines of its console" >&2
    fi
    return $status
}

# stage_build DIR: lays this build out in the instance's folder, as `make install` does; the guest sees it at once.
stage_build() {
    local target=${LAZARET_TARGET_DIR:-$top/target}
    local bin=$target/x86_64-unknown-linux-gnu/release guest=$target/guest
    if [ -e "$bin/containerd-shim-lazaret-v2" ] && [ -e "$guest/base.erofs" ]; then
        make -s -C "$top" install DESTDIR="$1/stage/root" bin="$bin" guest="$guest"
        # Twenty guests that boot at once on two emulated processors take their time.
        install -D -m644 /dev/stdin "$1/stage/root/etc/lazaret/config.toml" <<<'boot_timeout_s = 600'
    else
        mkdir -p "$1/stage/root"
        echo "test host: no build in $target (make makes it): this host comes without lazaret" >&2
    fi
}

# debootstrap_tree SUITE TREE LOG: a minimal Debian, from the mirror this machine has it from; on another distribution, debootstrap's own.
debootstrap_tree() {
    local mirror
    # shellcheck disable=SC2016 # the format is apt's to expand
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' 2>/dev/null | head -n1)
    debootstrap --variant=minbase --include=attr --keyring=/usr/share/keyrings/debian-archive-keyring.gpg \
        "$1" "$2" ${mirror:+"$mirror"} >"$3" 2>&1
}
