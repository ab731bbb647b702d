//! What is told of runs: as JSON, as JUnit's XML, and as a page with a picture of each.

mod html;
mod junit;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context;
use defib_lab::demo::peers::DEFAULTS;
use serde::Serialize;

use crate::figures::Spread;

/// Milliseconds from the first fault; `None`: it did not happen, or was not needed.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Figures {
    /// The first observer asked.
    pub(crate) suspicion: Option<f64>,
    /// A quorum condemned the host.
    pub(crate) verdict: Option<f64>,
    /// Its death was proven.
    pub(crate) proof: Option<f64>,
    /// QEMU of the first lost VM ran elsewhere: when its process was made, in ticks of 10 ms.
    pub(crate) first_process: Option<f64>,
    /// QEMU of the last one did; tiers start one after the other.
    pub(crate) last_process: Option<f64>,
    /// The first guest beat elsewhere.
    pub(crate) first_guest: Option<f64>,
    /// The last one did.
    pub(crate) last_guest: Option<f64>,
}

impl Figures {
    /// With their names, in the order in which they come.
    pub(crate) const fn named(&self) -> [(&'static str, Option<f64>); 7] {
        [
            ("suspicion", self.suspicion),
            ("verdict", self.verdict),
            ("proof", self.proof),
            ("first QEMU runs", self.first_process),
            ("first guest up", self.first_guest),
            ("last QEMU runs", self.last_process),
            ("last guest up", self.last_guest),
        ]
    }
}

/// What kind of thing it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum MomentKind {
    /// We broke something.
    Fault,
    /// We did something else.
    Step,
    /// An event of no further interest.
    Event,
    /// A verdict, or what follows from it.
    Verdict,
    /// A proof of death.
    Proof,
    /// A VM runs.
    Running,
}

/// Something that happened.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Moment {
    /// When, `CLOCK_MONOTONIC` nanoseconds.
    pub(crate) at_ns: u64,
    /// What kind.
    pub(crate) kind: MomentKind,
    /// In words.
    pub(crate) text: String,
}

/// The life of a guest.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Track {
    /// Which VM.
    pub(crate) vm: String,
    /// Where.
    pub(crate) host: String,
    /// Which incarnation.
    pub(crate) incarnation: u64,
    /// First beat.
    pub(crate) from_ns: u64,
    /// Last beat so far.
    pub(crate) to_ns: u64,
}

/// One run.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Run {
    /// Which scenario.
    pub(crate) scenario: String,
    /// In words.
    pub(crate) about: String,
    /// With which seed.
    pub(crate) seed: u64,
    /// Whether everything came as it must, and every invariant held.
    pub(crate) passed: bool,
    /// What did not.
    pub(crate) problems: Vec<String>,
    /// Which invariants held.
    pub(crate) invariants: BTreeMap<String, bool>,
    /// How long the lab took until everything ran.
    pub(crate) up_ms: f64,
    /// How long all of it took.
    pub(crate) took_ms: f64,
    /// How long the recovery took.
    pub(crate) figures: Figures,
    /// When the first fault was, `CLOCK_MONOTONIC` nanoseconds.
    pub(crate) fault_at_ns: u64,
    /// When the lives were read.
    pub(crate) ended_at_ns: u64,
    /// What was done, and what came.
    pub(crate) timeline: Vec<Moment>,
    /// Who ran where.
    pub(crate) tracks: Vec<Track>,
}

impl Run {
    /// One line.
    pub(crate) fn line(&self, number: usize) -> String {
        let ms = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.0}"));
        let (verdict, proof) = (ms(self.figures.verdict), ms(self.figures.proof));
        let (qemu, guest) = (ms(self.figures.first_process), ms(self.figures.last_guest));
        let word = if self.passed { "ok    " } else { "FAILED" };
        format!(
            "{number:>4} {word} {:<44} lab {:>4.1} s  verdict {verdict:>5}  proof {proof:>5}  first QEMU {qemu:>5}  last guest {guest:>5} ms  ({:.1} s, seed {})",
            self.scenario,
            self.up_ms / 1000.0,
            self.took_ms / 1000.0,
            self.seed
        )
    }
}

/// All runs.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Report {
    /// The seed of the first one; each next one has the next.
    pub(crate) seed: u64,
    /// In the order in which they were played.
    pub(crate) runs: Vec<Run>,
}

impl Report {
    /// Of nothing yet.
    pub(crate) const fn new(seed: u64) -> Self {
        Self { seed, runs: Vec::new() }
    }

    /// Whether everything passed, and anything was played at all.
    pub(crate) fn passed(&self) -> bool {
        !self.runs.is_empty() && self.runs.iter().all(|run| run.passed)
    }

    /// Runs in which a VM ran twice, and should not have.
    fn double_runs(&self) -> usize {
        let twice = |run: &&Run| run.invariants.get("I1") == Some(&false) && !run.passed;
        self.runs.iter().filter(twice).count()
    }

    /// Per scenario its runs, in the order of names.
    fn by_scenario(&self) -> BTreeMap<&str, Vec<&Run>> {
        let mut all: BTreeMap<&str, Vec<&Run>> = BTreeMap::new();
        for run in &self.runs {
            all.entry(&run.scenario).or_default().push(run);
        }
        all
    }

