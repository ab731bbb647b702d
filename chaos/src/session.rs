//! Many runs, one after the other, and what is told of them.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use defib_lab::clock::{millis_between, monotonic_ns};
use tokio::sync::oneshot;

use crate::chance::mixed;
use crate::machines::Ground;
use crate::play::play;
use crate::replicas;
use crate::report::{Report, Run};
use crate::scenario::Scenario;

/// What is to be played.
#[derive(Debug)]
pub(crate) struct Order {
    /// These …
    pub(crate) scenarios: Vec<Scenario>,
    /// … so often …
    pub(crate) repeat: u32,
    /// … or, in an order that the seed decides, for so long.
    pub(crate) time: Option<Duration>,
    /// Decides what is left to chance.
    pub(crate) seed: u64,
    /// Where reports go.
    pub(crate) report: Option<PathBuf>,
    /// Where the programs are.
    pub(crate) programs: Option<PathBuf>,
}

impl Order {
    /// That it makes sense, and that reports can be written.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        ensure!(!self.scenarios.is_empty(), "there is nothing to play");
        ensure!(self.repeat > 0, "--repeat: once at least");
        for scenario in &self.scenarios {
            replicas::check(&scenario.lab).with_context(|| scenario.name.clone())?;
        }
        if let Some(directory) = &self.report {
            std::fs::create_dir_all(directory)
                .with_context(|| format!("--report: {} can't be made", directory.display()))?;
        }
        Ok(())
    }

    /// Which scenario comes at a place; `None`: it is over.
    fn at(&self, place: usize, began_ns: u64) -> Option<&Scenario> {
        let count = self.scenarios.len();
        let Some(time) = self.time else {
            // All once, then all once more: what goes wrong with time shows in every one of them.
            return (place < count * self.repeat as usize)
                .then(|| self.scenarios.get(place % count))
                .flatten();
        };
        let over = millis_between(began_ns, monotonic_ns()) >= time.as_secs_f64() * 1000.0;
        let number = usize::try_from(mixed(self.seed, place as u64) % count as u64).unwrap_or(0);
        (!over).then(|| self.scenarios.get(number)).flatten()
    }
}

/// Plays, within the namespaces.
#[derive(Debug)]
pub(crate) struct Session;

impl Session {
    /// Plays everything, and answers with the exit code.
    ///
    /// # Errors
    /// When nothing can be played at all, or reports can't be written.
    pub(crate) async fn play(directory: &Path, order: Order, say: impl Fn(&str)) -> anyhow::Result<ExitCode> {
        let stop = watch_leash()?;
        let ground = Ground::build(directory)?;
        let mut report = Report::new(order.seed);
        let all = async {
            let began = monotonic_ns();
            let mut place = 0;
            while let Some(scenario) = order.at(place, began) {
                // Whoever asks for this scenario with this seed gets this run.
                let seed = order.seed.wrapping_add(place as u64);
                let room = directory.join(format!("run-{}", place + 1));
                let run = play(&ground, &room, order.programs.as_ref(), scenario, seed).await;
                say(&run.line(place + 1));
                for problem in &run.problems {
                    say(&format!("      {problem}"));
                }
                keep_or_remove(&room, &run, order.report.as_deref(), &say);
                report.runs.push(run);
                place += 1;
                // After each: whoever is killed has what there was.
                if let Some(to) = &order.report {
                    report.write(to)?;
                }
            }
            anyhow::Ok(())
        };
        tokio::select! {
            done = all => done?,
            _ = stop => return Ok(ExitCode::from(130)),
        }
        say(&report.summary());
        Ok(if report.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// Logs of a run that failed are kept beside the report; everything else goes.
fn keep_or_remove(room: &Path, run: &Run, report: Option<&Path>, say: &impl Fn(&str)) {
    if let Some(report) = report.filter(|_| !run.passed) {
        let to = report.join(format!("logs-{}-{}", run.scenario, run.seed));
        match copy_logs(room, &to) {
            Ok(()) => say(&format!("      logs: {}", to.display())),
            Err(error) => say(&format!("      its logs can't be kept: {error}")),
        }
    }
    for directory in [room.to_owned(), room.with_extension("shared")] {
        // Mounts within go first.
        let mounted = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let inside = mounted.lines().filter_map(|line| line.split(' ').nth(1));
        for mount in inside.filter(|mount| Path::new(mount).starts_with(&directory)) {
            let _ = nix::mount::umount2(mount, nix::mount::MntFlags::MNT_DETACH);
        }
        if directory.exists()
            && let Err(error) = std::fs::remove_dir_all(&directory)
        {
            tracing::warn!(directory = %directory.display(), %error, "not removed");
        }
    }
}

fn copy_logs(from: &Path, to: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(from)? {
        let path = entry?.path();
        let Some(name) = path.file_name() else { continue };
        if path.is_dir() {
            copy_logs(&path, &to.join(name))?;
            continue;
        }
        let is_log = ["log", "out", "yaml", "requests"]
            .iter()
            .any(|end| path.extension().is_some_and(|extension| extension == *end) || name == *end);
        if is_log {
            std::fs::create_dir_all(to)?;
            std::fs::copy(&path, to.join(name))?;
        }
    }
    Ok(())
}

/// Fires when the one who waits for us outside is gone or wants us to stop.
fn watch_leash() -> anyhow::Result<oneshot::Receiver<()>> {
    let (tell, stop) = oneshot::channel();
    std::thread::Builder::new().name("leash".to_owned()).spawn(move || {
        let mut buffer = [0; 64];
        while matches!(std::io::stdin().read(&mut buffer), Ok(1..)) {}
        let _ = tell.send(());
    })?;
    Ok(stop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(repeat: u32, time: Option<Duration>) -> Order {
        let text = "about: $who\neach: { who: [r1, r2, r3] }\nsteps:\n  - kill: $who\n";
        let scenarios = Scenario::read("k.yaml", text).unwrap();
        Order { scenarios, repeat, time, seed: 5, report: None, programs: None }
    }

    #[test]
    fn all_come_once_before_any_comes_again() {
        let order = order(2, None);
        let names: Vec<&str> =
            (0..).map_while(|place| order.at(place, 0)).map(|scenario| scenario.name.as_str()).collect();
        assert_eq!(names, ["k.r1", "k.r2", "k.r3", "k.r1", "k.r2", "k.r3"]);
    }

    #[test]
    fn a_soak_has_an_order_of_its_own_until_the_time_is_up() {
        let soak = order(1, Some(Duration::from_secs(3600)));
        let now = monotonic_ns();
        let names = || -> Vec<String> {
            (0..40).filter_map(|place| soak.at(place, now)).map(|scenario| scenario.name.clone()).collect()
        };
        let all: std::collections::BTreeSet<String> = names().into_iter().collect();
        assert_eq!((names().len(), all.len()), (40, 3));
        assert_eq!(names(), names());
        assert!(order(1, Some(Duration::ZERO)).at(0, now).is_none());
    }
}
