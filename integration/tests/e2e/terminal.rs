//! `ctr run --tty`, as a person uses it.

use lazaret_integration::beside_others;
use lazaret_integration::container::Container;
use lazaret_integration::terminal::Terminal;

fn shell(container: &Container) -> Terminal {
    Terminal::start(container.run_command(&["--rm", "--tty"], &["sh"]), 31, 97)
}

#[test]
fn a_shell_on_a_terminal_answers_and_exits_with_its_code() {
    let _host = beside_others();
    let container = Container::new("tty");
    let mut terminal = shell(&container);
    terminal.type_in("test -t 0 && test -t 1 && test -t 2 && echo all three are $((1 + 1))\n");
    terminal.wait_for("all three are 2");
    terminal.type_in("exit 11\n");
    assert_eq!(terminal.finish(), 11);
}

#[test]
fn the_window_has_the_users_size_and_follows_it() {
    let _host = beside_others();
    let container = Container::new("tty-size");
    let mut terminal = shell(&container);
    terminal.type_in("until stty size | grep -q '31 97'; do :; done; echo first=$(stty size)\n");
    terminal.wait_for("first=31 97");
    terminal.resize(20, 50);
    terminal.type_in("until stty size | grep -q '20 50'; do :; done; echo second=$(stty size)\n");
    terminal.wait_for("second=20 50");
    terminal.type_in("exit\n");
    assert_eq!(terminal.finish(), 0);
}

#[test]
fn a_program_is_told_when_the_window_changes() {
    let _host = beside_others();
    let container = Container::new("tty-winch");
    let script =
        "trap 'echo now=$(stty size)' WINCH; until stty size | grep -q '31 97'; do :; done; echo ready;
        while :; do sleep 1000 & wait; done";
    let mut terminal =
        Terminal::start(container.run_command(&["--rm", "--tty"], &["sh", "-c", script]), 31, 97);
    terminal.wait_for("ready");
    terminal.resize(20, 50);
    terminal.wait_for("now=20 50");
    container.kill("SIGKILL");
    assert_eq!(terminal.finish(), 137);
}

#[test]
fn ctrl_c_interrupts_the_command_and_not_the_shell() {
    let _host = beside_others();
    let container = Container::new("tty-int");
    let mut terminal = shell(&container);
    terminal.type_in("sh -c 'echo sleeping$((0)); exec sleep 1000'\n");
    terminal.wait_for("sleeping0");
    terminal.type_in("\x03");
    terminal.type_in("echo code=$?\n");
    terminal.wait_for("code=130");
    terminal.type_in("exit\n");
    terminal.finish();
}

#[test]
fn an_exec_can_have_a_terminal_too() {
    let _host = beside_others();
    let container = Container::new("tty-exec");
    container.detach(&["sleep", "1000"]);
    let command = container.exec_command(&["--tty"], &["sh", "-c", "test -t 0 && echo terminal; exit 12"]);
    let mut terminal = Terminal::start(command, 24, 80);
    terminal.wait_for("terminal");
    assert_eq!(terminal.finish(), 12);
}
