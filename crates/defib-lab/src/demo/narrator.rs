//! Tells what happens: coloured and with a live line on a terminal, plain lines otherwise.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};

use defib_model::inventory::Priority;
use defib_model::{EventKind, HostId, Inventory, Opinion, VmId};

use super::peers::{self, Fault};
use crate::clock::millis_between;
use crate::cluster::Seen;

/// What a line is about, which decides its colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// Something was broken on purpose.
    Fault,
    /// Doubt.
    Doubt,
    /// Certainty.
    Certain,
    /// It gets better.
    Good,
    /// An invariant or a scenario failed.
    Bad,
    /// Everything else.
    Plain,
}

impl Tone {
    const fn code(self) -> &'static str {
        match self {
            Self::Fault => "1;31",
            Self::Doubt => "33",
            Self::Certain => "1;36",
            Self::Good => "32",
            Self::Bad => "1;97;41",
            Self::Plain => "0",
        }
    }
}

/// The one that tells.
#[derive(Debug)]
pub struct Narrator {
    colour: bool,
    live: bool,
    live_shown: bool,
    fault_at_ns: Option<u64>,
    fault: Fault,
    where_vms_are: BTreeMap<VmId, HostId>,
    last_heartbeat_told: bool,
    lost: usize,
    running: usize,
}

impl Narrator {
    /// Looks at standard output and `NO_COLOR`.
    #[must_use]
    pub fn new() -> Self {
        let live = std::io::stdout().is_terminal();
        let colour = live && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self {
            colour,
            live,
            live_shown: false,
            fault_at_ns: None,
            fault: Fault::Fencible,
            where_vms_are: BTreeMap::new(),
            last_heartbeat_told: false,
            lost: 0,
            running: 0,
        }
    }

    /// A scenario begins.
    pub fn title(&mut self, name: &str, text: &str) {
        self.fault_at_ns = None;
        self.fault = Fault::Fencible;
        self.where_vms_are.clear();
        self.last_heartbeat_told = false;
        (self.lost, self.running) = (0, 0);
        self.line("");
        let heading = self.paint(Tone::Certain, name);
        self.line(&format!("== {heading} == {text}"));
    }

    /// The fault was injected then, and this many VMs were lost by it.
    pub fn fault(&mut self, at_ns: u64, fault: Fault, lost: usize, text: &str) {
        self.fault_at_ns = Some(at_ns);
        (self.fault, self.lost, self.running) = (fault, lost, 0);
        self.step(at_ns, Tone::Fault, "fault", text, false);
    }

    /// Something without a time.
    pub fn note(&mut self, text: &str) {
        let text = self.paint_code("2", text);
        self.line(&format!("   {text}"));
    }

    /// A line of any tone without a time.
    pub fn say(&mut self, tone: Tone, text: &str) {
        let text = self.paint(tone, text);
        self.line(&format!("   {text}"));
    }

    /// A step with its time since the fault, and where others are if it is a milestone.
    pub fn step(&mut self, at_ns: u64, tone: Tone, label: &str, text: &str, milestone: bool) {
        let ms = self.fault_at_ns.map_or(0.0, |fault| millis_between(fault, at_ns));
        let label = self.paint(tone, &format!("{label:<10}"));
        let mut line = format!("{:>10}  {label} {text}", format!("{ms:+.0} ms"));
        if milestone && self.fault_at_ns.is_some() {
            let beside = format!("   | {}", peers::beside(ms, self.fault));
            line.push_str(&self.paint_code("2", &beside));
        }
        self.line(&line);
    }

    /// Where others would be at that moment, one line each.
    pub fn peers(&mut self, ms: f64) {
        self.note(&format!("beside it, {:.2} s after the same fault, by their defaults:", ms / 1000.0));
        for (name, text) in peers::at(ms, self.fault) {
            self.note(&format!("  {name:<11} {text}"));
        }
    }

    /// On a terminal: one line that is rewritten.
    pub fn status(&mut self, now_ns: u64, text: &str) {
        if !self.live {
            return;
        }
        let since = self.fault_at_ns.map_or(0.0, |fault| millis_between(fault, now_ns) / 1000.0);
        let mut bar = String::new();
        if let Some(full) = (self.running.min(self.lost) * 20).checked_div(self.lost) {
            bar = format!(
                " [{}{}] {}/{} VMs",
                "#".repeat(full),
                ".".repeat(20 - full),
                self.running,
                self.lost
            );
        }
        let line = self.paint_code("2", &format!("{since:>7.1} s {bar} {text}"));
        let mut out = std::io::stdout().lock();
        let _ = write!(out, "\r\x1b[2K{line}");
        let _ = out.flush();
        self.live_shown = true;
    }

