//! docs/operations/deploy.md, followed word by word: its `sh` blocks are run as they stand, with the example
//! files, in a directory of their own. The page says how each further host repeats two steps; the second agent
//! is made like that.
//!
//! The examples have the paths of the units; the page itself says how they are moved for a trial on one machine.
//!
//! The page's addresses are used as they are: 127.0.0.x belongs to every machine. So this test needs the ports
//! 7440 to 7445 there, and says so where something has them.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use defib_lab::cluster::{Process, Program, wait_until};
use defib_lab::redfish::{MARKER, sweep};
use tempfile::TempDir;

use crate::rig::{AMPLE, Ran, ended, program, turn};
use tokio::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// Headings and their `sh` blocks.
fn blocks(page: &str) -> Vec<(String, String)> {
    let mut blocks = Vec::new();
    let (mut heading, mut block) = (String::new(), None::<String>);
    for line in page.lines() {
        match &mut block {
            None if line.starts_with("## ") => line.clone_into(&mut heading),
            None if line == "```sh" => block = Some(String::new()),
            None => {}
            Some(text) if line == "```" => {
                blocks.push((heading.clone(), std::mem::take(text)));
                block = None;
            }
            Some(text) => *text += &format!("{line}\n"),
        }
    }
    blocks
}

/// The walk's own directory, shell variables and background programs.
struct Walk {
    running: Vec<Process>,
    marker: String,
    work: TempDir,
    bin: PathBuf,
    /// `export` lines of earlier blocks: each block is a shell of its own.
    exports: String,
}

impl Walk {
    fn new() -> Self {
        let work = tempfile::tempdir().unwrap();
        symlink(root().join("deploy"), work.path().join("deploy")).unwrap();
        let bin = program("defib").parent().unwrap().to_owned();
        let marker = format!("walk-{}", std::process::id());
        Self { running: Vec::new(), marker, work, bin, exports: String::new() }
    }

    /// Runs a block; what it puts into the background, this walk keeps.
    async fn follow(&mut self, block: &str) -> String {
        let (mut script, mut background) = (String::new(), Vec::new());
        for line in block.lines() {
            if let Some(command) = line.strip_suffix(" &") {
                background.push(command.to_owned());
            } else {
                if line.starts_with("export ") || line.starts_with("umask ") {
                    self.exports += &format!("{line}\n");
                }
                script += &format!("{line}\n");
            }
        }
        let out = self.shell(&script).await.done();
        for command in background {
            let words: Vec<&str> = command.split_whitespace().collect();
            let output = self.work.path().join(format!("{}.log", self.running.len()));
            // By the mark everything is found again that an agent of this walk started, its VMs too.
            let passed_on = match words.iter().position(|word| *word == "--config") {
                Some(at) if words[0] == "defib-agent" => {
                    format!("printf 'vm-environment: [{MARKER}]\\n' >> {}\n", words[at + 1])
                }
                _ => String::new(),
            };
            let script = format!(
                "set -eu\nunset DEFIB DEFIB_CONFIG BIN\ncd {}\n{}\n{}{passed_on}export {MARKER}={}\nexec {command}",
                self.work.path().display(),
                self.built(),
                self.exports,
                self.marker,
            );
            let start = Program {
                path: "/bin/sh".into(),
                arguments: vec!["-c".into(), script.into()],
                output,
                watched_input: false,
            };
            assert!(words[0].starts_with("defib"), "{command}");
            self.running.push(Process::start(&start).unwrap());
        }
        out
    }

    /// Where cargo puts what the page builds. The programs are found where the page installs them, or not at all.
    fn built(&self) -> String {
        format!("export BUILT={}", self.bin.display())
    }

    async fn shell(&self, script: &str) -> Ran {
        let mut command = Command::new("/bin/sh");
        let script = format!("set -eu\n{}\n{}{script}", self.built(), self.exports);
        command
            .args(["-c", &script])
            .current_dir(self.work.path())
            .env_remove("DEFIB_CONFIG")
            .env_remove("BIN")
            .env_remove("DEFIB");
        ended(command).await
    }

    /// Waits until a command prints all of these.
    async fn wait_for(&self, script: &str, wanted: &[&str]) -> String {
        let out = std::cell::RefCell::new(String::new());
        wait_until(&format!("{script} says {wanted:?}"), AMPLE, || async {
            let ran = self.shell(script).await;
            anyhow::ensure!(wanted.iter().all(|word| ran.out.contains(word)), "{ran:?}");
            *out.borrow_mut() = ran.out;
            Ok(())
        })
        .await
        .unwrap();
        out.into_inner()
    }
}

