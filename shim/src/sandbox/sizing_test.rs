use super::*;
use serde_json::{Value, json};

const HOST: Host = Host { cpus: 8, memory_mib: 16_384 };

fn size(spec: Value) -> Result<(u32, u64)> {
    let spec = Spec::parse(&serde_json::to_vec(&spec).unwrap()).unwrap();
    let config = Config { vcpus: 2, memory_mib: 512, ..Config::default() };
    Size::of(&spec, spec.resources(), &config, HOST).map(|size| (size.vcpus, size.memory_mib))
}

fn limits(quota: i64, period: i64, memory: i64) -> Value {
    json!({"linux": {"resources": {"cpu": {"quota": quota, "period": period}, "memory": {"limit": memory}}}})
}

#[test]
fn without_limits_the_configuration_decides() {
    assert_eq!(size(json!({})), Ok((2, 512)));
    assert_eq!(size(limits(-1, 100_000, -1)), Ok((2, 512)));
    assert_eq!(size(limits(0, 0, 0)), Ok((2, 512)));
}

#[test]
fn a_quota_is_rounded_up_to_whole_vcpus() {
    assert_eq!(size(limits(150_000, 100_000, 0)).unwrap().0, 2);
    assert_eq!(size(limits(400_000, 100_000, 0)).unwrap().0, 4);
    assert_eq!(size(limits(1_000, 100_000, 0)).unwrap().0, 1);
    assert_eq!(size(limits(300_000, 0, 0)).unwrap().0, 3);
    assert_eq!(size(limits(i64::MAX, 1, 0)).unwrap().0, 2, "more than any machine has is no limit");
    assert_eq!(size(limits(10_000_000, 100_000, 0)).unwrap().0, HOST.cpus);
}

#[test]
fn a_memory_limit_has_the_guests_own_share_on_top() {
    assert_eq!(size(limits(0, 0, 256 << 20)).unwrap().1, 256 + GUEST_OVERHEAD_MIB);
    assert_eq!(size(limits(0, 0, 4096)).unwrap().1, MIN_MEMORY_MIB);
    assert_eq!(size(limits(0, 0, i64::MAX)).unwrap().1, HOST.memory_mib);
}

#[test]
fn an_annotation_overrides_limits_and_takes_units() {
    for (text, mib) in
        [("768", 768), ("768Mi", 768), ("2Gi", 2048), ("2G", 2048), ("1048576Ki", 1024), (" 1 GiB", 1024)]
    {
        let mut spec = limits(400_000, 100_000, 256 << 20);
        spec["annotations"] = json!({VCPUS_ANNOTATION: "3", MEMORY_ANNOTATION: text});
        assert_eq!(size(spec), Ok((3, mib)), "{text}");
    }
}

#[test]
fn a_senseless_annotation_is_refused_in_one_line_that_names_it() {
    let cases = [
        (VCPUS_ANNOTATION, ["0", "-1", "9", "many", "", "4294967296"]),
        (MEMORY_ANNOTATION, ["0", "10Mi", "17Gi", "99999999999999999999", "1Ti", "-5"]),
    ];
    for (annotation, values) in cases {
        for value in values {
            let error = size(json!({"annotations": {annotation: value}})).unwrap_err();
            let Error::InvalidArgument(line) = error else { panic!("{error:?}") };
            assert!(line.contains(annotation) && line.contains("expected") && !line.contains('\n'), "{line}");
        }
    }
}
