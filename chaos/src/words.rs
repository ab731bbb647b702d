//! What scenario files call the parts of a lab.

use std::collections::BTreeSet;

use anyhow::{Context, bail, ensure};
use serde::Deserialize;

/// Hosts: `h1`, `h1, h3`, `rack r1`, `hosts` (all of them).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) enum Hosts {
    /// By name.
    Named(Vec<String>),
    /// All in a rack.
    Rack(String),
    /// All.
    All,
}

fn is_name(text: &str, letter: char) -> bool {
    text.strip_prefix(letter).is_some_and(|number| number.parse::<usize>().is_ok_and(|number| number > 0))
}

impl TryFrom<String> for Hosts {
    type Error = anyhow::Error;

    fn try_from(text: String) -> anyhow::Result<Self> {
        if text == "hosts" {
            return Ok(Self::All);
        }
        if let Some(rack) = text.strip_prefix("rack ") {
            ensure!(is_name(rack, 'r'), "{text:?} names no rack; say `rack r1`");
            return Ok(Self::Rack(rack.to_owned()));
        }
        let names: Vec<String> = text.split(',').map(|name| name.trim().to_owned()).collect();
        ensure!(
            names.iter().all(|name| is_name(name, 'h')),
            "{text:?} names no hosts; say `h1`, `h1, h2`, `rack r1` or `hosts`"
        );
        Ok(Self::Named(names))
    }
}

/// Replicas: `r1`, `leader`, `follower` (the first one), `followers`, `replicas` (all of them).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) enum Replicas {
    /// By number.
    Number(u64),
    /// Who leads then.
    Leader,
    /// The first who does not.
    Follower,
    /// All who do not.
    Followers,
    /// All.
    All,
}

impl TryFrom<String> for Replicas {
    type Error = anyhow::Error;

    fn try_from(text: String) -> anyhow::Result<Self> {
        Ok(match text.as_str() {
            "leader" => Self::Leader,
            "follower" => Self::Follower,
            "followers" => Self::Followers,
            "replicas" => Self::All,
            name => Self::Number(
                name.strip_prefix('r')
                    .and_then(|number| number.parse().ok())
                    .filter(|number| (1..=3).contains(number))
                    .with_context(|| format!("{name:?} names no replicas; say `leader`, `follower`, `followers`, `replicas` or `r1`"))?,
            ),
        })
    }
}

impl Replicas {
    /// Their numbers, when `leader` leads.
    pub(crate) fn among(self, all: &[u64], leader: u64) -> anyhow::Result<Vec<u64>> {
        let led = || ensure_led(leader);
        let others = || all.iter().copied().filter(|id| *id != leader);
        Ok(match self {
            Self::Number(id) => vec![id],
            Self::All => all.to_vec(),
            Self::Leader => {
                led()?;
                vec![leader]
            }
            Self::Follower => {
                led()?;
                others().take(1).collect()
            }
            Self::Followers => {
                led()?;
                others().collect()
            }
        })
    }
}

fn ensure_led(leader: u64) -> anyhow::Result<()> {
    ensure!(leader != 0, "there is no leader now");
    Ok(())
}

/// Processes: `agent of HOSTS`, `libvirtd of HOSTS`, `bmc of HOSTS`, `guest NAME`, or replicas.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) enum Processes {
    /// Agents.
    Agents(Hosts),
    /// Daemons of libvirt.
    Libvirtds(Hosts),
    /// The QEMU of a VM, wherever it runs.
    Guest(String),
    /// Replicas.
    Replicas(Replicas),
}

impl TryFrom<String> for Processes {
    type Error = anyhow::Error;

    fn try_from(text: String) -> anyhow::Result<Self> {
        if let Some(name) = text.strip_prefix("guest ") {
            return Ok(Self::Guest(name.to_owned()));
        }
        match text.split_once(" of ") {
            Some(("agent", hosts)) => Ok(Self::Agents(hosts.to_owned().try_into()?)),
            Some(("libvirtd", hosts)) => Ok(Self::Libvirtds(hosts.to_owned().try_into()?)),
            Some((other, _)) => bail!("{other:?} is nothing that a host runs; say `agent` or `libvirtd`"),
            None => text.clone().try_into().map(Self::Replicas).with_context(|| {
                format!(
                    "{text:?} is no process; say `agent of h1`, `libvirtd of h1`, `guest cp-1` or a replica"
                )
            }),
        }
    }
}

/// One end of a cut: hosts, BMCs (`bmc of HOSTS`) or replicas.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) enum End {
    /// Hosts.
    Hosts(Hosts),
    /// Their BMCs.
    Bmcs(Hosts),
    /// Replicas.
    Replicas(Replicas),
}

impl TryFrom<String> for End {
    type Error = anyhow::Error;

    fn try_from(text: String) -> anyhow::Result<Self> {
        if let Some(hosts) = text.strip_prefix("bmc of ") {
            return Ok(Self::Bmcs(hosts.to_owned().try_into()?));
        }
        if let Ok(replicas) = text.clone().try_into() {
            return Ok(Self::Replicas(replicas));
        }
        text.clone()
            .try_into()
            .map(Self::Hosts)
            .with_context(|| format!("{text:?} is no end of a cable; say hosts, `bmc of h1` or replicas"))
    }
}

/// Names, in words.
pub(crate) fn listed<T: ToString>(names: impl IntoIterator<Item = T>) -> String {
    let names: Vec<String> = names.into_iter().map(|name| name.to_string()).collect();
    names.join(", ")
}

/// The same, each once.
pub(crate) fn once<T: Ord + ToString>(names: impl IntoIterator<Item = T>) -> String {
    listed(names.into_iter().collect::<BTreeSet<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse<T: TryFrom<String, Error = anyhow::Error>>(text: &str) -> anyhow::Result<T> {
        text.to_owned().try_into()
    }

    #[test]
    fn parts_are_called_by_words_and_other_words_are_refused() {
        assert_eq!(parse::<Hosts>("h1, h12").unwrap(), Hosts::Named(vec!["h1".into(), "h12".into()]));
        assert_eq!(parse::<Hosts>("rack r2").unwrap(), Hosts::Rack("r2".into()));
        assert_eq!(parse::<Processes>("agent of hosts").unwrap(), Processes::Agents(Hosts::All));
        assert_eq!(parse::<Processes>("leader").unwrap(), Processes::Replicas(Replicas::Leader));
        assert_eq!(parse::<End>("bmc of h1").unwrap(), End::Bmcs(Hosts::Named(vec!["h1".into()])));
        assert_eq!(parse::<End>("followers").unwrap(), End::Replicas(Replicas::Followers));
        for wrong in ["h0", "r1", "h", "rack 1", "everything", ""] {
            assert!(parse::<Hosts>(wrong).is_err(), "{wrong}");
        }
        for wrong in ["kernel of h1", "agent of r1", "r4", "boss"] {
            let error = format!("{:#}", parse::<Processes>(wrong).unwrap_err());
            assert!(error.contains("say "), "{error}");
        }
    }

    #[test]
    fn who_leads_decides_who_follows() {
        let all = [1, 2, 3];
        assert_eq!(Replicas::Follower.among(&all, 1).unwrap(), [2]);
        assert_eq!(Replicas::Followers.among(&all, 2).unwrap(), [1, 3]);
        assert_eq!(Replicas::All.among(&all, 0).unwrap(), all);
        assert!(Replicas::Leader.among(&all, 0).is_err());
    }
}
