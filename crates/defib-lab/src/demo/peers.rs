//! Where others would be, by their defaults, so long after the same fault. Kubernetes, Proxmox and vSphere: their
//! documented defaults; Pacemaker: measured on a machine of two cores, with a BMC as quick as ours.

/// What others can do about it differs by fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The BMC answers.
    Fencible,
    /// It does not.
    BmcDark,
}

/// One line per system: its name, and where it is after `ms`.
#[must_use]
pub fn at(ms: f64, fault: Fault) -> Vec<(&'static str, String)> {
    let seconds = ms / 1000.0;
    let kubernetes = if seconds < 40.0 {
        "node still Ready (NotReady at 40 s, pods elsewhere at 340 s, with RWO volumes at 700 s)"
    } else if seconds < 340.0 {
        "node NotReady, pods wait (elsewhere at 340 s, with RWO volumes at 700 s)"
    } else if seconds < 700.0 {
        "pods start elsewhere, those with RWO volumes wait (700 s)"
    } else {
        "pods run elsewhere"
    };
    let proxmox =
        if seconds < 120.0 { "waits for lock and watchdog (restarts at about 120 s)" } else { "restarts" };
    let pacemaker = match fault {
        Fault::BmcDark => "fencing fails and is repeated; nothing restarts until a human confirms",
        Fault::Fencible if seconds < 2.3 => "nothing restarted (9.0 s at defaults, 2.3 s tuned)",
        Fault::Fencible if seconds < 9.0 => "restarted if tuned (2.3 s); at defaults not yet (9.0 s)",
        Fault::Fencible => "restarted",
    };
    let vsphere = if seconds < 15.0 {
        "host not declared dead (15 s, restarts follow)"
    } else {
        "declared, restarting"
    };
    [("Kubernetes", kubernetes), ("Proxmox", proxmox), ("Pacemaker", pacemaker), ("vSphere", vsphere)]
        .into_iter()
        .map(|(name, text)| (name, text.to_owned()))
        .collect()
}

/// The same in a few words, to stand beside a step.
#[must_use]
pub fn beside(ms: f64, fault: Fault) -> String {
    let seconds = ms / 1000.0;
    let until = |text: &str, limit: f64| {
        if seconds < limit { format!("{text} {:.1} s", limit - seconds) } else { String::new() }
    };
    let or = |text: String, done: &str| if text.is_empty() { done.to_owned() } else { text };
    let pacemaker = match fault {
        Fault::Fencible => or(until("restarts in", 9.0), "restarted"),
        Fault::BmcDark => "blocked".to_owned(),
    };
    format!(
        "K8s {} · PVE {} · Pacemaker {pacemaker} · vSphere {}",
        or(until("NotReady in", 40.0), "NotReady"),
        or(until("restarts in", 120.0), "restarts"),
        or(until("declares in", 15.0), "declared"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_move_on_with_time() {
        assert!(beside(420.0, Fault::Fencible).contains("Pacemaker restarts in 8.6 s"));
        assert!(beside(9_100.0, Fault::Fencible).contains("Pacemaker restarted"));
        assert!(beside(9_100.0, Fault::BmcDark).contains("Pacemaker blocked"));
        assert!(at(41_000.0, Fault::Fencible)[0].1.starts_with("node NotReady"));
        assert!(at(800_000.0, Fault::Fencible)[0].1.starts_with("pods run"));
    }
}
