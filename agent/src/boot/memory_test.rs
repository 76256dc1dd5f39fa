use super::*;

#[test]
fn the_time_is_set_where_the_kernel_can_keep_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("min_ttl_ms");
    set(&path).unwrap();
    assert!(!path.exists(), "a kernel without it stays without it");
    fs::write(&path, "0").unwrap();
    set(&path).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "1000");
}

#[test]
fn a_kernel_that_refuses_is_an_error_that_says_what() {
    let error = set(Path::new("/dev/full")).unwrap_err();
    let line = error.to_string();
    assert!(line.starts_with("cannot set the time for which memory in use is kept: No space left"), "{line}");
}
