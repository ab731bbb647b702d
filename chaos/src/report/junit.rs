//! JUnit's XML, as every CI reads it.

use std::fmt::Write as _;

use defib_lab::demo::peers::DEFAULTS;

use super::{Report, escaped};

/// The document.
pub(super) fn page(report: &Report) -> String {
    let failures = report.runs.iter().filter(|run| !run.passed).count();
    let seconds: f64 = report.runs.iter().map(|run| run.took_ms / 1000.0).sum();
    let mut text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n<testsuite name=\"defib-chaos\" tests=\"{}\" failures=\"{failures}\" time=\"{seconds:.3}\">\n",
        report.runs.len()
    );
    text.push_str("<properties>\n");
    let mut property = |name: &str, value: &str| {
        let _ = writeln!(text, "<property name=\"{}\" value=\"{}\"/>", escaped(name), escaped(value));
    };
    property("double runs", &report.double_runs().to_string());
    for (name, spread) in Report::spreads(&report.runs) {
        for (of, value) in
            [("min", spread.min), ("median", spread.median), ("p95", spread.p95), ("max", spread.max)]
        {
            property(&format!("{name}, {of} ms"), &format!("{value:.0}"));
        }
    }
    for peer in DEFAULTS {
        let value = format!("{:.1} s by default until {} ({})", peer.seconds, peer.until, peer.source);
        property(&format!("others: {}", peer.name), &value);
    }
    text.push_str("</properties>\n");
    for run in &report.runs {
        let _ = write!(
            text,
            "<testcase classname=\"defib-chaos\" name=\"{} (seed {})\" time=\"{:.3}\">",
            escaped(&run.scenario),
            run.seed,
            run.took_ms / 1000.0
        );
        if !run.passed {
            let first = run.problems.first().map_or("it was not judged", String::as_str);
            let all = run.problems.join("\n");
            let _ = write!(text, "<failure message=\"{}\">{}</failure>", escaped(first), escaped(&all));
        }
        text.push_str("</testcase>\n");
    }
    text.push_str("</testsuite>\n</testsuites>\n");
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_failure_is_told_with_all_its_problems() {
        let text = super::page(&super::super::tests::example());
        assert!(text.contains("tests=\"2\" failures=\"1\""), "{text}");
        assert!(text.contains("<failure message=\"I1: cp-1 &amp; cp-1 ran at once\">"), "{text}");
        assert_eq!(text.matches("</testcase>").count(), 2);
        assert!(text.contains("<property name=\"proof, p95 ms\" value=\"500\"/>"), "{text}");
        assert_eq!(text.matches("<property name=\"others: ").count(), super::DEFAULTS.len());
    }
}
