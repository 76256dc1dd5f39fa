use super::*;
use crate::micro_guest;
use std::io::Write;

/// `/dev/kvm`, or `None` with the reason printed.
fn kvm(test: &str) -> Option<OwnedFd> {
    match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(kvm) => Some(kvm.into()),
        Err(error) => {
            // Not by a macro of std's: the test harness would swallow it.
            let _ = writeln!(io::stderr(), "{test}: skipped, /dev/kvm cannot be opened: {error}");
            None
        }
    }
}

micro_guest!(finishes, ".space 32", "mov dx, 0x501", "out dx, al", "2: jmp 2b");
micro_guest!(faults, ".space 32", "lidt [0]", "ud2");
micro_guest!(never_finishes, ".space 32", "2: jmp 2b");
#[test]
fn a_program_that_gets_through_makes_kvm_good() {
    let Some(kvm) = kvm("a_program_that_gets_through") else { return };
    assert_eq!(try_out(kvm, finishes()).kvm, Kvm::Good);
}

#[test]
fn a_fault_is_told_in_one_line() {
    let Some(kvm) = kvm("a_fault_is_told_in_one_line") else { return };
    let verdict = try_out(kvm, faults());
    assert_eq!(verdict.kvm, Kvm::Unusable);
    assert_eq!(
        verdict.detail,
        "this machine's KVM cannot run a guest kernel: a correct program faulted on it"
    );
}

#[test]
fn a_guest_that_hangs_does_not_hang_the_probe() {
    let Some(kvm) = kvm("a_guest_that_hangs_does_not_hang_the_probe") else { return };
    let verdict = try_out(kvm, never_finishes());
    assert_eq!(verdict.kvm, Kvm::Unusable);
    assert!(verdict.detail.contains("did not get through"), "{}", verdict.detail);
}

#[test]
fn the_real_probe_has_a_verdict_and_tells_it_as_json() {
    let verdict = probe();
    let json = serde_json::to_string(&verdict).unwrap();
    assert!(json.starts_with(r#"{"kvm":""#) && !json.contains('\n'), "{json}");
    assert!(!verdict.detail.is_empty());
}

#[test]
fn what_is_not_kvm_is_found_out() {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null").unwrap();
    let verdict = try_out(null.into(), finishes());
    assert_eq!(verdict.kvm, Kvm::Unusable);
    assert!(verdict.detail.contains("not /dev/kvm"), "{}", verdict.detail);
}
