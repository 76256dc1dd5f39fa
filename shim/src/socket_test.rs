use super::*;
use std::os::unix::fs::PermissionsExt;

#[test]
fn the_name_tells_containerds_namespaces_and_sandboxes_apart() {
    let name = |a, n, s| path(Path::new("/s"), a, n, s);
    let one = name("/run/c.sock", "default", "c1");
    assert_eq!(one.as_os_str().len(), 3 + 64);
    for other in [
        name("/run/d.sock", "default", "c1"),
        name("/run/c.sock", "x", "c1"),
        name("/run/c.sock", "default", "c2"),
    ] {
        assert_ne!(one, other);
    }
    assert!(address(&name("a", "b", &"x".repeat(200))).len() < 106);
}

#[test]
fn only_root_may_connect() {
    let root = tempfile::tempdir().unwrap();
    let socket = root.path().join("s/name");
    let Bound::Listener(_listener) = bind(&socket).unwrap() else { panic!("taken") };
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(root.path().join("s")).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let root = tempfile::tempdir().unwrap();
    let socket = root.path().join("name");
    let Bound::Listener(first) = bind(&socket).unwrap() else { panic!("taken") };
    assert!(matches!(bind(&socket).unwrap(), Bound::Taken));
    drop(first);
    assert!(matches!(bind(&socket).unwrap(), Bound::Listener(_)));
}

#[test]
fn a_path_too_long_for_a_socket_is_told_so() {
    let error = bind(&Path::new("/tmp").join("x".repeat(120))).unwrap_err();
    assert!(error.to_string().contains("too long"));
}
