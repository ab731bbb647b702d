//! Named, timed steps. A failed one does not keep the next from running: one call shows all that is wrong.

use std::io::{self, Write as _};
use std::path::Path;
use std::process::{Command, ExitCode, Output};
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

    /// Runs commands beside each other, a step each. The output of the first goes where ours goes; that of the others
    /// is shown when it has ended.
    pub(crate) fn together(&mut self, commands: &mut [(&str, &mut Command)]) {
        let Some(((name, first), others)) = commands.split_first_mut() else { return };
        std::thread::scope(|scope| {
            let others: Vec<_> = others
                .iter_mut()
                .map(|(name, command)| {
                    let begin = now();
                    let work = move || (command.output(), now().duration_since(begin));
                    (*name, scope.spawn(work))
                })
                .collect();
            self.command(name, first);
            for (name, thread) in others {
                let Ok((output, took)) = thread.join() else { continue };
                self.done.push(Done { name: name.to_owned(), took, failure: told(name, output) });
            }
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

/// Shows what a command has printed; why it failed, if it did.
fn told(name: &str, output: io::Result<Output>) -> Option<String> {
    match output {
        Ok(output) => {
            eprintln!("==> {name}: what it printed");
            let _ = io::stdout().write_all(&output.stdout);
            let _ = io::stderr().write_all(&output.stderr);
            (!output.status.success()).then(|| format!("ended with {}", output.status))
        }
        Err(error) => Some(format!("can't be started: {error}")),
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
    fn commands_run_beside_each_other_and_each_may_fail() {
        let mut steps = Steps::default();
        // Neither ends before the other has begun.
        let directory = std::env::temp_dir().join(format!("xtask-together-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("made");
        let meet = |mine: &str, other: &str| {
            let script = format!("touch {mine}; until [ -e {other} ]; do sleep 0.01; done; [ {mine} = a ]");
            let mut command = Command::new("timeout");
            command.args(["60", "sh", "-c", &script]).current_dir(&directory);
            command
        };
        steps.together(&mut [("first", &mut meet("a", "b")), ("second", &mut meet("b", "a"))]);
        std::fs::remove_dir_all(&directory).expect("removed");
        let summary = steps.summary();
        let lines: Vec<&str> = summary.lines().collect();
        assert!(lines[0].starts_with("first") && lines[0].ends_with("ok"), "{summary}");
        assert!(lines[1].starts_with("second") && lines[1].contains("exit status: 1"), "{summary}");
    }

    #[test]
    fn steps_that_go_well_end_well() {
        let mut steps = Steps::default();
        steps.command("good", &mut Command::new("true"));
        assert!(steps.all_well());
        assert_eq!(steps.finish(), ExitCode::SUCCESS);
    }
}
