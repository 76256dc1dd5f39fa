use super::*;

fn parse(line: &str) -> Result<Args, ArgsError> {
    Args::parse(line.split(' ').filter(|word| !word.is_empty()).map(Into::into))
}

#[test]
fn containerds_start_line_is_understood() {
    let args = parse(
        "-namespace default -address /run/containerd/containerd.sock -publish-binary /usr/bin/containerd -id c1 -debug start",
    )
    .unwrap();
    assert_eq!((args.action, args.id.as_str(), args.namespace.as_str()), (Action::Start, "c1", "default"));
    assert_eq!(args.address, "/run/containerd/containerd.sock");
    assert!(args.debug);
}

#[test]
fn values_may_follow_an_equals_sign_and_two_dashes_are_one() {
    let args = parse("--namespace=k8s.io -id=c1 -debug=false -bundle=/b delete").unwrap();
    assert_eq!((args.action, args.namespace.as_str()), (Action::Delete, "k8s.io"));
    assert_eq!((args.bundle, args.debug), (Some(PathBuf::from("/b")), false));
}

#[test]
fn what_follows_the_action_is_ignored() {
    assert_eq!(parse("-namespace n -id c start -id other --odd").unwrap().id, "c");
}

#[test]
fn version_and_info_need_nothing_else() {
    assert_eq!(parse("-v").unwrap().action, Action::Version);
    assert_eq!(parse("-version").unwrap().action, Action::Version);
    assert_eq!(parse("-info").unwrap().action, Action::Info);
}

#[test]
fn a_wrong_line_is_told_what_is_wrong() {
    assert_eq!(parse("-namespace n -id c"), Err(ArgsError::NoAction));
    assert_eq!(parse("-namespace n -id c run"), Err(ArgsError::UnknownAction("run".into())));
    assert_eq!(parse("-odd start"), Err(ArgsError::UnknownFlag("-odd".into())));
    assert_eq!(parse("-id"), Err(ArgsError::MissingValue("id".into())));
    assert!(matches!(parse("-debug=maybe start"), Err(ArgsError::NotBool { .. })));
}

#[test]
fn an_id_or_namespace_that_is_no_identifier_is_refused() {
    let too_long = "x".repeat(77);
    for bad in ["..", "a/b", "", ".a", "a-", "a b", &too_long] {
        let id = ["-namespace", "n", "-id", bad, "start"].map(OsString::from);
        assert!(matches!(Args::parse(id), Err(ArgsError::BadIdentifier { flag: "id", .. })), "{bad:?}");
        let namespace = ["-namespace", bad, "-id", "c", "delete"].map(OsString::from);
        let refused = Args::parse(namespace);
        assert!(matches!(refused, Err(ArgsError::BadIdentifier { flag: "namespace", .. })), "{bad:?}");
    }
}

#[test]
fn the_longest_id_containerd_has_is_accepted() {
    let id = "x".repeat(76);
    assert_eq!(parse(&format!("-namespace n -id {id} start")).unwrap().id, id);
}
