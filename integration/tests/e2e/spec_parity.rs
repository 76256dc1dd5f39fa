//! One spec with a bit of everything, run under runc and under lazaret, must look the same from inside.
//!
//! The probe is a shell script that prints sections; a test compares one section, and says what it must contain, so that
//! two empty answers do not count as equal.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::sync::OnceLock;

use lazaret_integration::container::Container;
use lazaret_integration::spec::Spec;
use lazaret_integration::{RUNC, beside_others, runtime};
use serde_json::json;

const PROBE: &str = r#"
section() { echo "== $1"; }
try() { "$@" >/dev/null 2>/tmp/error && echo "$1: done" || echo "$1: $(cat /tmp/error)"; }
section arguments; for argument; do echo "[$argument]"; done
section environment; env | sort
section directory; pwd
section hostname; hostname; cat /proc/sys/kernel/hostname
section user; id -u; id -g; grep -E '^(Uid|Gid|Groups):' /proc/self/status; umask; echo >/scratch/new; stat -c '%a %u:%g' /scratch/new
section capabilities; grep ^Cap /proc/self/status
section privileges; grep -E '^NoNewPrivs:' /proc/self/status
section seccomp; grep -E '^Seccomp:' /proc/self/status; try mkdir /scratch/folder; try chmod 700 /scratch/new
section limits; grep -E '^Max (open files|processes|core|stack)' /proc/self/limits
section oom; cat /proc/self/oom_score_adj
section root; try touch /in-the-root; grep ' / ' /proc/self/mounts | cut -d' ' -f4 | cut -d, -f1
section tmpfs; stat -c '%a %u:%g %F' /scratch; grep ' /scratch ' /proc/self/mounts | cut -d' ' -f3,4 | tr , '\n' | grep -vE 'relatime|inode|seclabel'; try dd if=/dev/zero of=/scratch/large bs=1k count=2000; ls -l /scratch/large | tr -s ' ' | cut -d' ' -f5
section bind-directory; ls -lan /bound | tail -n +2 | tr -s ' ' | cut -d' ' -f1,3-5,9 | grep -v '\.\.$'; cat /bound/inside/file; try touch /bound/new
section bind-read-only; cat /read-only/inside/file; try touch /read-only/new; try chmod 777 /read-only/inside
section bind-file; cat /etc/one-file; ls -A /etc | sort; echo more >>/etc/one-file; try rm /etc/one-file
section bind-file-read-only; cat /etc/one-file-read-only; (echo more >>/etc/one-file-read-only) 2>&1
section masked; cat /proc/kcore | wc -c; ls /proc/acpi /proc/scsi 2>/dev/null | grep -v : | wc -w; (echo x >/proc/sysrq-trigger) 2>&1; (echo 1 >/proc/sys/vm/swappiness) 2>&1; try touch /sys/new
section devices; for file in /dev/*; do stat -c '%n %F %a %t,%T' $file; done; cat /dev/zero | head -c 5 | wc -c
section terminal; test -t 0 || echo no terminal; ls /dev/pts
section mounts; while read -r source target kind options rest; do case $target in /|/proc/*|/sys/*|/var/run/docker.sock) continue;; esac; echo "$target $(echo $options | tr , '\n' | grep -E '^(ro|rw|nosuid|nodev|noexec)$' | tr '\n' ' ')"; done </proc/self/mounts | sort
section namespaces; echo "$$"; ps | grep -c '[s]leep'; ls -l /proc/self/ns | grep -cE 'pid|ipc|uts|mnt|net'
section sysctl; cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/msgmax
section cgroup; cat /proc/self/cgroup
section network; ls /sys/class/net; cat /proc/net/route | wc -l
"#;

type Sections = BTreeMap<String, String>;

fn probe(runtime: &str) -> Result<Sections, String> {
    let mut spec = Spec::busybox(&["sh", "/probe", "two words", "", "line\nbreak", "$HOME `'\""]);
    fs::write(spec.root("probe"), PROBE).expect("the root can be written");
    for (folder, mode) in [("bound", 0o775), ("shared", 0o755)] {
        let inside = spec.beside(folder).join("inside");
        fs::create_dir_all(&inside).expect("a folder");
        fs::write(inside.join("file"), folder).expect("a file");
        chown(spec.beside(folder), Some(1000), Some(1000)).expect("as root");
        fs::set_permissions(spec.beside(folder), fs::Permissions::from_mode(mode)).expect("as root");
        chown(inside.join("file"), Some(4321), Some(1234)).expect("as root");
    }
    for file in ["one-file", "one-file-read-only", "sibling"] {
        fs::write(spec.beside(file), format!("{file}\n")).expect("a file");
        chown(spec.beside(file), Some(1000), Some(1000)).expect("as root");
    }
    let source = |path: &str| spec.beside(path).display().to_string();
    let binds = [
        (source("bound"), "/bound", "rw"),
        (source("shared"), "/read-only", "ro"),
        (source("one-file"), "/etc/one-file", "rw"),
        (source("one-file-read-only"), "/etc/one-file-read-only", "ro"),
    ];
    for (source, target, mode) in &binds {
        spec.mount("bind", source, target, &["rbind", mode]);
    }
    spec.mount(
        "tmpfs",
        "tmpfs",
        "/scratch",
        &["nosuid", "nodev", "noexec", "size=1m", "mode=1770", "uid=1000", "gid=2000"],
    );
    spec.mount("tmpfs", "tmpfs", "/tmp", &["nosuid"]);

    spec.json["hostname"] = json!("a-name-of-its-own");
    spec.json["root"]["readonly"] = json!(true);
    let capabilities = json!(["CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    let process = &mut spec.json["process"];
    process["user"] = json!({ "uid": 1000, "gid": 1000, "additionalGids": [2000, 65534], "umask": 0o027 });
    process["env"] =
        json!(["PATH=/bin", "PLAIN=value", "SPACES=a b  c", "EQUALS=a=b", "EMPTY=", "QUOTES='\"`$HOME"]);
    process["cwd"] = json!("/var/www");
    process["capabilities"] = json!({
        "bounding": capabilities, "effective": ["CAP_KILL"], "permitted": capabilities,
        "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL"],
    });
    process["noNewPrivileges"] = json!(true);
    process["oomScoreAdj"] = json!(321);
    process["rlimits"] = json!([
        { "type": "RLIMIT_NOFILE", "soft": 100, "hard": 200 },
        { "type": "RLIMIT_NPROC", "soft": 300, "hard": 400 },
        { "type": "RLIMIT_CORE", "soft": 0, "hard": 0 },
        { "type": "RLIMIT_STACK", "soft": 4_194_304, "hard": 8_388_608 },
    ]);
    let namespaces = spec.json["linux"]["namespaces"].as_array_mut().expect("the default has namespaces");
    namespaces.push(json!({ "type": "cgroup" }));
    spec.json["linux"]["sysctl"] =
        json!({ "net.ipv4.ip_unprivileged_port_start": "80", "kernel.msgmax": "4096" });
    spec.json["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95 }],
    });

    let container = Container::new("parity").under(runtime).config(&spec.write());
    let run = container.run(&[]);
    if run.code != 0 {
        return Err(run.to_string());
    }
    let mut sections = Sections::new();
    let out = run.out();
    for section in out.split("== ").skip(1) {
        let (name, text) = section.split_once('\n').unwrap_or((section, ""));
        sections.insert(name.to_owned(), text.to_owned());
    }
    let written = fs::read_to_string(spec.beside("one-file")).expect("it is still there");
    sections.insert(
        "seen from the host".to_owned(),
        format!("{written}{:?}", fs::exists(spec.beside("bound/new"))),
    );
    Ok(sections)
}

/// Compares one section, which must hold each of `expected`.
#[track_caller]
fn same(section: &str, expected: &[&str]) {
    static PROBES: OnceLock<[Result<Sections, String>; 2]> = OnceLock::new();
    let _host = beside_others();
    let [runc, ours] = PROBES.get_or_init(|| [probe(RUNC), probe(&runtime())]);
    let of = |probed: &Result<Sections, String>| match probed {
        Ok(sections) => {
            sections.get(section).cloned().unwrap_or_else(|| panic!("the probe did not come to {section}"))
        }
        Err(error) => panic!("{error}"),
    };
    let (runc, ours) = (of(runc), of(ours));
    for text in expected {
        assert!(runc.contains(text), "{text:?} under runc in: {runc}");
    }
    assert_eq!(ours, runc, "{section}, left {}, right runc", runtime());
}

/// A test for a section, named for what it promises.
macro_rules! sections {
    ($($promise:ident: $section:literal, $expected:expr;)*) => {
        $(#[test] fn $promise() { same($section, &$expected); })*
    };
}

sections! {
    arguments_come_as_they_are: "arguments", ["[two words]\n[]\n[line\nbreak]\n[$HOME `'\"]\n"];
    environment_is_the_specs: "environment", ["EMPTY=\n", "EQUALS=a=b", "SPACES=a b  c", "QUOTES='\"`$HOME"];
    working_directory_is_the_specs: "directory", ["/var/www"];
    hostname_is_the_specs: "hostname", ["a-name-of-its-own\na-name-of-its-own"];
    user_groups_and_umask_are_the_specs: "user", ["1000\n1000\n", "2000 65534", "0027", "640 1000:1000"];
    capabilities_are_the_specs: "capabilities", ["CapEff:\t0000000000000020", "CapAmb:\t0000000000000020"];
    no_new_privileges_is_kept: "privileges", ["NoNewPrivs:\t1"];
    seccomp_profile_is_enforced: "seccomp", ["Seccomp:\t2", "Operation not supported", "chmod: done"];
    resource_limits_are_the_specs: "limits", ["100                  200", "300                  400"];
    oom_score_is_the_specs: "oom", ["321"];
    root_can_be_read_only: "root", ["Read-only file system", "ro"];
    tmpfs_has_its_size_owner_and_options: "tmpfs", ["1770 1000:2000 directory", "noexec", "No space left", "10"];
    directory_is_bound_with_its_owners: "bind-directory", ["inside", "bound", "touch: done"];
    read_only_bind_is_read_only: "bind-read-only", ["shared", "Read-only file system"];
    file_is_bound_without_its_siblings: "bind-file", ["one-file\n", "can't remove"];
    read_only_file_is_read_only: "bind-file-read-only", ["one-file-read-only", "Read-only file system"];
    what_is_written_to_a_bind_is_on_the_host: "seen from the host", ["one-file\nmore\n", "Ok(true)"];
    masked_and_read_only_paths_are: "masked", ["0\n0\n", "Read-only file system"];
    devices_are_the_default_ones: "devices", ["/dev/null character special file 666 1,3", "5\n"];
    without_a_terminal_there_is_none: "terminal", ["no terminal"];
    mounts_have_their_flags: "mounts", ["/proc rw nosuid nodev noexec", "/sys ro nosuid nodev noexec"];
    process_is_the_first_of_its_namespace: "namespaces", ["1\n0\n"];
    sysctls_are_set: "sysctl", ["80\n4096\n"];
    cgroup_is_its_own: "cgroup", ["0::/\n"];
    network_is_loopback_only: "network", ["lo\n1\n"];
}
