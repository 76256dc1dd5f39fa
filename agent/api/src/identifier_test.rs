use super::*;

#[test]
fn letters_and_digits_make_an_identifier() {
    for good in ["a", "Z", "0", "c1", "busybox", "4f2a9c", &"x".repeat(MAX_IDENTIFIER)] {
        check_identifier(good).unwrap();
    }
}

#[test]
fn one_separator_may_stand_between_letters_and_digits() {
    for good in ["k8s.io", "a_b", "exec-0", "a.b_c-D9", "a.b.c"] {
        check_identifier(good).unwrap();
    }
    for bad in ["a..b", "a._b", "a--b", ".a", "a.", "_a", "a_", "-a", "a-", "-", "__"] {
        check_identifier(bad).unwrap_err();
    }
}

#[test]
fn what_leaves_or_names_a_directory_is_no_identifier() {
    for bad in ["", ".", "..", "/", "a/b", "../a", "a/..", "/a", "a\\b"] {
        check_identifier(bad).unwrap_err();
    }
}

#[test]
fn no_other_character_is_in_an_identifier() {
    for bad in ["a b", " a", "a\n", "a\0", "ä", "a:b", "a@b", "a+b", "a\u{200b}b"] {
        check_identifier(bad).unwrap_err();
    }
}

#[test]
fn an_identifier_has_at_most_76_characters() {
    check_identifier(&"x".repeat(76)).unwrap();
    check_identifier(&"x".repeat(77)).unwrap_err();
    check_identifier(&format!("{}-b", "a".repeat(75))).unwrap_err();
}

#[test]
fn the_message_quotes_the_text_no_longer_than_an_identifier_and_says_the_rule() {
    let message = check_identifier("../a").unwrap_err().to_string();
    assert_eq!(
        message,
        "\"../a\" is not an identifier: expected letters and digits, with a single '.', '_' or '-' between them, \
         at most 76 characters"
    );
    let message = check_identifier(&"x".repeat(10_000)).unwrap_err().to_string();
    assert!(message.len() < 250, "{message}");
}
