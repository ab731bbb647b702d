//! JUnit's XML, as every CI reads it.

use std::fmt::Write as _;

use super::{Report, escaped};

/// The document.
pub(super) fn page(report: &Report) -> String {
    let failures = report.runs.iter().filter(|run| !run.passed).count();
    let seconds: f64 = report.runs.iter().map(|run| run.took_ms / 1000.0).sum();
    let mut text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n<testsuite name=\"defib-chaos\" tests=\"{}\" failures=\"{failures}\" time=\"{seconds:.3}\">\n",
        report.runs.len()
    );
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
    }
}
