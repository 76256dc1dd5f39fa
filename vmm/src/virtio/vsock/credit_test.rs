use super::*;

fn says(buf_alloc: u32, fwd_cnt: u32) -> Header {
    Header { buf_alloc, fwd_cnt, ..Header::default() }
}

/// A connection that has lasted for nearly 4 GiB each way.
fn old() -> Credit {
    let count = Wrapping(u32::MAX - 10);
    Credit {
        sent: count,
        guest_forwarded: count,
        received: count,
        forwarded: count,
        announced: count,
        ..Credit::default()
    }
}

#[test]
fn nothing_is_sent_before_the_guest_spoke() {
    assert_eq!(Credit::default().to_guest(), 0);
}

#[test]
fn guest_credit_is_its_buffer_less_what_it_has_not_forwarded() {
    let mut credit = Credit::default();
    credit.guest_says(&says(1000, 0));
    credit.sent(600);
    assert_eq!(credit.to_guest(), 400);
    credit.guest_says(&says(1000, 500));
    assert_eq!(credit.to_guest(), 900);
}

#[test]
fn guest_credit_survives_the_wrap() {
    let mut credit = old();
    credit.guest_says(&says(1000, u32::MAX - 10));
    credit.sent(600);
    assert_eq!(credit.to_guest(), 400);
    credit.guest_says(&says(1000, 589));
    assert_eq!(credit.to_guest(), 1000);
}

#[test]
fn a_guest_that_shrinks_its_buffer_or_forwards_the_future_gets_nothing() {
    let mut credit = Credit::default();
    credit.guest_says(&says(1000, 0));
    credit.sent(600);
    credit.guest_says(&says(500, 0));
    assert_eq!(credit.to_guest(), 0);
    credit.guest_says(&says(1000, 601));
    assert_eq!(credit.to_guest(), 0);
}

#[test]
fn held_bytes_never_exceed_the_buffer() {
    for mut credit in [Credit::default(), old()] {
        assert!(credit.accept(BUFFER));
        assert!(!credit.accept(1));
        assert!(!credit.accept(u32::MAX));
        credit.forwarded(100);
        assert!(!credit.accept(101));
        assert!(credit.accept(100));
    }
}

#[test]
fn an_update_is_due_when_a_quarter_of_the_buffer_is_free_unannounced() {
    for mut credit in [Credit::default(), old()] {
        assert!(credit.accept(BUFFER));
        credit.forwarded(BUFFER / 4 - 1);
        assert!(!credit.update_due());
        credit.forwarded(1);
        assert!(credit.update_due());
        assert_eq!(Wrapping(credit.announce()), credit.forwarded);
        assert!(!credit.update_due());
    }
}
