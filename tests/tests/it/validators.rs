//! OCSF and ECS as others understand them.

use std::{fs, path::Path};

use defib_export::samples;
use defib_model::export::Format;
use defib_tests::{
    skip,
    validators::{ecs_scripts, judge_ecs, judge_ocsf, judge_template, python},
};

fn of_every_kind(format: Format) -> Vec<String> {
    samples::lines(format, &samples::stream(&samples::kinds().expect("allowed names")))
}

#[test]
fn every_kind_is_valid_ocsf_and_what_is_not_is_caught() {
    let python = match python() {
        Ok(python) => python,
        Err(why) => return skip("ocsf", &format!("ocsf-json-schema can't be installed from PyPI: {why:#}")),
    };
    let good = of_every_kind(Format::Ocsf);
    let answer = judge_ocsf(&python, &good.join("\n")).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(answer.trim(), format!("checked {}", good.len()));
    for (from, to) in [
        ("\"time\":", "\"tmie\":"),
        ("\"severity_id\":3", "\"severity_id\":77"),
        ("\"sequence\":8", "\"sequence\":\"eight\""),
        ("\"class_uid\":2004", "\"class_uid\":2005"),
    ] {
        let bad = good[7].replace(from, to);
        assert_ne!(bad, good[7], "{from}");
        assert!(judge_ocsf(&python, &bad).is_err(), "the validator let {to} pass");
    }
}

#[test]
fn every_kind_is_valid_ecs_and_what_is_not_is_caught() {
    let [script, _] = match ecs_scripts() {
        Ok(scripts) => scripts,
        Err(why) => return skip("ecs", &format!("@elastic/ecs can't be installed from npm: {why:#}")),
    };
    let good = of_every_kind(Format::Ecs);
    let answer = judge_ecs(&script, &good.join("\n")).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(answer.trim(), format!("checked {}", good.len()));
    for (from, to) in [
        ("\"outcome\":\"unknown\"", "\"outcome\":\"perhaps\""),
        ("\"category\":[\"host\"]", "\"category\":[\"file\"]"),
        ("\"type\":[\"info\"]", "\"type\":[\"denied\"]"),
        ("\"sequence\":8", "\"sequence\":\"8\""),
        ("\"message\":", "\"massage\":"),
    ] {
        let bad = good[7].replace(from, to);
        assert_ne!(bad, good[7], "{from}");
        let is_bad = judge_ecs(&script, &bad).is_err();
        // A file may have information, so that one pair is allowed.
        assert!(is_bad || to.contains("file"), "the validator let {to} pass");
    }
}

#[test]
fn the_index_template_takes_every_kind_with_the_types_of_ecs() {
    let [_, script] = match ecs_scripts() {
        Ok(scripts) => scripts,
        Err(why) => {
            return skip("ecs-template", &format!("@elastic/ecs can't be installed from npm: {why:#}"));
        }
    };
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/siem/elastic/index-template.json");
    let lines = of_every_kind(Format::Ecs);
    let answer =
        judge_template(&script, &shipped, &lines.join("\n")).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(answer.trim(), format!("checked {}", lines.len()));
    // What would be wrong in it is caught.
    let template = fs::read_to_string(&shipped).expect("it is there");
    let directory = tempfile::tempdir().expect("a directory");
    let place = directory.path().join("template.json");
    for (from, to, told) in [
        ("\"sequence\": {\n", "\"sequense\": {\n", "event.sequence has no mapping"),
        ("\"type\": \"date\"", "\"type\": \"long\"", "@timestamp"),
        ("\"doc_values\": false", "\"doc_values\": true", "event.original: doc_values"),
        ("\"clean-shutdown\": {\n", "\"clean-shut\": {\n", "clean-shut is mapped, and no event has it"),
    ] {
        assert!(template.contains(from), "{from}");
        fs::write(&place, template.replacen(from, to, 1)).expect("written");
        let problems = judge_template(&script, &place, &lines.join("\n")).expect_err(told).to_string();
        assert!(problems.contains(told), "{problems}");
    }
}
