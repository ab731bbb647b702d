//! Where others would be, by their defaults, so long after the same fault. Kubernetes, Proxmox and vSphere: their
//! documented defaults; Pacemaker: measured on a machine of two cores, with a BMC as quick as ours.

/// What a system needs by its defaults until something is so.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    /// Its name.
    pub name: &'static str,
    /// From the fault.
    pub seconds: f64,
    /// Until what.
    pub until: &'static str,
    /// Where that is said, or how it was measured.
    pub source: &'static str,
}

/// Kubernetes takes a silent Kubernetes node for one that is not ready.
const NOT_READY: f64 = 40.0;
/// Then its pods are tolerated for 300 s.
const ELSEWHERE: f64 = 340.0;
/// Then volumes that one Kubernetes node holds are detached after 360 s.
const WITH_VOLUMES: f64 = 700.0;
const PROXMOX: f64 = 120.0;
const PACEMAKER_TUNED: f64 = 2.3;
const PACEMAKER: f64 = 9.0;
const VSPHERE: f64 = 15.0;

/// What others need, with the source of each figure.
pub const DEFAULTS: &[Peer] = &[
    Peer {
        name: "Pacemaker, tuned",
        seconds: PACEMAKER_TUNED,
        until: "the first VM is restarted",
        source: "measured on a machine of two cores, with a BMC as quick as ours",
    },
    Peer {
        name: "Pacemaker",
        seconds: PACEMAKER,
        until: "the first VM is restarted",
        source: "measured on the same machine, at defaults",
    },
    Peer {
        name: "vSphere",
        seconds: VSPHERE,
        until: "the host is declared dead; restarts follow",
        source: "VMware vSphere Availability: a host without heartbeats is declared failed after 15 s",
    },
    Peer {
        name: "Kubernetes",
        seconds: NOT_READY,
        until: "the Kubernetes node is not ready",
        source: "kube-controller-manager --node-monitor-grace-period=40s (50s since v1.32)",
    },
    Peer {
        name: "Proxmox",
        seconds: PROXMOX,
        until: "its VMs are restarted",
        source: "Proxmox VE ha-manager: the lock of a lost host is taken over after two minutes",
    },
    Peer {
        name: "Kubernetes",
        seconds: ELSEWHERE,
        until: "pods are started elsewhere",
        source: "DefaultTolerationSeconds: not-ready and unreachable are tolerated for 300 s more",
    },
    Peer {
        name: "Kubernetes",
        seconds: WITH_VOLUMES,
        until: "pods with ReadWriteOnce volumes are started elsewhere",
        source: "attach-detach controller, maxWaitForUnmountDuration=6m (kubernetes/kubernetes #50944)",
    },
];

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
    let kubernetes = if seconds < NOT_READY {
        "node still Ready (NotReady at 40 s, pods elsewhere at 340 s, with RWO volumes at 700 s)"
    } else if seconds < ELSEWHERE {
        "node NotReady, pods wait (elsewhere at 340 s, with RWO volumes at 700 s)"
    } else if seconds < WITH_VOLUMES {
        "pods start elsewhere, those with RWO volumes wait (700 s)"
    } else {
        "pods run elsewhere"
    };
    let proxmox =
        if seconds < PROXMOX { "waits for lock and watchdog (restarts at about 120 s)" } else { "restarts" };
    let pacemaker = match fault {
        Fault::BmcDark => "fencing fails and is repeated; nothing restarts until a human confirms",
        Fault::Fencible if seconds < PACEMAKER_TUNED => "nothing restarted (9.0 s at defaults, 2.3 s tuned)",
        Fault::Fencible if seconds < PACEMAKER => "restarted if tuned (2.3 s); at defaults not yet (9.0 s)",
        Fault::Fencible => "restarted",
    };
    let vsphere = if seconds < VSPHERE {
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
        Fault::Fencible => or(until("restarts in", PACEMAKER), "restarted"),
        Fault::BmcDark => "blocked".to_owned(),
    };
    format!(
        "K8s {} · PVE {} · Pacemaker {pacemaker} · vSphere {}",
        or(until("NotReady in", NOT_READY), "NotReady"),
        or(until("restarts in", PROXMOX), "restarts"),
        or(until("declares in", VSPHERE), "declared"),
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