    /// Any line. A reader that went away is no reason to fail.
    pub fn line(&mut self, text: &str) {
        let mut out = std::io::stdout().lock();
        if std::mem::take(&mut self.live_shown) {
            let _ = write!(out, "\r\x1b[2K");
        }
        let _ = writeln!(out, "{text}");
        let _ = out.flush();
    }

    /// Text in a tone.
    #[must_use]
    pub fn paint(&self, tone: Tone, text: &str) -> String {
        self.paint_code(tone.code(), text)
    }

    fn paint_code(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Keeps in mind where VMs are, without telling.
    pub fn remember(&mut self, seen: &Seen) {
        if let EventKind::VmPlaced { vm, host, .. } = &seen.event.kind {
            self.where_vms_are.insert(vm.clone(), host.clone());
        }
    }

    /// Tells an event, if it is worth telling.
    pub fn event(&mut self, seen: &Seen, inventory: &Inventory) {
        let at = seen.at_ns;
        let kind = &seen.event.kind;
        match kind {
            EventKind::OpinionChanged { observer, host, to, silent_ms, .. } => {
                if !std::mem::replace(&mut self.last_heartbeat_told, true) && *to != Opinion::Alive {
                    let heard = at.saturating_sub(silent_ms.saturating_mul(1_000_000));
                    self.step(
                        heard,
                        Tone::Plain,
                        "heartbeat",
                        &format!("the last one of {host} that r{observer} heard"),
                        false,
                    );
                }
                let text = match to {
                    Opinion::Alive => format!("r{observer} hears {host} again"),
                    Opinion::Asks => {
                        format!("r{observer} asks: {host} is silent for {silent_ms} ms on all paths")
                    }
                    Opinion::Dead => format!("r{observer} votes: {host} is dead, silent for {silent_ms} ms"),
                };
                let tone = if *to == Opinion::Alive { Tone::Good } else { Tone::Doubt };
                self.step(at, tone, "suspicion", &text, false);
            }
            EventKind::HostSuspected { host } => {
                let text = format!("two of three ask: what does the BMC of {host} read?");
                self.step(at, Tone::Doubt, "question", &text, true);
            }
            EventKind::HostConfirmed { host, epoch, detail } => {
                let text = format!("{host} is condemned, epoch {epoch}: {detail}");
                self.step(at, Tone::Certain, "verdict", &text, true);
            }
            EventKind::FenceIntended { host, attempt, level } => {
                let text = format!("power off {host}: intent committed, attempt {attempt}, level {level}");
                self.step(at, Tone::Certain, "fence", &text, false);
            }
            EventKind::FenceFailed { .. } => self.step(at, Tone::Doubt, "fence", &kind.to_string(), false),
            EventKind::HostUnconfirmed { .. } => {
                self.step(at, Tone::Doubt, "unproven", &kind.to_string(), true)
            }
            EventKind::LeaseExpiryVoted { .. } => {
                self.step(at, Tone::Doubt, "lease", &kind.to_string(), false)
            }
            EventKind::DeathProven { host, epoch, proof } => {
                let text = format!("{host} is dead in epoch {epoch}: {proof}");
                self.step(at, Tone::Certain, "proof", &text, true);
            }
            EventKind::VmPlaced { vm, host, from, because, broken, .. } => {
                let text = self.placed(vm, host, from.as_ref(), broken, inventory);
                let text = format!("{text}; {because}");
                self.where_vms_are.insert(vm.clone(), host.clone());
                self.step(at, Tone::Plain, "plan", &text, false);
            }
            EventKind::VmUnplaced { vm, reasons } => {
                let text = format!("{vm} has no place: {}", reasons.join("; "));
                self.step(at, Tone::Doubt, "plan", &text, false);
            }
            EventKind::VmRunning { vm, host, incarnation } => {
                self.running += 1;
                let count =
                    if self.lost > 0 { format!("{}/{} ", self.running, self.lost) } else { String::new() };
                let text = format!(
                    "{count}{vm} ({}) runs on {host}, incarnation {incarnation}",
                    priority(vm, inventory)
                );
                self.step(at, Tone::Good, "restart", &text, false);
            }
            EventKind::VmReady { vm, readiness } => {
                self.step(at, Tone::Good, "ready", &format!("{vm}: {readiness}"), false);
            }
            EventKind::HostRecovered { .. } => {
                self.step(at, Tone::Good, "recovered", &kind.to_string(), true)
            }
            EventKind::HostReadmitted { .. } => {
                self.step(at, Tone::Good, "readmitted", &kind.to_string(), false)
            }
            EventKind::LeaderStarted { .. } => self.step(at, Tone::Plain, "leader", &kind.to_string(), false),
            EventKind::ObserverStarted { .. } => {
                self.step(at, Tone::Plain, "observer", &kind.to_string(), false)
            }
            EventKind::RecoveryAbandoned { .. } => {
                self.step(at, Tone::Good, "abandoned", &kind.to_string(), false)
            }
            EventKind::BrakeEngaged { .. }
            | EventKind::BrakeReleased { .. }
            | EventKind::BrakeOverridden { .. } => {
                self.step(at, Tone::Doubt, "brake", &kind.to_string(), false);
            }
            EventKind::VmDown { .. }
            | EventKind::VmGivenUp { .. }
            | EventKind::VmConditionChanged { .. }
            | EventKind::UnprotectedChanged { runs: true, .. }
            | EventKind::DatastoreChanged { trouble: Some(_), .. } => {
                self.step(at, Tone::Doubt, "down", &kind.to_string(), false);
            }
            EventKind::Disarmed { .. }
            | EventKind::HostQuarantined { .. }
            | EventKind::ProofContradicted { .. } => {
                self.step(at, Tone::Bad, "stopped", &kind.to_string(), false);
            }
            EventKind::HeartbeatsForged { .. } => {
                self.step(at, Tone::Bad, "forged", &kind.to_string(), false);
            }
            EventKind::BmcTold { .. } => self.step(at, Tone::Doubt, "bmc", &kind.to_string(), false),
            EventKind::PathDegraded { .. } => {
                self.step(at, Tone::Doubt, "path", &kind.to_string(), false);
            }
            EventKind::FencingTested { .. } => {
                self.step(at, Tone::Doubt, "test", &kind.to_string(), false);
            }
            EventKind::GoodbyeSaid { .. }
            | EventKind::ReplicasChanged { .. }
            | EventKind::WatchdogChanged { .. }
            | EventKind::VmRebooted { .. }
            | EventKind::UnprotectedChanged { runs: false, .. }
            | EventKind::DatastoreChanged { trouble: None, .. }
            | EventKind::OperatorActed { .. }
            | EventKind::PolicyChanged { .. }
            | EventKind::InventoryChanged { .. }
            | EventKind::JoinTokenUsed { .. }
            | EventKind::ClusterVersionRaised { .. }
            | EventKind::ClockSetBack { .. }
            | EventKind::ClockCompared { .. }
            | EventKind::SinkGap { .. }
            | EventKind::HeadSigned { .. }
            | EventKind::CommandRefused { .. } => {}
        }
    }

    /// A place, and what kept the VM from others.
    fn placed(
        &self,
        vm: &VmId,
        host: &HostId,
        from: Option<&HostId>,
        broken: &[String],
        inventory: &Inventory,
    ) -> String {
        let from = from.map_or_else(String::new, |from| format!("{from} -> "));
        let mut text = format!("{vm} ({}): {from}{host}", priority(vm, inventory));
        for group in inventory.groups.values().filter(|group| group.members.contains(vm)) {
            for rule in group.rules.iter().filter(|rule| rule.hard) {
                let mut taken: Vec<String> = group
                    .members
                    .iter()
                    .filter(|other| *other != vm)
                    .filter_map(|other| {
                        let place = inventory.hosts.get(self.where_vms_are.get(other)?)?;
                        let domain = place.domain.prefix(rule.level)?.join("/");
                        Some(format!("{domain} has {other}"))
                    })
                    .collect();
                taken.sort();
                if !taken.is_empty() {
                    text.push_str(&format!("; not where {} ({})", group.id, taken.join(", ")));
                }
            }
        }
        if let Some(declared) = inventory.vms.get(vm) {
            for (name, amount) in &declared.resources.named {
                let have: Vec<&str> = inventory
                    .hosts
                    .values()
                    .filter(|host| host.capacity.named.get(name).is_some_and(|count| count >= amount))
                    .map(|host| host.id.as_str())
                    .collect();
                text.push_str(&format!("; needs {name}, which only {} have", have.join(", ")));
            }
        }
        if !broken.is_empty() {
            text.push_str(&format!("; breaks soft rules: {}", broken.join(", ")));
        }
        text
    }
}

impl Default for Narrator {
    fn default() -> Self {
        Self::new()
    }
}

fn priority(vm: &VmId, inventory: &Inventory) -> Priority {
    inventory.vms.get(vm).map(|vm| vm.priority).unwrap_or_default()
}
