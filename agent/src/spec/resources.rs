//! `linux.resources`: limits that count in the guest stay; those that speak of the host's processors, disks and cgroup
//! v1 files go, since crun would fail on them. The host's own cgroup of the sandbox holds what concerns the host.

use super::{Guest, Object};
use serde_json::Value;

/// Keys of `linux.resources` that mean nothing in any guest, with the reason.
const NEVER: [(&str, &str); 2] =
    [("network", "network classes are cgroup v1's"), ("rdma", "the guest has no RDMA devices")];

/// The same within `cpu` and `memory`.
const NEVER_IN: [(&str, &str, &str); 9] = [
    ("cpu", "cpus", "they number the host's processors"),
    ("cpu", "mems", "they number the host's memory nodes"),
    ("cpu", "realtimeRuntime", "cgroup v2 has no real-time budget"),
    ("cpu", "realtimePeriod", "cgroup v2 has no real-time budget"),
    ("memory", "kernel", "cgroup v2 does not count it apart"),
    ("memory", "kernelTCP", "cgroup v2 does not count it apart"),
    ("memory", "swappiness", "cgroup v2 has none"),
    ("memory", "disableOOMKiller", "cgroup v2 cannot"),
    ("memory", "useHierarchy", "cgroup v2 always does"),
];

/// `linux.resources` and the controller they need.
const CONTROLLERS: [(&str, &str); 5] = [
    ("cpu", "cpu"),
    ("memory", "memory"),
    ("pids", "pids"),
    ("hugepageLimits", "hugetlb"),
    ("blockIO", "io"),
];

/// Whether the container may use every device there is.
pub(super) fn allow_every_device(resources: &Value) -> bool {
    let any = |rule: &Value, key: &str| rule[key].as_i64().is_none_or(|number| number < 0);
    let rules = resources["devices"].as_array();
    rules.into_iter().flatten().any(|rule| {
        let kind = rule["type"].as_str().unwrap_or("a");
        rule["allow"] == true && ["", "a"].contains(&kind) && any(rule, "major") && any(rule, "minor")
    })
}

/// What was asked for and goes is named in `dropped`.
pub(super) fn adapt(resources: &mut Object, guest: &Guest, dropped: &mut Vec<String>) {
    for (key, why) in NEVER {
        drop_key(resources, "", key, why, dropped);
    }
    for (group, key, why) in NEVER_IN {
        if let Some(group_object) = resources.get_mut(group).and_then(Value::as_object_mut) {
            drop_key(group_object, group, key, why, dropped);
        }
    }
    for (key, controller) in CONTROLLERS {
        if !guest.has_controller(controller) {
            drop_key(resources, "", key, "the guest's kernel has no such controller", dropped);
        }
    }
    if let Some(memory) = resources.get_mut("memory").and_then(Value::as_object_mut).filter(|_| !guest.swap) {
        drop_key(memory, "memory", "swap", "the guest has no swap", dropped);
    }
    if let Some(block) = resources.get_mut("blockIO").and_then(Value::as_object_mut) {
        let of_devices: Vec<String> = block.keys().filter(|key| key.ends_with("Device")).cloned().collect();
        for key in of_devices {
            drop_key(block, "blockIO", &key, "it names the host's disks", dropped);
        }
        drop_key(block, "blockIO", "leafWeight", "cgroup v2 has none", dropped);
    }
    if let Some(unified) = resources.get_mut("unified").and_then(Value::as_object_mut) {
        let hosts: Vec<String> = unified.keys().filter(|key| key.starts_with("cpuset.")).cloned().collect();
        for key in hosts {
            drop_key(unified, "unified", &key, "it speaks of the host's processors", dropped);
        }
    }
}

/// Removes a key. The removal of a value that asks for nothing is not reported.
fn drop_key(object: &mut Object, group: &str, key: &str, why: &str, dropped: &mut Vec<String>) {
    let Some(value) = object.remove(key) else { return };
    let says_nothing = match &value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => matches!(number.as_i64(), Some(0 | -1)),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.is_empty(),
        Value::Bool(true) => false,
    };
    if !says_nothing {
        let dot = if group.is_empty() { "" } else { "." };
        dropped.push(format!("resources.{group}{dot}{key} ({why})"));
    }
}
