//! Who may use whom. The table is the architecture: a new edge is a decision, made here.

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};

use crate::source::Problem;

/// A crate, its layer, and which of ours it may use. Layers only go down; crates of one layer never see each other.
struct Wall {
    name: &'static str,
    layer: u8,
    may_use: &'static [&'static str],
}

const WALLS: &[Wall] = &[
    Wall { name: "defib-model", layer: 0, may_use: &[] },
    Wall { name: "defib-engine", layer: 1, may_use: &["defib-model"] },
    Wall { name: "defib-wire", layer: 1, may_use: &["defib-model"] },
    Wall { name: "defib-pki", layer: 1, may_use: &["defib-model"] },
    Wall { name: "defib-process", layer: 1, may_use: &["defib-model"] },
    Wall { name: "defib-consensus", layer: 1, may_use: &[] },
    Wall { name: "defib-bmc", layer: 1, may_use: &["defib-model"] },
    Wall { name: "defib-etcd", layer: 2, may_use: &["defib-model", "defib-process"] },
    Wall { name: "defib-kafka", layer: 2, may_use: &["defib-model", "defib-process"] },
    Wall { name: "defib-rpc", layer: 3, may_use: &["defib-pki"] },
    Wall {
        name: "defib-observe",
        layer: 3,
        may_use: &["defib-model", "defib-process", "defib-kafka", "defib-engine", "defib-wire", "defib-bmc"],
    },
    Wall {
        name: "defib-act",
        layer: 3,
        may_use: &["defib-model", "defib-engine", "defib-wire", "defib-bmc"],
    },
    Wall { name: "defib-export", layer: 3, may_use: &["defib-model", "defib-process", "defib-kafka"] },
    Wall {
        name: "defib-agent",
        layer: 4,
        may_use: &[
            "defib-model",
            "defib-process",
            "defib-kafka",
            "defib-engine",
            "defib-wire",
            "defib-pki",
            "defib-rpc",
        ],
    },
    Wall {
        name: "defib-controller",
        layer: 4,
        may_use: &[
            "defib-model",
            "defib-engine",
            "defib-wire",
            "defib-pki",
            "defib-process",
            "defib-kafka",
            "defib-etcd",
            "defib-consensus",
            "defib-bmc",
            "defib-rpc",
            "defib-observe",
            "defib-act",
            "defib-export",
        ],
    },
    Wall {
        name: "defib-cli",
        layer: 4,
        may_use: &[
            "defib-model",
            "defib-process",
            "defib-kafka",
            "defib-wire",
            "defib-pki",
            "defib-bmc",
            "defib-rpc",
            "defib-export",
        ],
    },
    Wall {
        name: "defib-lab",
        layer: 5,
        may_use: &["defib-model", "defib-process", "defib-wire", "defib-pki", "defib-rpc", "defib-export"],
    },
    Wall { name: "defib-fuzz", layer: 5, may_use: &["*"] },
    Wall {
        name: "defib-sim",
        layer: 5,
        may_use: &["defib-model", "defib-engine", "defib-wire", "defib-consensus"],
    },
    Wall { name: "defib-chaos", layer: 6, may_use: &["defib-model", "defib-process", "defib-lab"] },
    Wall { name: "defib-tests", layer: 6, may_use: &["*"] },
    Wall { name: "xtask", layer: 0, may_use: &[] },
];

/// Libraries that do no I/O, read no clock and draw nothing at random. `no_std` keeps our own code pure; this keeps
/// what it calls pure.
const PURE: &[(&str, &[&str])] =
    &[("defib-model", &["serde", "serde_json", "sha2"]), ("defib-engine", &["serde", "serde_json", "sha2"])];

/// What the rules look at, so that a self-test can plant it.
#[derive(Debug, Clone)]
pub(crate) struct Edge {
    from: String,
    manifest: String,
    to: String,
    development: bool,
    /// `None`: a path.
    source: Option<String>,
}

pub(crate) fn read_metadata() -> Vec<Edge> {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    let mut command = MetadataCommand::new();
    command.manifest_path(manifest).no_deps().other_options(vec!["--offline".to_owned()]);
    let metadata: Metadata = command.exec().expect("cargo metadata answers");
    let mut edges = Vec::new();
    for package in &metadata.packages {
        for dependency in &package.dependencies {
            edges.push(Edge {
                from: package.name.to_string(),
                manifest: package
                    .manifest_path
                    .strip_prefix(&metadata.workspace_root)
                    .map_or_else(|_| package.manifest_path.to_string(), ToString::to_string),
                to: dependency.name.clone(),
                development: dependency.kind == DependencyKind::Development,
                source: dependency.source.as_ref().map(ToString::to_string),
            });
        }
    }
    let known = metadata.packages.iter().map(|package| package.name.as_str());
    for name in known {
        assert!(
            wall(name).is_some(),
            "crate {name} is not in the table of walls: give it a layer in {}",
            file!()
        );
    }
    edges
}

