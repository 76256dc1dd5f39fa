use super::*;

#[test]
fn the_last_error_is_what_matters() {
    let log = "first\nchdir `/nodir`: No such file or directory\n\n";
    assert_eq!(last_error(log).unwrap(), "chdir `/nodir`: No such file or directory");
    assert_eq!(last_error(""), None);
}

#[test]
fn a_command_that_cannot_be_run_is_said_as_runc_says_it() {
    let table = [
        (
            "executable file `nosuch` not found in $PATH: No such file or directory",
            r#"exec: "nosuch": executable file not found in $PATH"#,
        ),
        (
            "executable file `/no/such` not found: No such file or directory",
            r#"exec: "/no/such": stat /no/such: no such file or directory"#,
        ),
        (
            "cannot find `` in $PATH: No such file or directory",
            r#"exec: "": executable file not found in $PATH"#,
        ),
        (
            "the path `/etc/passwd` exists but it is not executable: Operation not permitted",
            r#"exec: "/etc/passwd": permission denied"#,
        ),
        ("the path `/etc` is not a regular file: Operation not permitted", r#"exec: "/etc": is a directory"#),
        (
            "cannot stat `/no/such`: No such file or directory",
            "cannot stat `/no/such`: No such file or directory",
        ),
    ];
    for (crun, ours) in table {
        assert_eq!(as_others_say_it(crun.to_owned()), ours);
    }
}
