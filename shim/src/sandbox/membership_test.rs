use super::*;
use serde_json::{Value, json};

fn spec(annotations: Value) -> Spec {
    Spec::parse(json!({ "annotations": annotations }).to_string().as_bytes()).unwrap()
}

fn membership(annotations: Value) -> Membership {
    Membership::of(&spec(annotations), "pod", Path::new("/bundle"))
}

fn pod() -> Membership {
    membership(json!({
        "io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-id": "pod",
    }))
}

fn group() -> Membership {
    membership(json!({ "io.containerd.runc.v2.group": "pod" }))
}

#[test]
fn a_container_belongs_to_the_sandbox_that_it_names_and_else_to_itself() {
    assert_eq!(sandbox_id(&spec(json!({})), "c1"), Ok("c1"));
    for key in
        ["io.kubernetes.cri.sandbox-id", "io.kubernetes.cri-o.SandboxID", "io.containerd.runc.v2.group"]
    {
        assert_eq!(sandbox_id(&spec(json!({ key: "pod" })), "c1"), Ok("pod"), "{key}");
        assert_eq!(sandbox_id(&spec(json!({ key: "" })), "c1"), Ok("c1"), "{key}");
    }
}

#[test]
fn annotations_that_name_two_sandboxes_are_refused_in_one_line() {
    let same = spec(json!({ "io.kubernetes.cri.sandbox-id": "pod", "io.containerd.runc.v2.group": "pod" }));
    assert_eq!(sandbox_id(&same, "c1"), Ok("pod"));
    let two = spec(json!({ "io.kubernetes.cri.sandbox-id": "pod", "io.containerd.runc.v2.group": "other" }));
    let Err(Error::InvalidArgument(line)) = sandbox_id(&two, "c1") else { panic!("it is taken") };
    assert!(line.contains("\"pod\"") && line.contains("\"other\"") && !line.contains('\n'), "{line}");
}

#[test]
fn a_sandbox_is_shared_only_when_its_own_spec_says_so() {
    let kinds = [
        (json!({}), Kind::Lone),
        // Its own id as the pod's does not make it one.
        (json!({ "io.kubernetes.cri.sandbox-id": "pod" }), Kind::Lone),
        (json!({ "io.kubernetes.cri.container-type": "container" }), Kind::Lone),
        (json!({ "io.kubernetes.cri.container-type": "sandbox" }), Kind::Pod),
        (json!({ "io.kubernetes.cri-o.ContainerType": "sandbox" }), Kind::Pod),
        (json!({ "io.containerd.runc.v2.group": "other" }), Kind::Lone),
        (json!({ "io.containerd.runc.v2.group": "pod" }), Kind::Group),
    ];
    for (annotations, kind) in kinds {
        let of = membership(annotations.clone());
        assert_eq!((of.kind, of.takes_members()), (kind, kind != Kind::Lone), "{annotations}");
    }
}

#[test]
fn a_container_has_its_role_by_its_id_and_the_kind_of_its_sandbox() {
    let lone = membership(json!({}));
    let roles = [(&lone, Role::Sole), (&pod(), Role::Holder), (&group(), Role::First)];
    for (of, own) in roles {
        assert_eq!((of.role("pod"), of.role("c1")), (own, Role::Member));
    }
}

#[test]
fn who_does_not_name_the_sandbox_is_refused_and_so_is_everybody_where_it_is_not_shared() {
    let of_pod = json!({
        "io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "pod",
    });
    let of_group = json!({ "io.containerd.runc.v2.group": "pod" });
    let of_other = json!({
        "io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "other",
    });
    let second_sandbox = json!({
        "io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-id": "pod",
    });
    let lone = membership(json!({}));
    for (sandbox, annotations, taken) in [
        (&pod(), &of_pod, true),
        (&pod(), &of_group, false),
        (&pod(), &of_other, false),
        (&pod(), &second_sandbox, false),
        (&pod(), &json!({}), false),
        (&group(), &of_group, true),
        (&group(), &of_pod, false),
        (&group(), &json!({}), false),
        (&lone, &of_pod, false),
        (&lone, &of_group, false),
    ] {
        match sandbox.check(&spec(annotations.clone()), "c1") {
            Ok(()) => assert!(taken, "{:?} takes {annotations}", sandbox.kind),
            Err(Error::FailedPrecondition(line)) => {
                assert!(!taken && line.starts_with("container c1") && !line.contains('\n'), "{line}");
            }
            Err(error) => panic!("{error:?}"),
        }
        // Its own container is taken, whatever the others need.
        sandbox.check(&spec(json!({})), "pod").unwrap();
    }
}

#[test]
fn the_shared_memory_of_a_pod_is_what_its_own_container_has() {
    let with_shm = |annotations: Value| {
        let mounts = json!([{ "destination": "/dev/shm", "type": "bind", "source": "/run/pod/shm" }]);
        let spec = json!({ "annotations": annotations, "mounts": mounts });
        let spec = Spec::parse(spec.to_string().as_bytes()).unwrap();
        Membership::of(&spec, "pod", Path::new("/bundle")).shm
    };
    let pod = with_shm(json!({ "io.kubernetes.cri.container-type": "sandbox" }));
    assert_eq!(pod, Some("/run/pod/shm".into()));
    assert_eq!(with_shm(json!({})), None, "a lone container has what it mounts");
}