fn wall(name: &str) -> Option<&'static Wall> {
    WALLS.iter().find(|wall| wall.name == name)
}

/// Normal and build edges only as the table allows; edges for tests to any lower layer.
pub(crate) fn edges(edges: &[Edge]) -> Vec<Problem> {
    let forbidden = edges.iter().filter(|edge| {
        let (Some(from), Some(to)) = (wall(&edge.from), wall(&edge.to)) else { return false };
        let down = to.layer < from.layer;
        let allowed = edge.development || from.may_use.contains(&"*") || from.may_use.contains(&to.name);
        !(down && allowed)
    });
    let problem = |edge: &Edge| {
        let kind = if edge.development { "dev-dependency" } else { "dependency" };
        let text = format!(
            "{} must not have {} as a {kind}: pass the value in from a crate above both, or move the shared words \
             down to defib-model (the table is in tests/tests/tidy/edges.rs)",
            edge.from, edge.to
        );
        Problem::new(&edge.manifest, 0, text)
    };
    forbidden.map(problem).collect()
}

pub(crate) fn libraries_of_the_pure(edges: &[Edge]) -> Vec<Problem> {
    let foreign = edges.iter().filter(|edge| !edge.development && wall(&edge.to).is_none()).filter(|edge| {
        PURE.iter().any(|(name, allowed)| edge.from == *name && !allowed.contains(&edge.to.as_str()))
    });
    let problem = |edge: &Edge| {
        let text = format!(
            "{} is pure and must not use {}: do it in a shell, and hand the result in as an observation",
            edge.from, edge.to
        );
        Problem::new(&edge.manifest, 0, text)
    };
    foreign.map(problem).collect()
}

pub(crate) fn sources(edges: &[Edge]) -> Vec<Problem> {
    let is_registry = |source: &str| {
        source == "registry+https://github.com/rust-lang/crates.io-index" || source.starts_with("sparse+")
    };
    let odd = edges.iter().filter(|edge| match &edge.source {
        Some(source) => !is_registry(source),
        None => wall(&edge.to).is_none(),
    });
    let problem = |edge: &Edge| {
        let text =
            format!("{} comes from elsewhere than crates.io: use a published version, pinned", edge.to);
        Problem::new(&edge.manifest, 0, text)
    };
    odd.map(problem).collect()
}

#[cfg(test)]
fn planted(from: &str, to: &str, development: bool, source: Option<&str>) -> Edge {
    Edge {
        from: from.to_owned(),
        manifest: "planted/Cargo.toml".to_owned(),
        to: to.to_owned(),
        development,
        source: source.map(str::to_owned),
    }
}

#[test]
fn a_planted_edge_is_caught() {
    for (from, to, development) in [
        ("defib-model", "defib-engine", false),
        ("defib-engine", "defib-wire", false),
        ("defib-observe", "defib-act", false),
        ("defib-controller", "defib-agent", false),
        ("defib-cli", "defib-lab", false),
        ("defib-lab", "defib-engine", false),
        ("defib-engine", "defib-lab", true),
        ("defib-consensus", "defib-model", false),
        ("xtask", "defib-model", false),
    ] {
        let problems = edges(&[planted(from, to, development, None)]);
        assert_eq!(problems.len(), 1, "{from} → {to}");
        assert!(problems[0].to_string().contains("pass the value in"), "{}", problems[0]);
    }
    assert_eq!(edges(&[planted("defib-lab", "defib-observe", true, None)]), [], "a test may look down");
    assert_eq!(edges(&[planted("defib-engine", "defib-model", false, None)]), []);
}

#[test]
fn a_planted_library_in_a_pure_crate_and_a_planted_git_source_are_caught() {
    assert_eq!(libraries_of_the_pure(&[planted("defib-engine", "rand", false, None)]).len(), 1);
    assert_eq!(libraries_of_the_pure(&[planted("defib-engine", "serde", false, None)]), []);
    let git = "git+https://github.com/tikv/raft-rs";
    assert_eq!(sources(&[planted("defib-consensus", "raft", false, Some(git))]).len(), 1);
    assert_eq!(sources(&[planted("defib-consensus", "raft", false, None)]).len(), 1, "a vendored path");
    assert_eq!(sources(&[planted("defib-lab", "defib-model", false, None)]), []);
}
