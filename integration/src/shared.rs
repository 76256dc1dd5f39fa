//! A sandbox, or what else takes its time to start, that the tests of one module use together.

use std::ops::Deref;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

/// Started by the first test that asks for it, and removed after the last one of this run: that test fails if anything is left of
/// it. Every test of the module, and of no other, uses it.
pub struct Shared<T: 'static> {
    module: &'static str,
    start: fn() -> T,
    state: Mutex<Option<State<T>>>,
}

struct State<T> {
    /// None when its start failed: a test that comes later is not to wait for another failure.
    started: Option<Arc<T>>,
    /// Tests of this run that have not ended yet.
    users: usize,
}

impl<T> Shared<T> {
    /// `module` is the caller's `module_path!()`.
    pub const fn new(module: &'static str, start: fn() -> T) -> Self {
        Self { module, start, state: Mutex::new(None) }
    }

    /// The sandbox, for as long as a test needs it.
    #[track_caller]
    pub fn sandbox(&'static self) -> Use<T> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.is_none() {
            *state = Some(State { started: None, users: self.planned() });
            let started = Arc::new((self.start)());
            state.as_mut().expect("it was just set").started = Some(started);
        }
        let started = state.as_ref().and_then(|state| state.started.clone());
        Use { shared: self, started: Some(started.expect("the sandbox of this module did not start")) }
    }

    /// How many tests of this run are the module's: what this program lists for its own arguments, but for the ignored ones.
    fn planned(&self) -> usize {
        let (_crate, module) = self.module.split_once("::").expect("a module of the test program");
        let listed = |which: &[&str]| {
            let mut list = Command::new(std::env::current_exe().expect("/proc is mounted"));
            list.args(std::env::args_os().skip(1)).args(["--list", "--format", "terse"]).args(which);
            let list = crate::command::run(list).success().out();
            let tests = list.lines().filter_map(|line| line.strip_prefix(module));
            tests.filter(|rest| rest.starts_with("::")).count()
        };
        listed(&[]) - listed(&["--ignored"])
    }
}

/// A test's use of a shared sandbox.
pub struct Use<T: 'static> {
    shared: &'static Shared<T>,
    started: Option<Arc<T>>,
}

impl<T> Deref for Use<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.started.as_ref().expect("only drop takes it")
    }
}

impl<T> Drop for Use<T> {
    fn drop(&mut self) {
        self.started = None;
        let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = state.as_mut().expect("it is in use");
        state.users -= 1;
        if state.users == 0 {
            // Its end is that of the sandbox, whose own drop looks for what is left.
            state.started = None;
        }
    }
}
