//! What all of these tests need: programs that are run to their end, and clusters, one at a time.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use defib_lab::clock::monotonic_ns;
use defib_lab::cluster::{Cluster, Options, Profile, Size, binary, wait_until};
use defib_model::{Event, EventKind, HostId, Millis, Policy, inventory::Host};
use defib_observe::documents::inventory_to_yaml;
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::timeout;

/// Longer than anything takes that is expected to work, on any machine.
pub(crate) const AMPLE: Duration = Duration::from_secs(90);

static TURN: Mutex<()> = Mutex::const_new(());

/// One of our programs, built before.
pub(crate) fn program(name: &str) -> PathBuf {
    binary(None, name).unwrap()
}

/// How a program ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    /// It did what was asked; what it printed.
    #[track_caller]
    pub(crate) fn done(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.out
    }

    /// It failed with this code and without a panic; what it complained of.
    #[track_caller]
    pub(crate) fn failed(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(!self.err.contains("panicked") && !self.err.is_empty(), "{self:?}");
        self.err
    }
}

/// Runs a program to its end.
pub(crate) async fn run<I>(name: &str, arguments: I) -> Ran
where
    I: IntoIterator,
    I::Item: AsRef<OsStr>,
{
    let mut command = Command::new(program(name));
    command.args(arguments);
    ended(command).await
}

/// Waits for the end of a program.
pub(crate) async fn ended(mut command: Command) -> Ran {
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(AMPLE, command.output()).await.unwrap_or_else(|_| panic!("{command:?} hangs"));
    let output = output.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// Waits for the turn to use this machine's ports and cores. Clusters that run beside each other disturb each other.
pub(crate) async fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().await
}

/// The smallest cluster.
pub(crate) const SMALL: Size = Size { hosts: 5, victim_vms: 3, other_vms: 1 };

/// The fast profile, with observers that soon trust themselves.
pub(crate) fn quick() -> Policy {
    let mut policy = Policy::fast();
    policy.detection.start_grace = Millis(500);
    policy
}

/// A running cluster, whole.
pub(crate) struct Rig {
    // First: the cluster must be gone before its directory and its turn.
    pub(crate) cluster: Cluster,
    _work: TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Rig {
    /// A small and quick cluster.
    pub(crate) async fn small() -> Self {
        Self::with(SMALL, quick()).await
    }

    /// With this policy.
    pub(crate) async fn with(size: Size, policy: Policy) -> Self {
        Self::behind(size, policy, false).await
    }

    /// With this policy, and a switch between hosts and replicas if `relayed`.
    pub(crate) async fn behind(size: Size, policy: Policy, relayed: bool) -> Self {
        Self::build(|options| (options.size, options.policy, options.relayed) = (size, policy, relayed)).await
    }

    /// With these options.
    pub(crate) async fn build(choose: impl FnOnce(&mut Options)) -> Self {
        let turn = turn().await;
        let work = tempfile::tempdir().unwrap();
        let mut options = Options::new(work.path().join("cluster"), Profile::Fast);
        choose(&mut options);
        let cluster = Cluster::start(options).await.unwrap();
        cluster.settle(AMPLE).await.unwrap();
        Self { cluster, _work: work, _turn: turn }
    }

    /// A file of the cluster's directory.
    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.cluster.directory().join(name)
    }

    /// Writes a file into the cluster's directory.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// Runs `defib` as the cluster's operator.
    pub(crate) async fn defib<const N: usize>(&self, arguments: [&str; N]) -> Ran {
        self.defib_list(&arguments).await
    }

    /// Runs `defib` as the cluster's operator.
    pub(crate) async fn defib_list(&self, arguments: &[&str]) -> Ran {
        let mut all: Vec<OsString> = vec!["--config".into(), self.path("operator.yaml").into()];
        all.extend(arguments.iter().map(OsString::from));
        run("defib", all).await
    }

    /// What `defib --output json` printed.
    pub(crate) async fn json(&self, arguments: &[&str]) -> Value {
        let mut all = vec!["--output", "json"];
        all.extend(arguments);
        let out = self.defib_list(&all).await.done();
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {out}"))
    }

    /// Declares hosts, like the others, that nobody ever starts.
    pub(crate) async fn declare_unseen(&self, names: &[&str]) {
        let mut inventory = self.cluster.inventory().clone();
        let pattern = inventory.hosts.values().next().unwrap().clone();
        for (at, name) in names.iter().enumerate() {
            let id = HostId::new(name).unwrap();
            let neighbour_address = Some(format!("127.0.0.1:{}", at + 1));
            let host = Host { id: id.clone(), fencing: Vec::new(), neighbour_address, ..pattern.clone() };
            inventory.hosts.insert(id, host);
        }
        let file = self.write("with-unseen.yaml", &inventory_to_yaml(&inventory));
        self.defib(["inventory", "apply", file.to_str().unwrap()]).await.done();
    }

