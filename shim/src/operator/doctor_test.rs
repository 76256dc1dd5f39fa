use super::*;

#[test]
fn each_kind_of_kvm_has_its_verdict_and_its_advice() {
    let judge = |json: &str| judge_kvm(serde_json::from_str(json).unwrap());
    let good = judge(r#"{"kvm":"good","detail":"ran in 1 ms"}"#);
    assert_eq!((good.verdict, good.advice), (Verdict::Good, None));
    let absent = judge(r#"{"kvm":"absent","detail":"no /dev/kvm"}"#);
    let unusable = judge(r#"{"kvm":"unusable","detail":"popcnt"}"#);
    assert_eq!((absent.verdict, unusable.verdict), (Verdict::Bad, Verdict::Bad));
    assert_ne!(absent.advice, unusable.advice);
}

#[test]
fn a_containerd_of_any_packaging_is_read() {
    let judge = |line: &str| judge_containerd(Path::new("/usr/bin/containerd"), line).verdict;
    assert_eq!(
        judge("containerd github.com/containerd/containerd 1.7.24~ds1 1.7.24~ds1-6+b4"),
        Verdict::Good
    );
    assert_eq!(judge("containerd github.com/containerd/containerd/v2 v2.1.4 75cb2b7"), Verdict::Good);
    assert_eq!(
        judge("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+b1"),
        Verdict::Good
    );
    assert_eq!(judge("containerd github.com/containerd/containerd v1.5.18 2806fc1"), Verdict::Bad);
    assert_eq!(judge("containerd"), Verdict::Warning);
}

#[test]
fn every_bad_line_says_what_to_do() {
    let checks = [Check::good("a", "fine"), Check::bad("b", "broken", "mend it")];
    assert_eq!(
        render(&checks),
        "good  a           fine\nBAD   b           broken\n                  -> mend it\n"
    );
}

#[test]
fn a_missing_vmm_is_told_apart_from_a_missing_kvm() {
    let check = kvm(Some(Path::new("/nonexistent/lazaret-vmm")));
    assert_eq!(check.verdict, Verdict::Bad);
    assert!(check.detail.contains("/nonexistent/lazaret-vmm"));
}
