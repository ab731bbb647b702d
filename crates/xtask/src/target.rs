//! A benchmark's target: `p99 <= 300`, `ratio <= 0.5`, several joined by `, `. Anything else is a remark.

use serde_json::Value;

/// Whether a figure is as good as it must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Met,
    Missed,
    /// The target is a remark, so there is nothing to meet.
    Shown,
    /// The target names a figure that the line does not have.
    Unknown,
}

impl Verdict {
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::Missed => "MISSED",
            Self::Shown => "-",
            Self::Unknown => "UNKNOWN",
        }
    }
}

/// `line`: one figure as the benchmark printed it.
pub(crate) fn judge(line: &Value) -> Verdict {
    let Some(target) = line["target"].as_str() else { return Verdict::Shown };
    let mut verdict = Verdict::Met;
    for condition in target.split(", ") {
        match holds(condition, line) {
            Verdict::Met => {}
            Verdict::Missed if verdict == Verdict::Unknown => {}
            Verdict::Shown => return Verdict::Shown,
            other => verdict = other,
        }
    }
    verdict
}

fn holds(condition: &str, line: &Value) -> Verdict {
    let words: Vec<&str> = condition.split_whitespace().collect();
    let [figure, relation @ ("<=" | ">="), limit] = words.as_slice() else { return Verdict::Shown };
    let Ok(limit) = limit.parse::<f64>() else { return Verdict::Shown };
    let Some(value) = line[*figure].as_f64() else { return Verdict::Unknown };
    let good = if *relation == "<=" { value <= limit } else { value >= limit };
    if good { Verdict::Met } else { Verdict::Missed }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn targets_are_judged_by_the_lines_own_figures() {
        let judged = |target: &str| judge(&json!({"p50": 120.5, "p99": 300, "ratio": 0.6, "target": target}));
        assert_eq!(judged("p99 <= 300"), Verdict::Met);
        assert_eq!(judged("ratio <= 0.5"), Verdict::Missed);
        assert_eq!(judged("ratio >= 0.25"), Verdict::Met);
        assert_eq!(judged("p50 <= 500, p99 <= 299"), Verdict::Missed);
        assert_eq!(judged("p50 <= 500, p99 <= 800"), Verdict::Met);
        assert_eq!(judged("max <= 300"), Verdict::Unknown, "a figure that is not there is not met");
        assert_eq!(judged("max <= 300, ratio <= 0.5"), Verdict::Unknown);
        assert_eq!(judged("none: the limit of one shared disk"), Verdict::Shown);
        assert_eq!(judged("p50 <= twice"), Verdict::Shown);
        assert_eq!(judge(&json!({"p50": 1})), Verdict::Shown);
    }
}
