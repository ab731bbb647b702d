//! Cuts of the networks, by the switch's own filter: one table that is written anew for each change.

use std::fmt::Write as _;

use crate::machines::{feed, run};

/// What stands at an end of a cut.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Port {
    /// A machine, by the name that its cables begin with.
    Machine(String),
    /// The BMC of the host with this number: it is an address of the switch.
    Bmc(usize),
}

/// Nothing goes from here to there any more.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct OneWay {
    /// From here …
    pub(crate) from: Port,
    /// … to there.
    pub(crate) to: Port,
}

const NETWORKS: [(&str, u8); 2] = [("data", 1), ("mgmt", 2)];

/// The filter of all cuts.
fn table(cuts: &[OneWay]) -> String {
    let mut forward = String::new();
    let mut input = String::new();
    let mut output = String::new();
    for OneWay { from, to } in cuts {
        match (from, to) {
            (Port::Machine(from), Port::Machine(to)) => {
                for (network, _) in NETWORKS {
                    let _ = writeln!(forward, "iifname \"{from}-{network}\" oifname \"{to}-{network}\" drop");
                }
            }
            (Port::Machine(from), Port::Bmc(to)) => {
                let _ = writeln!(input, "iifname \"{from}-mgmt\" ip daddr 10.99.2.{} drop", 10 + to);
            }
            (Port::Bmc(from), Port::Machine(to)) => {
                let _ = writeln!(output, "oifname \"{to}-mgmt\" ip saddr 10.99.2.{} drop", 10 + from);
            }
            // BMCs say nothing to each other.
            (Port::Bmc(_), Port::Bmc(_)) => {}
        }
    }
    let mut text = String::from("table bridge cuts\ndelete table bridge cuts\ntable bridge cuts {\n");
    for (hook, rules) in [("forward", forward), ("input", input), ("output", output)] {
        let _ =
            writeln!(text, "chain {hook} {{\ntype filter hook {hook} priority 0; policy accept;\n{rules}}}");
    }
    text.push_str("}\n");
    text
}

/// Puts these cuts in force, and no others.
///
/// # Errors
/// What the filter says against them.
pub(crate) fn apply(cuts: &[OneWay]) -> anyhow::Result<()> {
    if cuts.is_empty() {
        // Where there never was one there is nothing to remove.
        run("nft", &["add", "table", "bridge", "cuts"])?;
        run("nft", &["delete", "table", "bridge", "cuts"])?;
        return Ok(());
    }
    feed("nft", &["-f", "-"], &table(cuts)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_of_a_cut_is_a_rule_of_its_own() {
        let machine = |name: &str| Port::Machine(name.to_owned());
        let text = table(&[
            OneWay { from: machine("h1"), to: machine("r2") },
            OneWay { from: machine("r1"), to: Port::Bmc(3) },
            OneWay { from: Port::Bmc(3), to: machine("r1") },
        ]);
        assert!(text.contains("iifname \"h1-data\" oifname \"r2-data\" drop"), "{text}");
        assert!(!text.contains("iifname \"r2-data\""), "{text}");
        assert!(text.contains("iifname \"r1-mgmt\" ip daddr 10.99.2.13 drop"), "{text}");
        assert!(text.contains("oifname \"r1-mgmt\" ip saddr 10.99.2.13 drop"), "{text}");
    }
}
