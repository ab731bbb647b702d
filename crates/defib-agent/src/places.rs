//! Where the VMs of this boot live.
//!
//! An agent vouches that a VM does not run because no driver lists it. So it must look where its predecessors of this
//! boot have started VMs, whatever the configuration says by now: a run directory that was changed, or a libvirt that
//! is named no more, would make it vouch for VMs that run on, and they would start elsewhere beside themselves.

use std::path::PathBuf;

use defib_model::BootId;
use serde::{Deserialize, Serialize};

use crate::config::{Config, LibvirtConfig};

/// What the agents of one boot started VMs by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Places {
    boot: BootId,
    run_dir: PathBuf,
    libvirt: Option<LibvirtConfig>,
}

impl Places {
    /// Makes a configuration go by what is kept of this boot; what is to be kept now, and what an operator should know:
    /// which of the settings count from the next boot only.
    #[must_use]
    pub fn settle(kept: Option<Self>, boot: BootId, config: &mut Config) -> (Self, Vec<String>) {
        let mut notes = Vec::new();
        if let Some(Self { run_dir, libvirt, .. }) = kept.filter(|kept| kept.boot == boot) {
            if run_dir != config.run_dir {
                notes.push(format!(
                    "run-dir: {} counts from the next boot of this host; until then VMs are found under {}",
                    config.run_dir.display(),
                    run_dir.display()
                ));
                config.run_dir = run_dir;
            }
            if libvirt.is_some() && libvirt != config.libvirt {
                let uri = libvirt.as_ref().map_or("", |libvirt| &libvirt.uri);
                notes.push(if cfg!(feature = "libvirt") {
                    format!("libvirt: the change counts from the next boot of this host; until then VMs are found by {uri}")
                } else {
                    format!(
                        "libvirt: VMs may run by {uri}, and this agent was built without libvirt: it says nothing of what \
                         runs here, and starts nothing; build it with --features libvirt, or reboot this host"
                    )
                });
                config.libvirt = libvirt;
            }
        }
        (Self { boot, run_dir: config.run_dir.clone(), libvirt: config.libvirt.clone() }, notes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(run_dir: &str, uri: Option<&str>) -> Config {
        let mut config: Config = Config::parse(
            "agent.yaml",
            "cluster: a\nhost: h1\ntls: { authority: a, certificate: b, key: c }\nreplicas: [{ id: 1, address: \"r1:1\" }]\n\
             neighbour: { listen: \"127.0.0.1:0\" }\n",
        )
        .unwrap();
        config.run_dir = run_dir.into();
        config.libvirt =
            uri.map(|uri| LibvirtConfig { uri: uri.into(), status_dir: "/run/libvirt/qemu".into() });
        config
    }

    fn settled(kept: &Places, boot: u128, mut config: Config) -> (Places, usize, PathBuf, Option<String>) {
        let (places, notes) = Places::settle(Some(kept.clone()), BootId(boot), &mut config);
        assert_eq!(places.run_dir, config.run_dir);
        (places, notes.len(), config.run_dir, config.libvirt.map(|libvirt| libvirt.uri))
    }

    #[test]
    fn a_change_of_where_vms_live_counts_from_the_next_boot() {
        let (first, notes) = Places::settle(None, BootId(1), &mut config("/run/a", Some("qemu:///system")));
        assert!(notes.is_empty());
        let before = (PathBuf::from("/run/a"), Some("qemu:///system".to_owned()));
        for (run_dir, uri, changes) in
            [("/run/a", Some("qemu:///system"), 0), ("/run/b", Some("test:///x"), 2), ("/run/b", None, 2)]
        {
            let (places, notes, run_dir, libvirt) = settled(&first, 1, config(run_dir, uri));
            assert_eq!((&places, notes, (run_dir, libvirt)), (&first, changes, before.clone()));
        }
        let (_, notes, run_dir, libvirt) = settled(&first, 2, config("/run/b", None));
        assert_eq!((notes, run_dir, libvirt), (0, PathBuf::from("/run/b"), None));
    }

    #[test]
    fn a_driver_that_is_added_counts_at_once_and_is_kept_from_then_on() {
        let (first, _) = Places::settle(None, BootId(1), &mut config("/run/a", None));
        let (second, notes, _, libvirt) = settled(&first, 1, config("/run/a", Some("qemu:///system")));
        assert_eq!((notes, libvirt.as_deref()), (0, Some("qemu:///system")));
        let (_, notes, _, libvirt) = settled(&second, 1, config("/run/a", None));
        assert_eq!((notes, libvirt.as_deref()), (1, Some("qemu:///system")));
    }
}
