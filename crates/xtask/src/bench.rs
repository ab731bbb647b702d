//! `cargo xtask bench`: runs every benchmark of `tests/benches` and prints one table.

use std::io::{BufRead, BufReader};
use std::process::{ExitCode, Stdio};

use anyhow::{Context, Error, ensure};
use serde_json::{Value, json};

use crate::cargo::{cargo, metadata};
use crate::kafka;
use crate::packages;
use crate::target::{Verdict, judge};

/// Benchmarks that start our programs, which cargo does not build for them.
const WITH_PROGRAMS: [&str; 2] = ["failover", WITH_KAFKA];
/// The one that measures against Kafka itself.
const WITH_KAFKA: &str = "kafka";
/// The one that measures what is only built where etcd's client is.
const WITH_ETCD: &str = "published";
/// Builds them as they are deployed.
const PROGRAMS: [&str; 9] =
    ["build", "--release", "--bins", "-p", "defib-controller", "-p", "defib-agent", "-p", "defib-lab"];

pub(crate) fn run(filter: Option<&str>, as_json: bool) -> anyhow::Result<ExitCode> {
    let all = benchmarks(&metadata()?);
    let chosen: Vec<&String> =
        all.iter().filter(|name| filter.is_none_or(|part| name.contains(part))).collect();
    ensure!(
        !chosen.is_empty(),
        "no benchmark's name contains `{}`; there are: {}",
        filter.unwrap_or_default(),
        all.join(", ")
    );
    if chosen.iter().any(|name| WITH_PROGRAMS.contains(&name.as_str())) {
        let mut programs = cargo(&PROGRAMS);
        if chosen.iter().any(|name| *name == WITH_KAFKA) && kafka::can_build().is_ok() {
            programs.args(["--features", "defib-controller/kafka"]);
        }
        let built = programs.status().context("cargo can't be started")?;
        ensure!(built.success(), "the programs that are measured can't be built ({built})");
    }
    let (mut figures, mut broken) = (Vec::new(), Vec::new());
    for name in chosen {
        eprintln!("==> {name}");
        let before = figures.len();
        if let Err(error) = measure(name, &mut figures) {
            broken.push(format!("{name}: {error:#}"));
        } else if figures.len() == before {
            broken.push(format!("{name}: printed no figure"));
        }
    }
    for figure in &mut figures {
        figure["verdict"] = json!(judge(figure).word());
    }
    if as_json {
        println!("{}", serde_json::to_string_pretty(&figures)?);
    } else {
        print!("\n{}", table(&figures));
    }
    let count =
        |verdict: Verdict| figures.iter().filter(|figure| figure["verdict"] == verdict.word()).count();
    eprintln!(
        "\n{} figures: {} met their target, {} missed it, {} are only shown",
        figures.len(),
        count(Verdict::Met),
        count(Verdict::Missed),
        count(Verdict::Shown)
    );
    for figure in figures.iter().filter(|figure| figure["verdict"] == Verdict::Unknown.word()) {
        broken.push(format!(
            "{}: its target {} names a figure that it lacks",
            cell(figure, "bench"),
            figure["target"]
        ));
    }
    for line in &broken {
        eprintln!("BROKEN {line}");
    }
    // A missed target is a figure like any other; a benchmark that could not measure is a failure.
    Ok(if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The names of the benchmarks of the package `defib-tests`, in order.
fn benchmarks(metadata: &Value) -> Vec<String> {
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let targets = packages
        .filter(|package| package["name"] == "defib-tests")
        .flat_map(|package| package["targets"].as_array().into_iter().flatten());
    let is_bench =
        |target: &&Value| target["kind"].as_array().is_some_and(|kinds| kinds.contains(&json!("bench")));
    let mut names: Vec<String> =
        targets.filter(is_bench).filter_map(|target| target["name"].as_str().map(str::to_owned)).collect();
    names.sort();
    names
}

/// Lines that are no figure are passed on to standard error.
fn measure(name: &str, figures: &mut Vec<Value>) -> anyhow::Result<()> {
    let mut bench = cargo(&["bench", "-p", "defib-tests", "--bench", name]);
    if name == WITH_KAFKA {
        kafka::can_build()
            .and_then(|()| kafka::assemble().map_err(|error| format!("{error:#}"))?)
            .map_err(Error::msg)?;
        bench.args(["--features", "kafka"]);
    }
    if name == WITH_ETCD {
        packages::has_protoc().map_err(Error::msg)?;
        bench.args(["--features", "etcd"]);
    }
    let mut child = bench.stdout(Stdio::piped()).spawn().context("cargo can't be started")?;
    let output = child.stdout.take().context("its output is not piped")?;
    for line in BufReader::new(output).lines() {
        let line = line?;
        match figure(&line) {
            Some(figure) => {
                eprintln!("{line}");
                figures.push(figure);
            }
            None => eprintln!("{line}"),
        }
    }
    let status = child.wait()?;
    ensure!(status.success(), "ended with {status}");
    Ok(())
}

fn figure(line: &str) -> Option<Value> {
    let value: Value = serde_json::from_str(line.trim()).ok()?;
    value["bench"].is_string().then_some(value)
}

/// Strings as they are, numbers in digits, what is missing as a dash.
fn cell(figure: &Value, name: &str) -> String {
    match &figure[name] {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn table(figures: &[Value]) -> String {
    const COLUMNS: [&str; 10] =
        ["bench", "p50", "p99", "max", "unit", "peer", "peer_p50", "ratio", "target", "verdict"];
    let mut rows = vec![COLUMNS.map(|name| name.replace('_', " "))];
    rows.extend(figures.iter().map(|figure| COLUMNS.map(|name| cell(figure, name))));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..COLUMNS.len()).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths).zip(COLUMNS).map(|((cell, width), name)| {
            let is_number = matches!(name, "p50" | "p99" | "max" | "peer_p50" | "ratio");
            if is_number { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_with_a_name_are_figures() {
        assert!(figure(r#"{"bench":"a","p50":1}"#).is_some());
        assert!(figure("running 0 tests").is_none());
        assert!(figure(r#"{"level":"info"}"#).is_none());
    }

    #[test]
    fn the_benchmarks_are_those_of_the_tests_package() {
        let metadata = json!({"packages": [
            {"name": "defib-lab", "targets": [{"name": "other", "kind": ["bench"]}]},
            {"name": "defib-tests", "targets": [
                {"name": "redfish", "kind": ["bench"]},
                {"name": "tidy", "kind": ["test"]},
                {"name": "consensus", "kind": ["bench"]},
            ]},
        ]});
        assert_eq!(benchmarks(&metadata), ["consensus", "redfish"]);
    }

    #[test]
    fn a_table_has_a_row_per_figure_and_a_dash_for_what_is_missing() {
        let figures =
            [json!({"bench": "commit", "unit": "us", "p50": 120.5, "peer": "etcd put", "verdict": "met"})];
        let text = table(&figures);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("bench ") && lines[0].ends_with("verdict"));
        assert_eq!(
            lines[1].split_whitespace().collect::<Vec<_>>().join(" "),
            "commit 120.5 - - us etcd put - - - met"
        );
        assert_eq!(lines[0].find("verdict"), lines[1].find("met"));
    }
}
