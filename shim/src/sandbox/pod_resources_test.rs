use super::*;
use crate::sandbox::membership::Kind;

fn resources(kind: Kind, annotations: &Value) -> Result<Value> {
    // What CRI gives the container that holds a pod.
    let spec = json!({ "annotations": annotations, "linux": { "resources": { "cpu": { "shares": 2 } } } });
    let spec = Spec::parse(spec.to_string().as_bytes()).unwrap();
    of(&spec, &Membership { id: "pod".into(), kind, shm: None }).map(Cow::into_owned)
}

#[test]
fn a_pod_has_what_its_annotations_say_and_nothing_of_its_holders() {
    let annotations = json!({
        "io.kubernetes.cri.sandbox-memory": "536870912",
        "io.kubernetes.cri.sandbox-cpu-quota": "150000",
        "io.kubernetes.cri.sandbox-cpu-period": "100000",
        "io.kubernetes.cri.sandbox-cpu-shares": "1536",
    });
    let expected = json!({
        "memory": { "limit": 536_870_912 }, "cpu": { "quota": 150_000, "period": 100_000, "shares": 1536 },
    });
    assert_eq!(resources(Kind::Pod, &annotations), Ok(expected));
    assert_eq!(resources(Kind::Pod, &json!({})), Ok(json!({})));
    let unlimited =
        json!({ "io.kubernetes.cri.sandbox-memory": "0", "io.kubernetes.cri.sandbox-cpu-quota": "-1" });
    assert_eq!(resources(Kind::Pod, &unlimited), Ok(json!({ "cpu": { "quota": -1 } })));
}

#[test]
fn any_other_sandbox_has_what_its_spec_says() {
    let annotations = json!({ "io.kubernetes.cri.sandbox-memory": "much" });
    for kind in [Kind::Lone, Kind::Group] {
        assert_eq!(resources(kind, &annotations), Ok(json!({ "cpu": { "shares": 2 } })));
    }
}

#[test]
fn an_annotation_that_is_no_number_is_refused_in_one_line_that_names_it() {
    let refused = resources(Kind::Pod, &json!({ "io.kubernetes.cri.sandbox-memory": "512Mi" }));
    let Err(Error::InvalidArgument(line)) = refused else { panic!("{refused:?}") };
    assert!(line.contains("io.kubernetes.cri.sandbox-memory=\"512Mi\"") && !line.contains('\n'), "{line}");
}
