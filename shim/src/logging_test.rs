use super::*;

#[test]
fn a_line_is_containerds_format_and_names_the_sandbox() {
    let time = UNIX_EPOCH + Duration::new(1_709_209_800, 5);
    let line = format_line(time, "info", "said \"hi\"\nbye", "default/c1");
    assert_eq!(
        line,
        "time=\"2024-02-29T12:30:00.000000005Z\" level=info msg=\"said \\\"hi\\\"\\nbye\" \
         sandbox=default/c1 runtime=io.containerd.lazaret.v2\n"
    );
}

#[test]
fn a_long_line_stays_one_atomic_write() {
    for message in ["\\".repeat(9000), "é".repeat(9000), "a".repeat(9000)] {
        let line = format_line(UNIX_EPOCH, "info", &message, "n/c");
        assert!(line.len() <= MAX_LINE && line.ends_with("runtime=io.containerd.lazaret.v2\n"));
    }
}

#[test]
fn dates_are_right_at_their_edges() {
    for (seconds, date) in [
        (0, "1970-01-01T00:00:00"),
        (951_782_399, "2000-02-28T23:59:59"),
        (951_782_400, "2000-02-29T00:00:00"),
        (4_107_542_400, "2100-03-01T00:00:00"),
    ] {
        assert!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)).starts_with(date), "{date}");
    }
}

#[test]
fn a_pipe_without_a_reader_does_not_block() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    let log = PipeLog { path: path.clone(), sandbox: "n/c".into(), pipe: Mutex::new(None) };
    let record = |text: &str| {
        log.log(&Record::builder().args(format_args!("{text}")).level(log::Level::Info).build());
    };
    record("nobody reads");
    let options = || {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_NONBLOCK);
        options
    };
    let reader = options().open(&path).unwrap();
    record("one");
    drop(reader);
    record("lost");
    let mut reader = options().open(&path).unwrap();
    record("two");
    let mut text = String::new();
    std::io::Read::read_to_string(&mut reader, &mut text).ok();
    assert!(text.contains("two") && !text.contains("nobody"), "{text}");
    // Far more than a pipe holds: the surplus is dropped.
    (0..10_000).for_each(|_| record(&"x".repeat(100)));
}
