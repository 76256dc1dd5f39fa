use super::*;

#[test]
fn a_member_has_nothing_of_its_sandbox_to_end() {
    let bundle = tempfile::tempdir().unwrap();
    let is_own = |annotations: &str| {
        std::fs::write(bundle.path().join("config.json"), format!(r#"{{"annotations": {annotations}}}"#))
            .unwrap();
        is_own(bundle.path(), "c1")
    };
    assert!(is_own("{}"));
    for key in
        ["io.kubernetes.cri.sandbox-id", "io.kubernetes.cri-o.SandboxID", "io.containerd.runc.v2.group"]
    {
        assert!(is_own(&format!(r#"{{"{key}": "c1"}}"#)), "{key}");
        assert!(!is_own(&format!(r#"{{"{key}": "pod"}}"#)), "{key}");
    }
    let two = r#"{"io.kubernetes.cri.sandbox-id": "pod", "io.containerd.runc.v2.group": "c1"}"#;
    assert!(!is_own(two), "such a container was never started");
    std::fs::remove_file(bundle.path().join("config.json")).unwrap();
    assert!(!super::is_own(bundle.path(), "c1"), "the state directory tells, where there is one");
}
