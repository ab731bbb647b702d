//! A cable that loses, delays, reorders and duplicates, since the kernel can't (no netem here): the cable is cut
//! through, and a small process stands between its halves. All other cables keep their speed.

pub(crate) mod fate;
mod forward;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use defib_lab::cluster::{Process, Program, describe, wait_until};
pub(crate) use forward::run;

use self::fate::{Counts, Weather};
use crate::cuts::Network;
use crate::machines::feed;

/// How long the process may take to begin and to end.
const WITHIN: Duration = Duration::from_secs(10);

/// A cable, by the name of its end at the switch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cable {
    /// Whose: `h1`, `r2`.
    pub(crate) machine: String,
    /// On which network.
    pub(crate) network: Network,
}

impl Cable {
    fn port(&self) -> String {
        format!("{}-{}", self.machine, self.network.cable())
    }

    /// Where the relay gives out what came in at the port, …
    fn inner(&self) -> String {
        format!("{}-r", self.port())
    }

    /// … and the port of the bridge in place of the cable's own. Cuts know it by its beginning.
    fn outer(&self) -> String {
        format!("{}-b", self.port())
    }

    fn bridge(&self) -> String {
        format!("br-{}", self.network.cable())
    }
}

/// Nobody answers questions for addresses at ends that belong to no machine.
fn lay(cables: &[Cable]) -> String {
    let mut text = String::new();
    for cable in cables {
        let (inner, outer) = (cable.inner(), cable.outer());
        let _ = writeln!(text, "link add {outer} type veth peer name {inner}");
        let _ = writeln!(text, "link set {inner} arp off up\nlink set {outer} up");
    }
    text
}

fn put_in(cables: &[Cable]) -> String {
    let mut text = String::new();
    for cable in cables {
        let (port, outer, bridge) = (cable.port(), cable.outer(), cable.bridge());
        let _ = writeln!(text, "link set {port} nomaster arp off\nlink set {outer} master {bridge}");
    }
    text
}

fn take_out(cables: &[Cable]) -> String {
    let mut text = String::new();
    for cable in cables {
        let (port, outer, bridge) = (cable.port(), cable.outer(), cable.bridge());
        let _ = writeln!(text, "link delete {outer}\nlink set {port} arp on master {bridge}");
    }
    text
}

/// A relay at work, in some cables.
#[derive(Debug)]
pub(crate) struct Relay {
    cables: Vec<Cable>,
    process: Process,
    output: PathBuf,
}

impl Relay {
    /// Puts a relay into these cables.
    ///
    /// # Errors
    /// When a cable is not there, or has one already.
    pub(crate) async fn put_in(
        cables: Vec<Cable>,
        weather: Weather,
        seed: u64,
        output: &Path,
    ) -> anyhow::Result<Self> {
        ensure!(!cables.is_empty(), "a relay wants a cable");
        match Self::begin(cables.clone(), weather, seed, output).await {
            Ok(relay) => Ok(relay),
            Err(error) => {
                let _ = feed("ip", &["-force", "-batch", "-"], &take_out(&cables));
                Err(error)
            }
        }
    }

    async fn begin(cables: Vec<Cable>, weather: Weather, seed: u64, output: &Path) -> anyhow::Result<Self> {
        feed("ip", &["-batch", "-"], &lay(&cables))
            .context("a cable can't be cut through, or was already")?;
        let mut words: Vec<String> = ["relay".to_owned(), "--seed".to_owned(), seed.to_string()].into();
        for (option, value) in [
            ("--delay", format!("{}us", weather.delay.as_micros())),
            ("--jitter", format!("{}us", weather.jitter.as_micros())),
            ("--lose", weather.lose.to_string()),
            ("--duplicate", weather.duplicate.to_string()),
            ("--reorder", weather.reorder.to_string()),
        ] {
            words.extend([option.to_owned(), value]);
        }
        words.extend(cables.iter().flat_map(|cable| [cable.port(), cable.inner()]));
        let program = Program {
            path: std::env::current_exe()?,
            arguments: words.into_iter().map(Into::into).collect(),
            output: output.to_owned(),
            watched_input: true,
        };
        let mut relay = Self { cables, process: Process::start(&program)?, output: output.to_owned() };
        wait_until("a relay is ready", WITHIN, || {
            let ended = relay.process.ended();
            let said = std::fs::read_to_string(&relay.output).unwrap_or_default();
            async move {
                if let Some(status) = ended {
                    return Err(anyhow::anyhow!("it ended with {}: {}", describe(status), said.trim()));
                }
                ensure!(said.lines().any(|line| line == "ready"), "it says nothing");
                Ok(())
            }
        })
        .await?;
        feed("ip", &["-batch", "-"], &put_in(&relay.cables)).context("a relay can't be put into a cable")?;
        Ok(relay)
    }

    /// Takes it out of its cables. What it says became of all frames.
    ///
    /// # Errors
    /// When it had fallen.
    pub(crate) fn take_out(mut self) -> anyhow::Result<Counts> {
        let fallen = self.process.ended();
        // A host that lost its power has taken its end along.
        let _ = feed("ip", &["-force", "-batch", "-"], &take_out(&self.cables));
        self.process.stop(WITHIN);
        let said = std::fs::read_to_string(&self.output).unwrap_or_default();
        ensure!(fallen.is_none(), "a relay had fallen: {}", said.trim());
        let counts = said.lines().rev().find_map(Counts::read);
        counts.with_context(|| format!("a relay does not say what it did: {}", said.trim()))
    }
}

/// In words.
pub(crate) fn told(counts: &Counts) -> String {
    let Counts { came, went, lost, doubled, held, overflowed, refused } = counts;
    let mut text =
        format!("{came} frames came, {went} went on, {lost} were lost, {doubled} doubled, {held} overtaken");
    for (count, word) in [(overflowed, "found the queue full"), (refused, "found nobody at the other end")] {
        if *count > 0 {
            let _ = write!(text, ", {count} {word}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cable_is_put_back_as_it_was() {
        let cable = [Cable { machine: "h16".into(), network: Network::Management }];
        let text = lay(&cable) + &put_in(&cable) + &take_out(&cable);
        assert!(text.contains("link add h16-mgmt-b type veth peer name h16-mgmt-r"), "{text}");
        assert!(
            text.contains("link set h16-mgmt nomaster arp off\nlink set h16-mgmt-b master br-mgmt"),
            "{text}"
        );
        assert!(text.ends_with("link set h16-mgmt arp on master br-mgmt\n"), "{text}");
        // No name of an interface is longer than 15 letters.
        assert!(text.split_whitespace().filter(|word| word.contains("h16-")).all(|word| word.len() < 16));
    }
}
