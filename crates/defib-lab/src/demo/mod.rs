//! The demo: scenarios that break things, and what comes out.

pub mod narrator;
pub mod peers;
pub mod report;
mod scenarios;
mod stage;

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::bail;

use crate::cluster::{Cluster, Options, Profile, Size};
use narrator::{Narrator, Tone};
use report::{Outcome, Report};
use stage::Stage;

/// What can be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scenario {
    /// The plug of a host is pulled.
    PowerCut,
    /// A host stops in the middle of everything, powered.
    FrozenHost,
    /// A host and its BMC lose power.
    DarkBmc,
    /// The leader is killed in the middle of a recovery.
    LeaderKilled,
    /// The plugs of a whole rack are pulled.
    Rack,
    /// All replicas are killed at once.
    AllReplicasKilled,
    /// A switch cuts all hosts from all replicas.
    SwitchCut,
}

impl Scenario {
    /// All, in the order in which they are shown.
    pub const ALL: [Self; 7] = [
        Self::PowerCut,
        Self::FrozenHost,
        Self::DarkBmc,
        Self::LeaderKilled,
        Self::Rack,
        Self::AllReplicasKilled,
        Self::SwitchCut,
    ];

    /// Its name on the command line and in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::PowerCut => "power-cut",
            Self::FrozenHost => "frozen-host",
            Self::DarkBmc => "dark-bmc",
            Self::LeaderKilled => "leader-killed",
            Self::Rack => "rack",
            Self::AllReplicasKilled => "all-replicas-killed",
            Self::SwitchCut => "switch-cut",
        }
    }

    /// What happens, in a line.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::PowerCut => {
                "somebody pulls the plug of a host that runs a control-plane VM and VMs of all priorities"
            }
            Self::FrozenHost => {
                "a host freezes but keeps its power: its BMC says On, so it must be fenced first"
            }
            Self::DarkBmc => {
                "a host loses power together with its BMC: only its expired lease can prove its death"
            }
            Self::LeaderKilled => "a host dies, and the leader is killed with -9 once the death is proven",
            Self::Rack => "both hosts of a rack lose power at once",
            Self::AllReplicasKilled => {
                "all three replicas are killed at once, for longer than leases last; nothing may stop"
            }
            Self::SwitchCut => {
                "a switch cuts all hosts from all replicas, for longer than leases last; nothing may stop"
            }
        }
    }
}

impl FromStr for Scenario {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|scenario| scenario.name() == text).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|scenario| scenario.name()).collect();
            format!("there is no scenario {text:?}; there are {}", names.join(", "))
        })
    }
}

/// What to show and how.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Which, in order.
    pub scenarios: Vec<Scenario>,
    /// Hosts of each cluster.
    pub hosts: usize,
    /// The policy's profile.
    pub profile: Profile,
    /// A directory of our own, for everything.
    pub work_dir: PathBuf,
    /// Where the programs are; `None`: beside this one.
    pub binaries: Option<PathBuf>,
    /// Leave the last cluster running.
    pub keep: bool,
}

/// Shows all scenarios, each on a cluster of its own. The last cluster is returned if it is to be kept.
///
/// # Errors
/// When a cluster can't even be built. A scenario that goes wrong is an outcome.
pub async fn show(settings: &Settings, narrator: &mut Narrator) -> anyhow::Result<(Report, Option<Cluster>)> {
    let profile = match settings.profile {
        Profile::Default => "default",
        Profile::Fast => "fast",
    };
    let mut report = Report { scenarios: Vec::new(), hosts: settings.hosts, profile: profile.to_owned() };
    if settings.scenarios.is_empty() {
        bail!("there is nothing to show; --list names the scenarios");
    }
    let mut kept = None;
    for (number, scenario) in settings.scenarios.iter().enumerate() {
        narrator.title(scenario.name(), scenario.text());
        let mut options = Options::new(settings.work_dir.join(scenario.name()), settings.profile);
        options.size = Size { hosts: settings.hosts, ..Size::default() };
        options.relayed = *scenario == Scenario::SwitchCut;
        options.binaries.clone_from(&settings.binaries);
        let mut stage = Stage::build(options, narrator).await?;
        let played = scenarios::play(*scenario, &mut stage).await;
        let (outcome, cluster) = stage.finish(*scenario, played).await;
        tell(narrator, &outcome);
        report.scenarios.push(outcome);
        if settings.keep && number + 1 == settings.scenarios.len() {
            kept = Some(cluster);
        }
    }
    Ok((report, kept))
}

fn tell(narrator: &mut Narrator, outcome: &Outcome) {
    for problem in &outcome.problems {
        narrator.say(Tone::Bad, &format!("FAILED: {problem}"));
    }
    let held = outcome.invariants.values().filter(|held| **held).count();
    let text = format!("{held} of {} invariants held", outcome.invariants.len());
    narrator.say(if outcome.passed { Tone::Good } else { Tone::Bad }, &text);
}

/// How to use a cluster that was left running, and how to stop it.
#[must_use]
pub fn how_to_use(cluster: &Cluster, work_dir: &Path, programs: Option<&Path>) -> String {
    let config = cluster.directory().join("operator.yaml");
    let program = |name: &str| match programs {
        Some(directory) => directory.join(name).display().to_string(),
        None => name.to_owned(),
    };
    let defib = program("defib");
    let mut text = format!(
        "The cluster runs on, in {}. Use it:\n\n    export DEFIB_CONFIG={}\n",
        cluster.directory().display(),
        config.display()
    );
    for command in
        ["status", "host list", "vm list", "recovery list --all", "events --follow", "plan fail-host h3"]
    {
        text.push_str(&format!("    {defib} {command}\n"));
    }
    text.push_str(&format!("\nStop it:\n\n    {} --stop {}\n", program("defib-demo"), work_dir.display()));
    text
}