    /// How long each step took in these runs.
    fn spreads<'a>(runs: impl IntoIterator<Item = &'a Run> + Clone) -> Vec<(&'static str, Spread)> {
        let names = Figures::default().named().map(|(name, _)| name);
        let values =
            |number: usize| runs.clone().into_iter().filter_map(move |run| run.figures.named()[number].1);
        let spread = |(number, name)| Some((name, Spread::of(values(number))?));
        names.into_iter().enumerate().filter_map(spread).collect()
    }

    /// What is said at the end.
    pub(crate) fn summary(&self) -> String {
        let failed = self.runs.iter().filter(|run| !run.passed).count();
        let mut text = format!(
            "{} runs of {} scenarios: {} passed, {failed} failed; {} double runs\n",
            self.runs.len(),
            self.by_scenario().len(),
            self.runs.len() - failed,
            self.double_runs()
        );
        if let Some(up) = Spread::of(self.runs.iter().map(|run| run.up_ms).filter(|up| *up > 0.0)) {
            let _ = writeln!(text, "{}", spread_line("lab is up", &up));
        }
        for (name, spread) in Self::spreads(&self.runs) {
            let _ = writeln!(text, "{}", spread_line(name, &spread));
        }
        text.trim_end().to_owned()
    }

    /// Writes all forms into a directory.
    ///
    /// # Errors
    /// When one can't be written.
    pub(crate) fn write(&self, directory: &Path) -> anyhow::Result<()> {
        let write = |name: &str, text: String| {
            let path = directory.join(name);
            std::fs::write(&path, text).with_context(|| format!("can't write {}", path.display()))
        };
        write("report.json", self.json()?)?;
        write("junit.xml", junit::page(self))?;
        write("index.html", html::page(self))
    }

    /// Everything, and the spreads.
    fn json(&self) -> anyhow::Result<String> {
        let spreads = |runs: &[&Run]| -> BTreeMap<&str, Spread> {
            Self::spreads(runs.iter().copied()).into_iter().collect()
        };
        let scenarios: BTreeMap<&str, _> = self
            .by_scenario()
            .into_iter()
            .map(|(name, runs)| {
                let passed = runs.iter().filter(|run| run.passed).count();
                (name, serde_json::json!({ "runs": runs.len(), "passed": passed, "milliseconds": spreads(&runs) }))
            })
            .collect();
        let others: Vec<_> = DEFAULTS
            .iter()
            .map(|peer| {
                serde_json::json!({
                    "name": peer.name, "seconds": peer.seconds, "until": peer.until, "source": peer.source,
                })
            })
            .collect();
        let value = serde_json::json!({
            "others_by_default": others,
            "passed": self.passed(),
            "double_runs": self.double_runs(),
            "scenarios": scenarios,
            "milliseconds": spreads(&self.runs.iter().collect::<Vec<_>>()),
            "seed": self.seed,
            "runs": self.runs,
        });
        Ok(serde_json::to_string_pretty(&value)? + "\n")
    }
}

fn spread_line(name: &str, spread: &Spread) -> String {
    format!(
        "{name:<16} min {:>6.0}  median {:>6.0}  p95 {:>6.0}  max {:>6.0} ms  ({} runs)",
        spread.min, spread.median, spread.p95, spread.max, spread.count
    )
}

/// A text within XML or HTML.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            // XML knows no control characters.
            letter if letter.is_control() && !matches!(letter, '\n' | '\t') => safe.push('\u{fffd}'),
            letter => safe.push(letter),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two runs of one scenario, the second of which failed.
    pub(super) fn example() -> Report {
        let ms = 1_000_000;
        let moment = |at: u64, kind, text: &str| Moment { at_ns: at * ms, kind, text: text.to_owned() };
        let track = |vm: &str, host: &str, from: u64, to: u64| Track {
            vm: vm.into(),
            host: host.into(),
            incarnation: 1,
            from_ns: from * ms,
            to_ns: to * ms,
        };
        let run = |passed: bool, proof: f64| Run {
            scenario: "power-cut".into(),
            about: "<pulls> a plug".into(),
            seed: 7,
            passed,
            problems: if passed { Vec::new() } else { vec!["I1: cp-1 & cp-1 ran at once".into()] },
            invariants: [("I1".to_owned(), passed), ("I2".to_owned(), true)].into(),
            up_ms: 1500.0,
            took_ms: 9000.0,
            figures: Figures { proof: Some(proof), last_guest: Some(proof + 300.0), ..Figures::default() },
            fault_at_ns: 1000 * ms,
            ended_at_ns: 5000 * ms,
            timeline: vec![
                moment(1000, MomentKind::Fault, "the plug of h1 is pulled"),
                moment(1400, MomentKind::Proof, "death of h1 proven"),
            ],
            tracks: vec![track("cp-1", "h1", 500, 990), track("cp-1", "h2", 1700, 5000)],
        };
        Report { seed: 7, runs: vec![run(true, 400.0), run(false, 500.0)] }
    }

    #[test]
    fn the_summary_counts_runs_and_names_spreads() {
        let report = example();
        let text = report.summary();
        assert!(text.contains("2 runs of 1 scenarios: 1 passed, 1 failed; 1 double runs"), "{text}");
        assert!(
            text.contains("proof            min    400  median    400  p95    500  max    500 ms"),
            "{text}"
        );
        assert!(!text.contains("verdict"), "{text}");
        assert!(!report.passed() && !Report::new(1).passed());
    }

    #[test]
    fn all_forms_are_written_and_the_json_can_be_read() {
        let directory = tempfile::tempdir().unwrap();
        example().write(directory.path()).unwrap();
        let text = std::fs::read_to_string(directory.path().join("report.json")).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["scenarios"]["power-cut"]["milliseconds"]["proof"]["median"], 400.0);
        assert_eq!(value["others_by_default"].as_array().map(Vec::len), Some(DEFAULTS.len()));
        assert_eq!((&value["passed"], &value["double_runs"]), (&false.into(), &1.into()));
        assert!(directory.path().join("junit.xml").exists() && directory.path().join("index.html").exists());
    }
}
