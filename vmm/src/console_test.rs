use super::*;
use proptest::prelude::*;
use std::io::{Read, Seek};

fn content(mut file: &File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_log_never_passes_its_limit_and_keeps_the_newest() {
    let file = tempfile::tempfile().unwrap();
    let mut log = BoundedLog::new(file.try_clone().unwrap(), 1000).unwrap();
    let mut all = Vec::new();
    for number in 0..500 {
        let line = format!("line {number}\n");
        log.write_all(line.as_bytes()).unwrap();
        all.extend_from_slice(line.as_bytes());
        let kept = content(&file);
        assert!(kept.len() <= 1000, "{} bytes", kept.len());
        assert!(all.ends_with(&kept), "not the newest bytes");
        assert!(all.len() < 500 || kept.len() >= 500, "less than half is kept");
    }
}

#[test]
fn a_file_opened_to_append_is_halved_as_well() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let file = File::options().create(true).append(true).read(true).open(&path).unwrap();
    let mut log = BoundedLog::new(file, 100).unwrap();
    for number in 0..50 {
        writeln!(log, "line {number:02}").unwrap();
        assert!(std::fs::metadata(&path).unwrap().len() <= 100);
    }
    assert!(std::fs::read_to_string(&path).unwrap().ends_with("line 48\nline 49\n"));
}

#[test]
fn a_log_goes_on_where_the_file_ends() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"before ").unwrap();
    let mut log = BoundedLog::new(file.try_clone().unwrap(), 100).unwrap();
    log.write_all(b"after").unwrap();
    assert_eq!(content(&file), b"before after");
}

#[test]
fn one_write_larger_than_the_log_leaves_its_end() {
    let file = tempfile::tempfile().unwrap();
    let mut log = BoundedLog::new(file.try_clone().unwrap(), 100).unwrap();
    let bytes: Vec<u8> = (0..=255).collect();
    log.write_all(&bytes).unwrap();
    assert!(bytes.ends_with(&content(&file)) && content(&file).len() >= 50);
}

#[test]
fn the_last_lines_are_kept_without_what_could_drive_a_terminal() {
    let mut output = Output::new(Box::new(io::sink()));
    for number in 0..100 {
        write!(output, "line {number}\r\n\n").unwrap();
    }
    output.write_all(b"\x1b[31mred\x07\xff").unwrap();
    let tail = output.tail();
    assert_eq!((tail.len(), tail[0].as_str()), (TAIL_LINES + 1, "line 60"));
    assert_eq!(tail[TAIL_LINES], "[31mred\u{fffd}");
}

#[test]
fn a_target_that_fails_does_not_stop_the_guest() {
    let mut output = Output::new(Box::new(&mut [0u8; 0][..]));
    output.write_all(b"lost, but remembered").unwrap();
    assert_eq!(output.tail(), ["lost, but remembered"]);
}

proptest! {
    #[test]
    fn the_tail_is_bounded_whatever_is_printed(pieces in prop::collection::vec(any::<Vec<u8>>(), 0..200)) {
        let mut output = Output::new(Box::new(io::sink()));
        for piece in pieces {
            output.write_all(&piece).unwrap();
        }
        let tail = output.tail();
        prop_assert!(tail.len() <= TAIL_LINES + 1);
        // A byte that is not UTF-8 becomes a character of three.
        prop_assert!(tail.iter().all(|line| line.len() <= 3 * TAIL_LINE_BYTES));
        prop_assert!(tail.iter().all(|line| !line.chars().any(char::is_control)));
    }
}
