//! What must be on the machine, and what to do where it is not.

use std::process::{Command, Stdio};

/// The oldest Rust that builds this: `rust-version` of the workspace.
pub(crate) const RUST: &str = env!("CARGO_PKG_RUST_VERSION");

/// What was found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Tools {
    /// `1.95.0`.
    pub(crate) rust: String,
    /// Its lints may say more than ours were written for.
    pub(crate) rust_is_newer: bool,
}

/// All that is missing, one line each with what to do.
///
/// `run` starts a program and answers with its standard output, or `None` if it is missing or failed; `compiler` is the
/// environment's `CC`.
pub(crate) fn check(
    run: impl Fn(&str, &[&str]) -> Option<String>,
    compiler: Option<&str>,
) -> Result<Tools, String> {
    let mut missing = Vec::new();
    let answer = run("rustc", &["--version"]).unwrap_or_default();
    let rust = answer.split(' ').nth(1).unwrap_or("none").to_owned();
    match (minor(&rust), minor(RUST)) {
        (Some(found), Some(wanted)) if found < wanted => missing.push(format!(
            "rustc {rust} is too old, {RUST} is needed: run `rustup update stable` (https://rustup.rs)"
        )),
        (None, _) => missing.push(format!(
            "`rustc --version` does not answer, {RUST} is needed: install Rust from https://rustup.rs"
        )),
        _ => {}
    }
    for component in ["fmt", "clippy"] {
        if run("cargo", &[component, "--version"]).is_none() {
            let name = if component == "fmt" { "rustfmt" } else { component };
            missing.push(format!("`cargo {component}` is missing: run `rustup component add {name}`"));
        }
    }
    let compiler = compiler.filter(|name| !name.trim().is_empty()).unwrap_or("cc");
    let words: Vec<&str> = compiler.split_whitespace().collect();
    let (program, arguments) = words.split_first().map_or(("cc", &[][..]), |(first, rest)| (*first, rest));
    let arguments: Vec<&str> = arguments.iter().copied().chain(["--version"]).collect();
    if run(program, &arguments).is_none() {
        missing.push(format!(
            "the C compiler `{compiler}` does not answer, and *ring* (TLS) needs one: on Debian run `apt-get install gcc \
             libc6-dev` as root, or set CC"
        ));
    }
    if missing.is_empty() {
        let rust_is_newer = minor(&rust) > minor(RUST);
        Ok(Tools { rust, rust_is_newer })
    } else {
        Err(missing.join("; "))
    }
}

/// Starts a program and answers with its standard output.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The first two numbers of a version.
fn minor(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split(['.', '-']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(rust: &str, absent: &[&str]) -> Result<Tools, String> {
        let run = |program: &str, arguments: &[&str]| {
            let line = format!("{program} {}", arguments.join(" "));
            let is_absent = absent.iter().any(|absent| line.starts_with(absent));
            (!is_absent).then(|| if program == "rustc" { rust.to_owned() } else { "1".to_owned() })
        };
        check(run, None)
    }

    #[test]
    fn each_missing_tool_is_named_with_what_to_do() {
        let newer = machine("rustc 1.99.0 (x 2027-01-01)", &[]).expect("nothing is missing");
        assert_eq!(newer, Tools { rust: "1.99.0".to_owned(), rust_is_newer: true });
        assert!(!machine(&format!("rustc {RUST}.0 (x)"), &[]).expect("nothing is missing").rust_is_newer);
        for (absent, told) in [
            ("rustc", "install Rust from https://rustup.rs"),
            ("cargo fmt", "rustup component add rustfmt"),
            ("cargo clippy", "rustup component add clippy"),
            ("cc", "apt-get install gcc libc6-dev"),
        ] {
            let text = machine("rustc 1.99.0 (x)", &[absent]).expect_err("something is missing");
            assert!(text.contains(told), "{text}");
        }
        let text = machine("rustc 1.70.0 (x)", &["cc"]).expect_err("too old");
        assert!(
            text.contains("rustc 1.70.0 is too old") && text.contains("C compiler"),
            "all at once: {text}"
        );
    }

    #[test]
    fn the_environment_may_name_the_compiler_with_arguments() {
        let run = |program: &str, arguments: &[&str]| match program {
            "rustc" => Some("rustc 1.99.0".to_owned()),
            "ccache" => (arguments == ["clang", "--version"]).then(String::new),
            "cc" => None,
            _ => Some(String::new()),
        };
        assert!(check(run, Some("ccache clang")).is_ok());
        assert!(check(run, Some(" ")).is_err());
        assert!(check(run, Some("tcc")).is_ok());
    }
}