    /// Versions of policy and inventory, and the newest event but those of elections and observers.
    pub(crate) async fn versions(&self) -> (Value, Value) {
        let status = self.json(&["status"]).await;
        (status["policy_version"].clone(), status["inventory_version"].clone())
    }

    /// Waits until `defib` prints a text.
    pub(crate) async fn wait_for(&self, arguments: &[&str], wanted: &str) -> String {
        let mut last = String::new();
        let seen = &mut last;
        let cell = std::cell::RefCell::new(seen);
        wait_until(&format!("defib {arguments:?} says {wanted:?}"), AMPLE, || async {
            let ran = self.defib_list(arguments).await;
            let found = ran.out.contains(wanted);
            let shown = format!("{}{}", ran.out, ran.err);
            **cell.borrow_mut() = shown.clone();
            anyhow::ensure!(found, "it says: {shown}");
            Ok(())
        })
        .await
        .unwrap();
        last
    }

    /// Waits until `defib` does not print a text any more.
    pub(crate) async fn wait_for_not(&self, arguments: &[&str], gone: &str) {
        wait_until(&format!("defib {arguments:?} no longer says {gone:?}"), AMPLE, || async {
            let told = self.defib_list(arguments).await.done();
            anyhow::ensure!(!told.contains(gone), "it says: {told}");
            Ok(())
        })
        .await
        .unwrap();
    }

    /// All events, as `defib events` prints them.
    pub(crate) async fn events(&self) -> Vec<Event> {
        let out = self.defib(["--output", "json", "events"]).await.done();
        out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// What operators did, as the stream tells it: who, what and why.
    pub(crate) async fn acted(&self) -> Vec<(String, String, String)> {
        let acted = |event: Event| match event.kind {
            EventKind::OperatorActed { operator, action } => Some((operator.name, action, operator.reason)),
            _ => None,
        };
        self.events().await.into_iter().filter_map(acted).collect()
    }

    /// Prints what hosts and replicas tell, for whoever must find out why a test failed.
    pub(crate) async fn tell_all(&self) {
        for host in self.cluster.host_names() {
            let log = fs::read_to_string(self.path(format!("hosts/{host}/host.log"))).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(20).collect();
            println!("{host}, its last lines first: {tail:#?}");
        }
        for event in self.events().await {
            println!("{:>8} ms  {}", event.at.0, event.kind);
        }
    }

    /// Waits until a host runs an agent.
    pub(crate) async fn wait_for_agent(&self, host: &str) {
        wait_until("the agent is there", AMPLE, || async { self.cluster.agent_pid(host).await.map(drop) })
            .await
            .unwrap();
    }

    /// Waits until a host runs no agent.
    pub(crate) async fn wait_for_no_agent(&self, host: &str) {
        wait_until("the agent is gone", AMPLE, || async {
            anyhow::ensure!(self.cluster.agent_pid(host).await.is_err(), "the agent of {host} still runs");
            Ok(())
        })
        .await
        .unwrap();
    }

    /// Nothing in any log says that a program of ours panicked, and no replica ended by itself.
    pub(crate) fn assert_calm(&mut self) {
        assert_eq!(self.cluster.fallen_replicas(), Vec::<String>::new());
        assert_no_panic(self.cluster.directory());
    }
}

/// No log below this directory tells of a panic.
pub(crate) fn assert_no_panic(directory: &Path) {
    let mut logs = 0;
    let mut folders = vec![directory.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.file_type().unwrap().is_dir() {
                folders.push(path);
            } else if name == "log" || name.ends_with(".log") {
                let text = fs::read_to_string(&path).unwrap();
                assert!(!text.contains("panicked at"), "{}: {text}", path.display());
                logs += 1;
            }
        }
    }
    assert!(logs > 0, "no log was found below {}", directory.display());
}

/// Waits until a text stands in a file.
pub(crate) async fn wait_for_text(path: &Path, wanted: &str) -> String {
    wait_until(&format!("{wanted:?} in {}", path.display()), AMPLE, || async {
        let text = fs::read_to_string(path).unwrap_or_default();
        let tail: Vec<&str> = text.lines().rev().take(10).collect();
        anyhow::ensure!(text.contains(wanted), "it ends with {tail:?}");
        Ok(())
    })
    .await
    .unwrap();
    fs::read_to_string(path).unwrap()
}

/// Lets time pass, as an outage takes it.
pub(crate) async fn wait_out(time: Millis) {
    let until = monotonic_ns() + time.0 * 1_000_000;
    wait_until("the time is over", AMPLE, || async {
        anyhow::ensure!(monotonic_ns() >= until, "not yet");
        Ok(())
    })
    .await
    .unwrap();
}
