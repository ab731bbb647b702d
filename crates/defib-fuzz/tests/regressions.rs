//! Replays, without a fuzzer, all seeds and all inputs that once failed. See docs/fuzzing.md.

use std::{
    collections::BTreeSet,
    fs,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
};

use defib_fuzz::{TARGETS, dictionary};

fn programs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz")
}

/// The files of a folder, ordered; none if there is no such folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("readable").path()).collect();
    files.sort();
    files
}

#[test]
fn every_seed_and_every_former_crash_passes() {
    let mut failed = Vec::new();
    for target in TARGETS {
        let seeds = (target.seeds)().into_iter().enumerate().map(|(at, seed)| (format!("seed {at}"), seed));
        let crashes = files(&programs().join("regressions").join(target.name))
            .into_iter()
            .map(|file| (file.display().to_string(), fs::read(&file).expect("readable")));
        for (name, input) in seeds.chain(crashes) {
            // One failure must not hide the others; its message was printed by the panic itself.
            if panic::catch_unwind(AssertUnwindSafe(|| (target.run)(&input))).is_err() {
                failed.push(format!("{}: {name}", target.name));
            }
        }
    }
    assert!(failed.is_empty(), "failed:\n{}", failed.join("\n"));
}

#[test]
fn seeds_are_the_same_every_time_small_and_distinct() {
    for target in TARGETS {
        let seeds = (target.seeds)();
        assert_eq!(seeds, (target.seeds)(), "{}", target.name);
        assert!(seeds.len() >= 2, "{} has nothing to begin with", target.name);
        assert_eq!(
            seeds.iter().collect::<BTreeSet<_>>().len(),
            seeds.len(),
            "{}: one comes twice",
            target.name
        );
        let size: usize = seeds.iter().map(Vec::len).sum();
        assert!(size < 256 << 10, "{}: {size} bytes of seeds", target.name);
    }
}

#[test]
fn every_target_has_its_program_and_every_folder_its_target() {
    let names: BTreeSet<String> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    assert_eq!(names.len(), TARGETS.len());
    let stems = |folder: &str| -> BTreeSet<String> {
        let of = |file: &PathBuf| file.file_stem().expect("a name").to_string_lossy().into_owned();
        files(&programs().join(folder)).iter().map(of).filter(|name| !name.starts_with('.')).collect()
    };
    assert_eq!(stems("fuzz_targets"), names, "one file per target");
    assert!(stems("regressions").is_subset(&names), "a folder of crashes is of no target");
    let manifest = fs::read_to_string(programs().join("Cargo.toml")).expect("readable");
    for name in names {
        assert!(manifest.contains(&format!("name = \"{name}\"\n")), "{name} is not in tests/fuzz/Cargo.toml");
        let program =
            fs::read_to_string(programs().join(format!("fuzz_targets/{name}.rs"))).expect("readable");
        assert!(program.contains(&format!("defib_fuzz::target(\"{name}\")")), "{name} feeds another target");
    }
}

#[test]
fn a_dictionary_has_the_words_and_nothing_that_libfuzzer_would_choke_on() {
    let text = dictionary(&[b"a: \"field-name\" @odata.id\nx9 4711 \xff_y".to_vec(), b"field-name".to_vec()]);
    assert_eq!(text, "\"@odata\"\n\"field-name\"\n");
}
