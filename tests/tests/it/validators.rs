//! OCSF and ECS as others understand them.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use defib_export::samples;
use defib_model::export::Format;
use defib_tests::{run, skip, target};

/// Files of ours.
pub(crate) fn beside(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it").join(name)
}

/// Python with all that these tests have from PyPI.
pub(crate) fn python() -> anyhow::Result<PathBuf> {
    let requirements = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/siem/requirements.txt");
    defib_tests::python("siem", &requirements)
}

/// The script that judges ECS, beside npm's @elastic/ecs: `NODE_PATH` would not do, where a script lies decides.
pub(crate) fn ecs_script() -> anyhow::Result<PathBuf> {
    /// Two tests must not install into one directory at once.
    static INSTALLING: Mutex<()> = Mutex::new(());
    let _one = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    let directory = target().join("validators/ecs");
    fs::create_dir_all(&directory)?;
    let lock = "package-lock.json";
    let wanted = fs::read(beside("validators").join(lock))?;
    let is_there = directory.join("node_modules/@elastic/ecs/package.json").exists();
    if !is_there || fs::read(directory.join(lock)).ok().as_ref() != Some(&wanted) {
        for name in ["package.json", lock] {
            fs::copy(beside("validators").join(name), directory.join(name))?;
        }
        let place = directory.display().to_string();
        run(Path::new("npm"), &["ci", "--silent", "--no-audit", "--no-fund", "--prefix", &place], "")?;
    }
    run(Path::new("node"), &["--version"], "")?;
    let script = directory.join("ecs.js");
    fs::copy(beside("validators/ecs.js"), &script)?;
    Ok(script)
}

/// What ocsf-json-schema says of lines of OCSF; the error names what is wrong.
pub(crate) fn judge_ocsf(python: &Path, lines: &str) -> anyhow::Result<String> {
    run(python, &[&beside("validators/ocsf.py").display().to_string()], lines)
}

/// What @elastic/ecs says of lines of ECS.
pub(crate) fn judge_ecs(script: &Path, lines: &str) -> anyhow::Result<String> {
    run(Path::new("node"), &[&script.display().to_string()], lines)
}

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
    let script = match ecs_script() {
        Ok(script) => script,
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
