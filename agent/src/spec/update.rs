//! Resources that a running container is to get.
//!
//! crun writes what it finds, and knows nothing of what was set before. runc changes what was set before, and containerd and
//! dockerd count on that:
//!
//! | in the resources | for runc, and so here | for crun |
//! |---|---|---|
//! | a limit of 0 | not asked for | `memory.limit`: everything is killed |
//! | `cpu.quota` or `cpu.period` alone | the other stays | a quota of -1 stays undone, the period becomes 100 ms |
//! | `devices` | left alone | set |
//! | `memory.checkBeforeUpdate` | use is looked at | fails without swap; so the agent looks |

use super::{Guest, Object, SpecError, parse, resources, write};
use serde_json::{Value, json};

/// Numbers that ask for nothing when they are 0.
const ZERO_ASKS_FOR_NOTHING: [(&str, &str); 8] = [
    ("memory", "limit"),
    ("memory", "reservation"),
    ("memory", "swap"),
    ("cpu", "shares"),
    ("cpu", "quota"),
    ("cpu", "period"),
    ("pids", "limit"),
    ("blockIO", "weight"),
];

/// Resources, ready for crun.
#[derive(Debug)]
pub(crate) struct UpdateSpec {
    pub(crate) resources: Vec<u8>,
    /// The new limit of memory, in bytes.
    pub(crate) memory_limit: Option<u64>,
    /// The limit is to be refused when the container uses more.
    pub(crate) check_memory: bool,
    /// What was asked for and is not done, for the log.
    pub(crate) dropped: Vec<String>,
}

/// `cpu_max` is the container's `cpu.max` as it is: quota, period.
///
/// # Errors
/// [`SpecError`], all of them the caller's.
pub(crate) fn for_update(json: &[u8], cpu_max: &str, guest: &Guest) -> Result<UpdateSpec, SpecError> {
    const WHAT: &str = "the resources";
    let mut spec: Object = parse(json, WHAT)?;
    let mut dropped = Vec::new();
    resources::adapt(&mut spec, guest, &mut dropped);
    spec.remove("devices");
    for (group, key) in ZERO_ASKS_FOR_NOTHING {
        if let Some(group) = group_of(&mut spec, group)
            && group.get(key).and_then(Value::as_i64) == Some(0)
        {
            group.remove(key);
        }
    }
    let (mut memory_limit, mut check_memory) = (None, false);
    if let Some(memory) = group_of(&mut spec, "memory") {
        check_memory = memory.remove("checkBeforeUpdate").as_ref().and_then(Value::as_bool).unwrap_or(false);
        memory_limit = memory.get("limit").and_then(Value::as_u64);
    }
    if let Some(cpu) = group_of(&mut spec, "cpu") {
        complete(cpu, cpu_max);
    }
    Ok(UpdateSpec { resources: write(&spec, WHAT)?, memory_limit, check_memory, dropped })
}

/// Adds what stays to a quota without a period, or a period without a quota.
fn complete(cpu: &mut Object, cpu_max: &str) {
    let Some((quota, period)) = cpu_max.trim().split_once(' ') else { return };
    let (quota, period) = (quota.parse::<i64>().unwrap_or(-1), period.parse::<u64>());
    match (cpu.contains_key("quota"), cpu.contains_key("period"), period) {
        (true, false, Ok(period)) => _ = cpu.insert("period".into(), json!(period)),
        (false, true, _) => _ = cpu.insert("quota".into(), json!(quota)),
        _ => {}
    }
}

fn group_of<'a>(spec: &'a mut Object, name: &str) -> Option<&'a mut Object> {
    spec.get_mut(name)?.as_object_mut()
}

#[cfg(test)]
#[path = "update_test.rs"]
mod tests;
