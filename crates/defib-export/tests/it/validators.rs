//! OCSF and ECS as others understand them.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use defib_model::export::Format;

use crate::support::{lines, run, skip, stream, target};

/// Two tests must not install into one directory at once.
static INSTALLING: Mutex<()> = Mutex::new(());

fn beside(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/validators").join(name)
}

/// Python with PyPI's ocsf-json-schema.
fn ocsf() -> Result<PathBuf, String> {
    let _one = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    let directory = target().join("validators/ocsf-1.2.0");
    let python = directory.join("bin/python");
    if run(&python, &["-c", "import ocsf_json_schema, jsonschema"], "").is_ok() {
        return Ok(python);
    }
    let place = directory.display().to_string();
    run(Path::new("python3"), &["-m", "venv", "--clear", &place], "")?;
    let wanted = ["-m", "pip", "install", "--quiet", "ocsf-json-schema==1.2.0", "jsonschema==4.25.1"];
    run(&python, &wanted, "")?;
    Ok(python)
}

/// The directory of npm's @elastic/ecs.
fn ecs() -> Result<PathBuf, String> {
    let _one = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    let directory = target().join("validators/ecs-9.4.0");
    if directory.join("node_modules/@elastic/ecs/package.json").exists() {
        return run(Path::new("node"), &["--version"], "").map(|_| directory);
    }
    fs::create_dir_all(&directory).map_err(|error| error.to_string())?;
    let place = directory.display().to_string();
    let wanted = ["install", "--silent", "--no-audit", "--no-fund", "--prefix", &place, "@elastic/ecs@9.4.0"];
    run(Path::new("npm"), &wanted, "")?;
    Ok(directory)
}

/// `NODE_PATH` can't be passed by `run`, so the script lies where its library is.
fn ecs_script(directory: &Path) -> String {
    let script = directory.join(format!("ecs-{}.js", std::process::id()));
    fs::copy(beside("ecs.js"), &script).expect("the script can be copied");
    script.display().to_string()
}

#[test]
fn every_kind_is_valid_ocsf_and_what_is_not_is_caught() {
    let python = match ocsf() {
        Ok(python) => python,
        Err(why) => return skip("ocsf", &format!("ocsf-json-schema can't be installed from PyPI: {why}")),
    };
    let script = beside("ocsf.py").display().to_string();
    let judge = |lines: &[String]| run(&python, &[&script], &lines.join("\n"));
    let good = lines(Format::Ocsf, &stream());
    let answer = judge(&good).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(answer.trim(), format!("checked {}", good.len()));
    for (from, to) in [
        ("\"time\":", "\"tmie\":"),
        ("\"severity_id\":3", "\"severity_id\":77"),
        ("\"sequence\":8", "\"sequence\":\"eight\""),
        ("\"class_uid\":2004", "\"class_uid\":2005"),
    ] {
        let bad = good[7].replace(from, to);
        assert_ne!(bad, good[7], "{from}");
        assert!(judge(&[bad]).is_err(), "the validator let {to} pass");
    }
}

#[test]
fn every_kind_is_valid_ecs_and_what_is_not_is_caught() {
    let directory = match ecs() {
        Ok(directory) => directory,
        Err(why) => return skip("ecs", &format!("@elastic/ecs can't be installed from npm: {why}")),
    };
    let script = ecs_script(&directory);
    let judge = |lines: &[String]| run(Path::new("node"), &[&script], &lines.join("\n"));
    let good = lines(Format::Ecs, &stream());
    let answer = judge(&good).unwrap_or_else(|problems| panic!("{problems}"));
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
        let is_bad = judge(&[bad]).is_err();
        // A file may have information, so that one pair is allowed.
        assert!(is_bad || to.contains("file"), "the validator let {to} pass");
    }
    fs::remove_file(script).expect("the copy can be removed");
}
