//! What cargo is asked to build. Features of shared crates are the union over all packages and targets that one call
//! selects, and a crate whose features differ is built again with all that depends on it. So our commands select the
//! same, and what one has built the next one finds.

use std::process::Command;

use crate::cargo::cargo;
use crate::{kafka, packages};

/// What is built and tested where protoc is: see crates/defib-etcd/Cargo.toml.
const ETCD: &str = "defib-controller/etcd,defib-etcd/client,defib-tests/etcd";
/// What is built and tested where libvirt's headers are.
const LIBVIRT: &str = "defib-agent/libvirt,defib-tests/libvirt";
/// What is built and tested where librdkafka can be built: see crates/defib-kafka/Cargo.toml.
const KAFKA: &str = "defib-agent/kafka,defib-cli/kafka,defib-controller/kafka,defib-export/kafka,\
    defib-observe/kafka,defib-tests/kafka";

/// All programs that are started as they are deployed, with the labs that start them.
const RELEASED: [&str; 14] = [
    "build",
    "--release",
    "-p",
    "defib-controller",
    "-p",
    "defib-agent",
    "-p",
    "defib-cli",
    "-p",
    "defib-lab",
    "-p",
    "defib-chaos",
    "-p",
    "defib-sim",
];

/// The features for the programs of others that are here.
#[derive(Debug)]
pub(crate) struct Features {
    on: Vec<&'static str>,
    /// The name of a part that can't be built here, and why.
    pub(crate) missing: Vec<(&'static str, String)>,
}

impl Features {
    pub(crate) fn of_this_machine() -> Self {
        let libvirt = if packages::has_libvirt() {
            Ok(())
        } else {
            Err("libvirt's headers are not here: its driver is not built (libvirt-dev)".to_owned())
        };
        let (mut on, mut missing) = (Vec::new(), Vec::new());
        let parts = [
            ("libvirt", LIBVIRT, libvirt),
            ("etcd", ETCD, packages::has_protoc()),
            ("kafka", KAFKA, kafka::can_build()),
        ];
        for (name, features, can_build) in parts {
            match can_build {
                Ok(()) => on.push(features),
                Err(why) => missing.push((name, why)),
            }
        }
        Self { on, missing }
    }

    /// As cargo takes them.
    pub(crate) fn list(&self) -> String {
        self.on.join(",")
    }
}

/// A call of cargo for the whole workspace with `features`. To find what `cargo xtask test` has built, `targets` must
/// name a test: only then do dev-dependencies count.
pub(crate) fn workspace(verb: &str, features: &str, targets: &[&str]) -> Command {
    let mut command = cargo(&[verb, "--workspace", "--features", features]);
    command.args(targets);
    command
}

/// Builds what the demo, the chaos lab and the simulator are, and all that they start.
pub(crate) fn released() -> Command {
    let mut command = cargo(&RELEASED);
    if packages::has_libvirt() {
        command.args(["--features", "defib-agent/libvirt"]);
    }
    command
}