impl Drop for Walk {
    fn drop(&mut self) {
        self.running.clear();
        sweep(&self.marker);
    }
}

fn assert_ports_are_free() {
    for (host, ports) in
        [(1, 7440..=7444), (2, 7440..=7444), (3, 7440..=7444), (11, 7445..=7445), (12, 7445..=7445)]
    {
        for port in ports {
            let address = format!("127.0.0.{host}:{port}");
            if let Err(error) = TcpListener::bind(&address) {
                panic!("{address} of the walk-through can't be had: {error}; stop what listens there");
            }
        }
    }
}

/// What stands behind a key, in a unit or in YAML, as often as it is there.
fn values<'a>(text: &'a str, key: &'static str) -> impl Iterator<Item = &'a str> {
    text.lines().filter_map(move |line| line.trim().strip_prefix(key)).map(str::trim)
}

/// All words of a file that are paths or end like files, whatever they stand behind; comments are none.
fn paths(text: &str) -> Vec<&str> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .flat_map(|line| line.split([' ', ',', '{', '}', '"']))
        .filter(|word| word.contains('/'))
        .collect()
}

#[test]
fn the_paths_of_the_examples_are_those_that_the_units_give_and_allow() {
    let read = |name: &str| fs::read_to_string(root().join("deploy").join(name)).unwrap();
    let page = fs::read_to_string(root().join("docs/operations/deploy.md")).unwrap();
    for (unit, config, examples) in [
        ("defibd", "/etc/defib/replica.yaml", &["replica-1.yaml", "replica-2.yaml", "replica-3.yaml"][..]),
        ("defib-agent", "/etc/defib/agent.yaml", &["agent.yaml"]),
    ] {
        let unit = read(&format!("systemd/{unit}.service"));
        let value =
            |key: &'static str| values(&unit, key).next().unwrap_or_else(|| panic!("no {key} in {unit}"));
        assert!(value("ExecStart=").ends_with(&format!(" --config {config}")), "{unit}");
        assert_eq!((value("ProtectSystem="), value("ReadOnlyPaths=")), ("strict", "/etc/defib"));
        let installed = format!("deploy/examples/{} {config}", examples[0]);
        assert!(page.contains(&installed), "the page does not say: install {installed}");
        let state = Path::new("/var/lib").join(value("StateDirectory="));
        let run = values(&unit, "RuntimeDirectory=").next().map(|name| Path::new("/run").join(name));
        for name in examples {
            let example = read(&format!("examples/{name}"));
            for (key, base) in
                [("data-dir:", Some(&state)), ("state-dir:", Some(&state)), ("run-dir:", run.as_ref())]
            {
                for path in values(&example, key) {
                    let base =
                        base.unwrap_or_else(|| panic!("{name}: the unit makes no directory for {key}"));
                    assert!(Path::new(path).starts_with(base), "{name}: {key} {path} is not in {base:?}");
                }
            }
            let own = |path: &Path| {
                path.starts_with(&state) || run.as_ref().is_some_and(|run| path.starts_with(run))
            };
            assert!(example.contains("certificate: /etc/defib/tls/tls.crt\n"), "{name}");
            let all = paths(&example);
            assert!(all.len() >= 4, "{name}: {all:?}");
            for path in all {
                let path = Path::new(path);
                assert!(
                    path.starts_with("/etc/defib") || own(path),
                    "{name}: the unit does not allow {path:?}"
                );
            }
        }
    }
    for unit in ["defibd", "defib-agent", "defib-shutdown"] {
        let unit = read(&format!("systemd/{unit}.service"));
        for program in unit.lines().filter_map(|line| line.split_once("/usr/bin/")).map(|(_, rest)| rest) {
            let name = program.split(' ').next().unwrap();
            let installed = page.lines().any(|line| {
                line.contains("install -D -m 0755") && line.contains(&format!("\"$BUILT/{name}\""))
            });
            assert!(installed && page.contains("BIN=/usr/bin"), "the page does not install {name}");
        }
    }
    let operator = read("examples/operator.yaml");
    assert!(paths(&operator).iter().all(|path| path.starts_with("/etc/defib/operator/")), "{operator}");
}

