use super::*;
use crate::spec::tests::guest;

fn update(resources: &Value, cpu_max: &str) -> (UpdateSpec, Value) {
    let dir = tempfile::tempdir().unwrap();
    let spec = for_update(resources.to_string().as_bytes(), cpu_max, &guest(&dir)).unwrap();
    let value = serde_json::from_slice(&spec.resources).unwrap();
    (spec, value)
}

#[test]
fn the_filter_is_that_of_a_new_container_and_devices_stay_as_they_are() {
    let resources = json!({
        "devices": [{ "allow": false }],
        "memory": { "limit": 1 << 30, "swap": 1 << 31 },
        "cpu": { "shares": 512, "cpus": "4-7" },
        "unified": { "memory.high": "5" },
    });
    let (spec, value) = update(&resources, "max 100000\n");
    let expected = json!({
        "memory": { "limit": 1 << 30 }, "cpu": { "shares": 512 }, "unified": { "memory.high": "5" },
    });
    assert_eq!(value, expected);
    assert_eq!((spec.memory_limit, spec.check_memory), (Some(1 << 30), false));
    let dropped = spec.dropped.join("\n");
    assert!(dropped.contains("memory.swap ") && dropped.contains("cpu.cpus "), "{dropped}");
}

#[test]
fn a_zero_asks_for_nothing_and_no_limit_is_a_limit() {
    let resources = json!({
        "memory": { "limit": 0, "reservation": 0, "swap": 0 },
        "cpu": { "shares": 0, "quota": 0, "period": 0, "idle": 0 },
        "pids": { "limit": 0 },
        "blockIO": { "weight": 0 },
    });
    let (spec, value) = update(&resources, "20000 50000\n");
    assert_eq!(value, json!({ "memory": {}, "cpu": { "idle": 0 }, "pids": {}, "blockIO": {} }));
    assert_eq!((spec.memory_limit, spec.dropped), (None, Vec::new()));
    let unlimited = json!({ "memory": { "limit": -1 }, "pids": { "limit": -1 } });
    let (spec, value) = update(&unlimited, "max 100000\n");
    assert_eq!((value, spec.memory_limit), (unlimited, None));
}

#[test]
fn a_quota_keeps_its_period_and_a_period_its_quota() {
    let cpu = |asked: Value, now: &str| update(&json!({ "cpu": asked }), now).1["cpu"].clone();
    assert_eq!(cpu(json!({ "quota": 10 }), "20000 50000\n"), json!({ "quota": 10, "period": 50_000 }));
    assert_eq!(cpu(json!({ "quota": -1 }), "20000 50000\n"), json!({ "quota": -1, "period": 50_000 }));
    assert_eq!(cpu(json!({ "period": 70 }), "20000 50000\n"), json!({ "quota": 20_000, "period": 70 }));
    assert_eq!(cpu(json!({ "period": 70 }), "max 50000\n"), json!({ "quota": -1, "period": 70 }));
    let both = json!({ "quota": 1, "period": 2 });
    assert_eq!(cpu(both.clone(), "max 100000\n"), both);
    assert_eq!(cpu(json!({ "quota": 10 }), ""), json!({ "quota": 10 }), "there is no such file");
}

#[test]
fn the_check_of_memory_is_the_agents() {
    let (spec, value) = update(&json!({ "memory": { "limit": 5, "checkBeforeUpdate": true } }), "");
    assert_eq!((spec.memory_limit, spec.check_memory), (Some(5), true));
    assert_eq!(value, json!({ "memory": { "limit": 5 } }));
}

#[test]
fn what_is_no_json_says_so() {
    let dir = tempfile::tempdir().unwrap();
    for junk in ["", "[]", "{"] {
        let error = for_update(junk.as_bytes(), "", &guest(&dir)).unwrap_err();
        assert!(error.to_string().starts_with("the resources cannot be read: "), "{error}");
    }
}
