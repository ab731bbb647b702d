//! OCSF and ECS as others understand them: PyPI's `ocsf-json-schema` and npm's `@elastic/ecs`.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use defib_model::export::Format;

use crate::{run, skip, target};

/// Files beside the tests that use them.
#[must_use]
pub fn beside(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it").join(name)
}

/// Python with all that these tests have from PyPI.
///
/// # Errors
/// When PyPI does not have it.
pub fn python() -> anyhow::Result<PathBuf> {
    let requirements = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/siem/requirements.txt");
    crate::python("siem", &requirements)
}

/// The scripts that judge ECS, and templates of indices for it, beside npm's @elastic/ecs: `NODE_PATH` would not do,
/// where a script lies decides.
///
/// # Errors
/// When npm does not have it.
pub fn ecs_scripts() -> anyhow::Result<[PathBuf; 2]> {
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
    let scripts = ["ecs.js", "template.js"];
    for name in scripts {
        fs::copy(beside("validators").join(name), directory.join(name))?;
    }
    Ok(scripts.map(|name| directory.join(name)))
}

/// What ocsf-json-schema says of lines of OCSF.
///
/// # Errors
/// What is wrong.
pub fn judge_ocsf(python: &Path, lines: &str) -> anyhow::Result<String> {
    run(python, &[&beside("validators/ocsf.py").display().to_string()], lines)
}

/// What @elastic/ecs says of lines of ECS.
///
/// # Errors
/// What is wrong.
pub fn judge_ecs(script: &Path, lines: &str) -> anyhow::Result<String> {
    run(Path::new("node"), &[&script.display().to_string()], lines)
}

/// What @elastic/ecs and lines of ECS say of a template for their index.
///
/// # Errors
/// What is wrong.
pub fn judge_template(script: &Path, template: &Path, lines: &str) -> anyhow::Result<String> {
    let (script, template) = (script.display().to_string(), template.display().to_string());
    run(Path::new("node"), &[&script, &template], lines)
}

/// Each line is valid by the schema of its format; `test` is noted as skipped where the validator can't be had.
///
/// # Panics
/// When one is not.
#[track_caller]
pub fn assert_valid(test: &str, format: Format, lines: &str) {
    let judged = match format {
        Format::Ocsf => match python() {
            Ok(python) => judge_ocsf(&python, lines),
            Err(why) => {
                return skip(test, &format!("ocsf-json-schema can't be installed from PyPI: {why:#}"));
            }
        },
        Format::Ecs => match ecs_scripts() {
            Ok([script, _]) => judge_ecs(&script, lines),
            Err(why) => return skip(test, &format!("@elastic/ecs can't be installed from npm: {why:#}")),
        },
        Format::Cef | Format::Leef | Format::Native => panic!("nobody else knows a schema of {format:?}"),
    };
    let told = judged.unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(told.trim(), format!("checked {}", lines.lines().count()));
}
