//! `lazaret-probe`: a static program that tests put into a container for what busybox cannot do.

/// Where it is, ready to be bind mounted: beside the test program.
pub fn path() -> String {
    let tests = std::env::current_exe().expect("a program knows where it is");
    let probe = tests.with_file_name("lazaret-probe");
    assert!(probe.exists(), "{} is not there: start the tests with integration/test", probe.display());
    probe.display().to_string()
}
