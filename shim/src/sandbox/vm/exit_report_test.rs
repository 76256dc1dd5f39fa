use super::*;

fn ended(console: &[&str]) -> ExitReport {
    let console = console.iter().map(|line| (*line).to_owned()).collect();
    ExitReport { reason: "the guest reset".into(), requested: false, console }
}

#[test]
fn a_panic_is_told_by_its_first_line_and_the_agents_last_before_it() {
    let exit_report = ended(&[
        "lazaret-agent: ready",
        "lazaret-agent: cannot go on",
        "[    3.1] Kernel panic - not syncing: Attempted to kill init!",
        "[    3.2]  ? panic+0x2fb/0x310",
        "[    3.3]  </TASK>",
    ]);
    assert_eq!(
        exit_report.line(),
        "the guest reset; its console: lazaret-agent: cannot go on | Kernel panic - not syncing: Attempted to kill init!"
    );
    assert!(exit_report.console_line().contains("panic+0x2fb/0x310 | </TASK>"));
}

#[test]
fn without_a_panic_the_last_lines_are_told() {
    assert_eq!(ended(&["a", "", "b", "c ", "[x] d"]).line(), "the guest reset; its console: b | c | [x] d");
    assert_eq!(ended(&[]).line(), "the guest reset");
}
