//! The page: a table of all scenarios, what others need for the same by their defaults, and a picture of each run.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use defib_lab::demo::peers::DEFAULTS;

use super::{Figures, Moment, MomentKind, Report, Run, escaped};
use crate::figures::Spread;

/// Before the first fault so much is shown.
const BEFORE_MS: f64 = 300.0;
/// Width of a picture's time, in its own units.
const WIDTH: f64 = 900.0;
/// Where time begins in it.
const LEFT: f64 = 110.0;
const ROW: f64 = 18.0;
/// Rows of marks above the guests.
const MARK_ROWS: f64 = 3.0;

const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;color:#1b1f24;background:#fff}\
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.25rem .7rem;border-bottom:1px solid #d8dee4;text-align:right}\
td:first-child,th:first-child{text-align:left}.bad{color:#b3261e;font-weight:600}.good{color:#1a7f37}\
summary{cursor:pointer;padding:.3rem 0}svg{width:100%;height:auto;border:1px solid #d8dee4;margin:.5rem 0}\
ol{font:13px/1.5 ui-monospace,monospace;max-height:24rem;overflow:auto}.fault{color:#b3261e}.proof{color:#8250df}.running{color:#1a7f37}.verdict{color:#9a6700}";

/// Whole milliseconds.
fn ms(value: f64) -> String {
    format!("{value:.0}")
}

/// The page.
pub(super) fn page(report: &Report) -> String {
    let word = if report.passed() {
        "<b class=\"good\">every run passed, every invariant held</b>"
    } else {
        "<b class=\"bad\">NOT every run passed</b>"
    };
    let mut text = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>Defib chaos</title><style>{STYLE}</style><h1>Defib chaos</h1><p>{word}: {} runs, {} double runs.</p>",
        report.runs.len(),
        report.double_runs()
    );
    text.push_str("<h2>All recoveries</h2>");
    spreads(&mut text, &Report::spreads(&report.runs));
    others(&mut text, report);
    scenarios(&mut text, report);
    text.push_str("<h2>Runs</h2>");
    for run in &report.runs {
        tell(&mut text, run);
    }
    text.push_str("</html>\n");
    text
}

fn spreads(text: &mut String, all: &[(&'static str, Spread)]) {
    text.push_str("<table><tr><th>from the fault to<th>runs<th>min ms<th>median ms<th>p95 ms<th>max ms</tr>");
    for (name, spread) in all {
        let _ = write!(
            text,
            "<tr><td>{name}<td>{}<td>{}<td>{}<td>{}<td>{}</tr>",
            spread.count,
            ms(spread.min),
            ms(spread.median),
            ms(spread.p95),
            ms(spread.max)
        );
    }
    text.push_str("</table>");
}

/// Per scenario how long each step took.
fn scenarios(text: &mut String, report: &Report) {
    text.push_str("<h2>Scenarios</h2><p>Milliseconds from the fault: min / median / p95 / max.</p>");
    text.push_str("<table><tr><th>scenario<th>passed");
    for (name, _) in Figures::default().named() {
        let _ = write!(text, "<th>{name}");
    }
    text.push_str("</tr>");
    for (name, runs) in report.by_scenario() {
        let passed = runs.iter().filter(|run| run.passed).count();
        let class = if passed == runs.len() { "good" } else { "bad" };
        let all: BTreeMap<&str, Spread> = Report::spreads(runs.iter().copied()).into_iter().collect();
        let _ = write!(text, "<tr><td>{}<td class=\"{class}\">{passed} of {}", escaped(name), runs.len());
        for (step, _) in Figures::default().named() {
            let cell = all.get(step).map_or_else(
                || "–".to_owned(),
                |one| [one.min, one.median, one.p95, one.max].map(ms).join(" / "),
            );
            let _ = write!(text, "<td>{cell}");
        }
        text.push_str("</tr>");
    }
    text.push_str("</table>");
}

/// What others need by their defaults.
fn others(text: &mut String, report: &Report) {
    text.push_str(
        "<h2>Others, by their defaults</h2><table><tr><th>system<th>seconds<th>until<th>source</tr>",
    );
    if let Some(ours) = Spread::of(report.runs.iter().filter_map(|run| run.figures.last_guest)) {
        let _ = write!(
            text,
            "<tr><td><b>Defib</b><td>{:.1}<td>the last guest runs elsewhere, median of {} runs here<td>this page</tr>",
            ours.median / 1000.0,
            ours.count
        );
    }
    for peer in DEFAULTS {
        let _ = write!(
            text,
            "<tr><td>{}<td>{:.1}<td>{}<td>{}</tr>",
            escaped(peer.name),
            peer.seconds,
            escaped(peer.until),
            escaped(peer.source)
        );
    }
    text.push_str("</table>");
}

fn tell(text: &mut String, run: &Run) {
    let (class, word) = if run.passed { ("good", "passed") } else { ("bad", "FAILED") };
    let open = if run.passed { "" } else { " open" };
    let _ = write!(
        text,
        "<details{open}><summary><span class=\"{class}\">{word}</span> <b>{}</b> (seed {}): {}</summary>",
        escaped(&run.scenario),
        run.seed,
        escaped(&run.about)
    );
    for problem in &run.problems {
        let _ = write!(text, "<p class=\"bad\">{}</p>", escaped(problem));
    }
    picture(text, run);
    text.push_str("<ol>");
    for moment in &run.timeline {
        let _ = write!(
            text,
            "<li class=\"{}\">{:+.0} ms {}",
            class_of(moment.kind),
            since(run, moment.at_ns),
            escaped(&moment.text)
        );
    }
    text.push_str("</ol></details>");
}

const fn class_of(kind: MomentKind) -> &'static str {
    match kind {
        MomentKind::Fault => "fault",
        MomentKind::Step | MomentKind::Event => "event",
        MomentKind::Verdict => "verdict",
        MomentKind::Proof => "proof",
        MomentKind::Running => "running",
    }
}

const fn color_of(kind: MomentKind) -> &'static str {
    match kind {
        MomentKind::Fault => "#b3261e",
        MomentKind::Step => "#57606a",
        MomentKind::Event => "#afb8c1",
        MomentKind::Verdict => "#bf8700",
        MomentKind::Proof => "#8250df",
        MomentKind::Running => "#1a7f37",
    }
}

fn since(run: &Run, at_ns: u64) -> f64 {
    defib_lab::clock::millis_between(run.fault_at_ns, at_ns)
}

/// Time goes to the right; above what was done and told, below each VM and where it ran.
fn picture(text: &mut String, run: &Run) {
    if run.tracks.is_empty() {
        return;
    }
    let end = since(run, run.ended_at_ns).max(1.0);
    let x = |ms: f64| LEFT + (ms.clamp(-BEFORE_MS, end) + BEFORE_MS) / (end + BEFORE_MS) * WIDTH;
    let mut vms: BTreeMap<&str, Vec<_>> = BTreeMap::new();
    for track in run.tracks.iter().filter(|track| track.to_ns + 1_000_000_000 >= run.fault_at_ns) {
        vms.entry(&track.vm).or_default().push(track);
    }
    let top = MARK_ROWS * ROW;
    let height = top + ROW * (vms.len() as f64 + 1.5);
    let _ = write!(
        text,
        "<svg viewBox=\"0 0 {:.0} {height:.0}\" font-size=\"11\" font-family=\"system-ui\" role=\"img\">",
        LEFT + WIDTH + 10.0
    );
    for step in ticks(end) {
        let _ = write!(
            text,
            "<line x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"0\" y2=\"{1:.0}\" stroke=\"#eaeef2\"/><text x=\"{0:.1}\" y=\"{2:.0}\" fill=\"#57606a\">{3}</text>",
            x(step),
            height - ROW,
            height - 5.0,
            if step >= 1000.0 { format!("{} s", step / 1000.0) } else { format!("{step} ms") }
        );
    }
    let marks: Vec<(&Moment, f64)> =
        run.timeline.iter().map(|moment| (moment, since(run, moment.at_ns))).collect();
    for (row, (name, kinds)) in [
        ("done", &[MomentKind::Fault, MomentKind::Step][..]),
        ("decided", &[MomentKind::Verdict, MomentKind::Proof]),
        ("told", &[MomentKind::Running, MomentKind::Event]),
    ]
    .into_iter()
    .enumerate()
    {
        let y = ROW * (row as f64 + 0.7);
        let _ = write!(text, "<text x=\"4\" y=\"{y:.1}\">{name}</text>");
        for (moment, at) in marks.iter().filter(|(moment, _)| kinds.contains(&moment.kind)) {
            let _ = write!(
                text,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"4\" fill=\"{}\"><title>{:+.0} ms: {}</title></circle>",
                x(*at),
                y - 4.0,
                color_of(moment.kind),
                at,
                escaped(&moment.text)
            );
        }
    }
    let hosts: std::collections::BTreeSet<&str> =
        run.tracks.iter().map(|track| track.host.as_str()).collect();
    for (row, (vm, tracks)) in vms.into_iter().enumerate() {
        let y = top + ROW * row as f64;
        let _ = write!(text, "<text x=\"4\" y=\"{:.1}\">{}</text>", y + 12.0, escaped(vm));
        for track in tracks {
            let (from, to) = (x(since(run, track.from_ns)), x(since(run, track.to_ns)));
            let hue = hosts.iter().position(|host| *host == track.host).unwrap_or(0) * 67 % 360;
            let _ = write!(
                text,
                "<rect x=\"{from:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"hsl({hue} 60% 75%)\"><title>{} on {}, incarnation {}</title></rect>\
                 <text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                y + 2.0,
                (to - from).max(1.0),
                ROW - 5.0,
                escaped(vm),
                escaped(&track.host),
                track.incarnation,
                from + 3.0,
                y + 12.0,
                escaped(&track.host)
            );
        }
    }
    text.push_str("</svg>");
}

/// At most ten marks of time, at round numbers.
fn ticks(end_ms: f64) -> Vec<f64> {
    let steps = [50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10_000.0, 30_000.0, 60_000.0];
    let step = steps.into_iter().find(|step| end_ms / step <= 10.0).unwrap_or(300_000.0);
    (0..=10).map(|number| f64::from(number) * step).filter(|at| *at <= end_ms).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_shows_every_run_and_every_peer_and_nothing_breaks_out() {
        let text = page(&super::super::tests::example());
        assert!(text.contains("NOT every run passed") && text.contains("1 of 2"), "{text}");
        assert_eq!((text.matches("<svg").count(), text.matches("</svg>").count()), (2, 2));
        assert!(text.contains("&lt;pulls&gt; a plug") && !text.contains("<pulls>"));
        assert!(DEFAULTS.iter().all(|peer| text.contains(&escaped(peer.source))));
        // Ran on h1 until the fault, on h2 from 700 ms on.
        assert!(text.contains("<title>cp-1 on h2, incarnation 1</title>"));
        // Two runs of one scenario, and of all.
        assert!(text.contains("<td>400 / 400 / 500 / 500<td>"), "{text}");
        assert!(text.contains("<td>proof<td>2<td>400<td>400<td>500<td>500"), "{text}");
    }

    #[test]
    fn time_has_round_marks() {
        assert_eq!(ticks(420.0), [0.0, 50.0, 100.0, 150.0, 200.0, 250.0, 300.0, 350.0, 400.0]);
        assert_eq!(ticks(9000.0).last(), Some(&9000.0));
        assert!(ticks(1e6).len() < 12);
    }
}
