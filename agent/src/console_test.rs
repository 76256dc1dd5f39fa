use super::*;

#[test]
fn a_message_with_line_ends_and_escapes_is_one_plain_line() {
    assert_eq!(line("no \x1b[2Jsuch\nfile"), "lazaret-agent: no  [2Jsuch file\n");
}
