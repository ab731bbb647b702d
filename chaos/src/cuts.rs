//! Cuts of the networks, by the switch's own filter: one table that is written anew for each change.

use std::fmt::Write as _;

use serde::Deserialize;

use crate::machines::{bmc, feed, run};

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
    /// On this network; `None`: on both.
    pub(crate) network: Option<Network>,
    /// Only so many packets of a hundred.
    pub(crate) percent: u8,
}

/// A network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Network {
    /// Between hosts and replicas.
    Data,
    /// Of BMCs, and the second path of heartbeats.
    Management,
}

impl Network {
    /// How its cables' names end.
    pub(crate) const fn cable(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Management => "mgmt",
        }
    }
}

/// The filter of all cuts. A cable that runs through a relay has a longer name at the bridge, hence the stars.
fn table(cuts: &[OneWay]) -> String {
    let mut forward = String::new();
    let mut input = String::new();
    let mut output = String::new();
    for OneWay { from, to, network, percent } in cuts {
        let drop = match percent {
            100 => "drop".to_owned(),
            some => format!("numgen random mod 100 < {some} drop"),
        };
        let on = |one: Network| network.is_none_or(|network| network == one);
        match (from, to) {
            (Port::Machine(from), Port::Machine(to)) => {
                for cable in [Network::Data, Network::Management].into_iter().filter(|one| on(*one)) {
                    let cable = cable.cable();
                    let _ = writeln!(forward, "iifname \"{from}-{cable}*\" oifname \"{to}-{cable}*\" {drop}");
                }
            }
            (Port::Machine(from), Port::Bmc(to)) if on(Network::Management) => {
                let _ = writeln!(input, "iifname \"{from}-mgmt*\" ip daddr {} {drop}", bmc(*to));
            }
            (Port::Bmc(from), Port::Machine(to)) if on(Network::Management) => {
                let _ = writeln!(output, "oifname \"{to}-mgmt*\" ip saddr {} {drop}", bmc(*from));
            }
            // BMCs say nothing to each other.
            (Port::Machine(_) | Port::Bmc(_), Port::Bmc(_)) | (Port::Bmc(_), Port::Machine(_)) => {}
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
        let cut = |from, to| OneWay { from, to, network: None, percent: 100 };
        let text = table(&[
            OneWay { network: Some(Network::Data), ..cut(machine("h1"), machine("r2")) },
            cut(machine("r1"), Port::Bmc(3)),
            OneWay { percent: 30, ..cut(Port::Bmc(3), machine("r1")) },
        ]);
        assert!(text.contains("iifname \"h1-data*\" oifname \"r2-data*\" drop"), "{text}");
        assert!(!text.contains("iifname \"r2-data") && !text.contains("h1-mgmt"), "{text}");
        assert!(text.contains("iifname \"r1-mgmt*\" ip daddr 10.99.2.13 drop"), "{text}");
        let lossy = "oifname \"r1-mgmt*\" ip saddr 10.99.2.13 numgen random mod 100 < 30 drop";
        assert!(text.contains(lossy), "{text}");
    }
}
