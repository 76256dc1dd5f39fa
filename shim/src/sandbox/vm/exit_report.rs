//! How a VM ended, and what its console says of that.

/// How many lines of the guest's console are shown with an unexpected end.
const CONSOLE_LINES: usize = 3;

/// How the VM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ExitReport {
    /// One line.
    pub reason: String,
    /// The shim asked for it.
    pub requested: bool,
    /// The guest's last console lines, oldest first.
    pub console: Vec<String>,
}

impl ExitReport {
    /// The reason with what the guest's console says of it, in one line.
    #[must_use]
    pub(crate) fn line(&self) -> String {
        let console_lines: Vec<&str> = self.console_lines().collect();
        let panic = console_lines.iter().position(|line| line.contains("Kernel panic"));
        let telling = match panic {
            // What the agent said before its death is why the kernel lost its init.
            Some(at) => {
                let agent = console_lines[..at].iter().rposition(|line| line.starts_with("lazaret-agent"));
                agent.into_iter().chain([at]).map(|at| console_lines[at]).collect()
            }
            None => console_lines[console_lines.len().saturating_sub(CONSOLE_LINES)..].to_vec(),
        };
        if telling.is_empty() {
            self.reason.clone()
        } else {
            format!("{}; its console: {}", self.reason, telling.join(" | "))
        }
    }

    /// All that is left of the console, in one line, for the log.
    #[must_use]
    pub(crate) fn console_line(&self) -> String {
        self.console_lines().collect::<Vec<_>>().join(" | ")
    }

    /// The console's lines, without the kernel's time stamps.
    fn console_lines(&self) -> impl Iterator<Item = &str> {
        let bare = |line: &'_ str| -> usize {
            match line.strip_prefix('[').and_then(|rest| rest.find("] ")) {
                Some(end) if line[1..=end].trim().parse::<f64>().is_ok() => end + 3,
                _ => 0,
            }
        };
        let lines = self.console.iter().map(|line| line.trim());
        lines.map(move |line| line[bare(line)..].trim_start()).filter(|line| !line.is_empty())
    }
}

#[cfg(test)]
#[path = "exit_report_test.rs"]
mod tests;
