//! Writes seeds for the fuzzer, and replays inputs without it.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};
use clap::Parser;
use defib_fuzz::{TARGETS, dictionary, target};

/// What `cargo xtask fuzz` needs of the targets.
#[derive(Debug, Parser)]
enum Arguments {
    /// Prints the names of all targets.
    List,
    /// Writes a target's seeds into a directory, and their words into a file beside it that ends in `.dict`.
    Seeds {
        /// Which target.
        target: String,
        /// Made if it is missing.
        directory: PathBuf,
    },
    /// Feeds files to a target; ends with a panic where one fails.
    Replay {
        /// Which target.
        target: String,
        /// The inputs.
        files: Vec<PathBuf>,
    },
}

fn main() -> Result<()> {
    match Arguments::parse() {
        Arguments::List => TARGETS.iter().for_each(|target| println!("{}", target.name)),
        Arguments::Seeds { target: name, directory } => {
            let seeds = (known(&name)?.seeds)();
            fs::create_dir_all(&directory)?;
            for (at, seed) in seeds.iter().enumerate() {
                fs::write(directory.join(format!("seed-{at:02}")), seed)?;
            }
            fs::write(directory.with_extension("dict"), dictionary(&seeds))?;
        }
        Arguments::Replay { target: name, files } => {
            let target = known(&name)?;
            for file in files {
                eprintln!("{name}: {}", file.display());
                (target.run)(&fs::read(&file).with_context(|| file.display().to_string())?);
            }
        }
    }
    Ok(())
}

fn known(name: &str) -> Result<&'static defib_fuzz::Target> {
    target(name).with_context(|| format!("there is no target {name}; `list` names them"))
}