#[tokio::test]
async fn the_walk_through_works_as_it_is_written_with_three_replicas_and_two_agents() {
    let _turn = turn().await;
    assert_ports_are_free();
    let page = fs::read_to_string(root().join("docs/operations/deploy.md")).unwrap();
    let blocks = blocks(&page);
    assert!(blocks.len() >= 10, "{blocks:?}");
    let mut walk = Walk::new();
    let mut told = String::new();
    let mut per_host = Vec::new();
    for (heading, block) in &blocks {
        if ["## 4. ", "## 5. ", "## 6. "].iter().any(|step| heading.starts_with(step)) {
            per_host.push(block.clone());
        }
        if heading.starts_with("## 4. ") || heading.starts_with("## 7. ") {
            // A person takes longer than an election.
            for replica in 0..3 {
                crate::rig::wait_for_text(&walk.work.path().join(format!("{replica}.log")), "role=").await;
            }
            let leads = |replica: usize| {
                let log = walk.work.path().join(format!("{replica}.log"));
                fs::read_to_string(log).unwrap_or_default().contains("role=Leader")
            };
            wait_until("somebody leads", AMPLE, || async {
                anyhow::ensure!((0..3).any(leads), "nobody does");
                Ok(())
            })
            .await
            .unwrap();
        }
        told = walk.follow(block).await;
    }
    assert!(told.contains("leads") && told.contains("h1"), "the last block shows the cluster: {told}");
    assert_eq!(walk.running.len(), 4, "three replicas and an agent");
    walk.wait_for("defib host list", &["h1", "in-use", "r1 alive, r2 alive, r3 alive"]).await;

    // The second host: "each further host repeats the steps".
    for (from, to) in [("agent.yaml", "agent-2.yaml"), ("inventory.yaml", "inventory-2.yaml")] {
        let text = fs::read_to_string(root().join("deploy/examples").join(from)).unwrap();
        let text = if from == "agent.yaml" {
            text.replace("h1", "h2").replace("127.0.0.11", "127.0.0.12")
        } else {
            let (_, host) = text.split_once("hosts:\n").unwrap();
            let second =
                host.replace("h1", "h2").replace("\"r1\"", "\"r2\"").replace("127.0.0.11", "127.0.0.12");
            let vm = "vms:\n  - id: vm-1\n    resources: { cpu: 1, memory: 64MiB }\n    first-host: h2\n    driver: process\n    arguments: [\"sleep\", \"1000000\"]\n";
            format!("{text}{second}{vm}")
        };
        fs::write(walk.work.path().join(to), text).unwrap();
    }
    walk.follow("defib inventory check inventory-2.yaml\ndefib inventory apply inventory-2.yaml\n").await;
    walk.wait_for("defib host list", &["h2", "never-seen"]).await;
    for block in &per_host {
        let block = block.replace("h1", "h2").replace("deploy/examples/agent.yaml", "agent-2.yaml");
        walk.follow(&block).await;
    }
    walk.wait_for("defib host list", &["h2", "in-use"]).await;
    walk.wait_for("defib vm show vm-1", &["running", "h2"]).await;
    let status = walk.shell("defib status").await.done();
    assert!(status.contains("2 in use of 2"), "{status}");

    // A token is used up by its host, and is not in any file any more.
    let again = per_host.first().unwrap().replace("h1", "h3");
    walk.follow(&again).await;
    walk.follow("cp \"$DEFIB/h3.token\" kept.token\n").await;
    walk.follow("defib-agent join --token-file kept.token --out \"$DEFIB/h3/tls\"\n").await;
    let said =
        walk.shell("defib-agent join --token-file kept.token --out \"$DEFIB/h3b/tls\"\n").await.failed(1);
    assert!(said.contains("used"), "{said}");

    // The host shuts down in the documented way: its VM is stopped first, and restarts on the other host.
    let bye = walk.shell("defib-agent --config \"$DEFIB/h2.yaml\" goodbye --shutdown --dry-run").await.done();
    assert!(bye.contains("dry run: all VMs of this host would be stopped"), "{bye}");
    let bye = walk.shell("defib-agent --config \"$DEFIB/h2.yaml\" goodbye --shutdown").await.done();
    assert!(bye.contains("all VMs are stopped"), "{bye}");
    walk.wait_for("defib vm show vm-1", &["running", "h1"]).await;
    for mut process in std::mem::take(&mut walk.running) {
        process.stop(Duration::from_secs(20));
    }
    assert_eq!(
        sweep(&walk.marker),
        1,
        "stopping an agent leaves its VM running, and nothing else of ours runs"
    );
    crate::rig::assert_no_panic(walk.work.path());
}
