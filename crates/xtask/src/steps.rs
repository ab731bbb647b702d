//! Named, timed steps. A failed one does not keep the next from running: one call shows all that is wrong.

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

/// What was done so far.
#[derive(Debug, Default)]
pub(crate) struct Steps {
    done: Vec<Done>,
}

#[derive(Debug)]
struct Done {
    name: String,
    took: Duration,
    /// `None`: it went well.
    failure: Option<String>,
}

impl Steps {
    /// Runs `command` as a step; its output goes where ours goes.
    pub(crate) fn command(&mut self, name: &str, command: &mut Command) {
        let program = Path::new(command.get_program()).file_name().unwrap_or_default();
        let words = std::iter::once(program).chain(command.get_args());
        let line = words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
        self.step(name, &line, || match command.status() {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(format!("`{line}` ended with {status}")),
            Err(error) => Err(format!("`{line}` can't be started: {error}")),
        });
    }

    /// Runs `work` as a step.
    pub(crate) fn step(&mut self, name: &str, what: &str, work: impl FnOnce() -> Result<(), String>) {
        eprintln!("==> {name}: {what}");
        let begin = now();
        let failure = work().err();
        self.done.push(Done { name: name.to_owned(), took: now().duration_since(begin), failure });
    }

    /// Whether nothing failed so far.
    pub(crate) fn all_well(&self) -> bool {
        self.done.iter().all(|done| done.failure.is_none())
    }

    /// One line per step, and the exit code.
    pub(crate) fn finish(self) -> ExitCode {
        eprint!("\n{}", self.summary());
        if self.all_well() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    fn summary(&self) -> String {
        let mut text = String::new();
        for done in &self.done {
            let verdict =
                done.failure.as_deref().map_or_else(|| "ok".to_owned(), |why| format!("FAILED: {why}"));
            text += &format!("{:<8} {:>7.1} s  {verdict}\n", done.name, done.took.as_secs_f64());
        }
        text
    }
}

#[expect(clippy::disallowed_methods, reason = "how long a developer waited; nothing depends on it")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_step_fails_the_whole_but_the_next_still_runs() {
        let mut steps = Steps::default();
        steps.command("bad", &mut Command::new("false"));
        steps.command("missing", &mut Command::new("/nowhere/such-a-program"));
        let mut ran = false;
        steps.step("good", "runs", || {
            ran = true;
            Ok(())
        });
        assert!(ran && !steps.all_well());
        let summary = steps.summary();
        let lines: Vec<&str> = summary.lines().collect();
        assert!(
            lines[0].starts_with("bad") && lines[0].contains("FAILED: `false` ended with exit status: 1")
        );
        assert!(lines[1].contains("`such-a-program` can't be started"), "{}", lines[1]);
        assert!(lines[2].ends_with("ok"));
        assert_eq!(steps.finish(), ExitCode::FAILURE);
    }

    #[test]
    fn steps_that_go_well_end_well() {
        let mut steps = Steps::default();
        steps.command("good", &mut Command::new("true"));
        assert!(steps.all_well());
        assert_eq!(steps.finish(), ExitCode::SUCCESS);
    }
}
