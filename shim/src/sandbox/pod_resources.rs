//! What a whole pod may use. CRI says it before any of the pod's containers is known: as annotations of the container that holds the
//! pod, whose own limits are those of a program that only waits.

use super::container::spec::Spec;
use super::membership::{Membership, Role};
use crate::error::{Error, Result};
use serde_json::{Map, Value, json};
use std::borrow::Cow;

/// The annotations, and where their values are in `linux.resources`.
const ANNOTATIONS: [(&str, [&str; 2]); 4] = [
    ("io.kubernetes.cri.sandbox-memory", ["memory", "limit"]),
    ("io.kubernetes.cri.sandbox-cpu-quota", ["cpu", "quota"]),
    ("io.kubernetes.cri.sandbox-cpu-period", ["cpu", "period"]),
    ("io.kubernetes.cri.sandbox-cpu-shares", ["cpu", "shares"]),
];

/// What the sandbox that is started for this spec may use, in the form of `linux.resources`: for a pod what the annotations say, for
/// any other what the spec says.
///
/// # Errors
/// [`Error::InvalidArgument`] for an annotation that is no number.
pub(crate) fn of<'a>(spec: &'a Spec, membership: &Membership) -> Result<Cow<'a, Value>> {
    if membership.role(&membership.id) != Role::Holder {
        return Ok(Cow::Borrowed(spec.resources()));
    }
    let mut resources = Map::new();
    for (annotation, [group, name]) in ANNOTATIONS {
        let Some(text) = spec.annotation(annotation) else { continue };
        let number = text.trim().parse::<i64>().map_err(|_| {
            Error::InvalidArgument(format!("annotation {annotation}={text:?}: expected a number"))
        })?;
        // CRI writes 0 for what is not limited.
        if number != 0 {
            resources.entry(group).or_insert_with(|| json!({}))[name] = number.into();
        }
    }
    Ok(Cow::Owned(resources.into()))
}

#[cfg(test)]
#[path = "pod_resources_test.rs"]
mod tests;
