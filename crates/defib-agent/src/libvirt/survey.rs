//! What there is on the host beside what is ours: other domains, definitions, storage pools. In a thread of its own,
//! since what it looks at may hang, and nothing waits for it.

use std::{
    collections::BTreeMap,
    fs, thread,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};
use defib_engine::guard::Input;
use defib_wire::v1;
use virt::{connect::Connect, domain::Domain, error::Error, storage_pool::StoragePool, sys};

use super::look::mark_of;
use crate::{
    domains::{
        definition::{datastore, described, sharing},
        pool::kind_and_directory,
    },
    hypervisor::Tell,
    notes::Notes,
};

/// Domains that are told of at most.
const DOMAINS: usize = 1000;
/// All definitions that are told of together; what is beyond is told without.
const DEFINITIONS: usize = 1 << 20;
/// How long a directory may take to answer.
const DIRECTORY_PATIENCE: Duration = Duration::from_secs(5);

/// A question to a directory, and since when it is under way.
type Probe = (Instant, Receiver<Result<(), String>>);

/// Starts the thread. Each connection that it is sent is looked through once; one that it has no time for yet is
/// refused.
pub(super) fn start(notes: Notes, tell: Tell) -> std::io::Result<Sender<Connect>> {
    let (wanted, connects) = bounded::<Connect>(1);
    thread::Builder::new().name("libvirt-survey".into()).spawn(move || {
        let mut probes = BTreeMap::new();
        for connect in connects {
            match survey(&connect, &mut probes) {
                Ok(found) => {
                    if notes.set_found(found) {
                        tell(Input::Woke);
                    }
                }
                Err(error) => tracing::debug!(%error, "what else there is could not be looked at"),
            }
        }
    })?;
    Ok(wanted)
}

fn survey(connect: &Connect, probes: &mut BTreeMap<String, Probe>) -> Result<v1::HostFindings, Error> {
    let mut found = v1::HostFindings::default();
    // A libvirtd without its part for storage has no pools.
    let pools = connect.list_all_storage_pools(0).unwrap_or_default();
    for pool in pools {
        // One that is removed meanwhile is none.
        found.datastores.extend(pool_of(&pool, probes));
    }
    found.datastores.sort_by(|one, other| one.name.cmp(&other.name));
    probes.retain(|target, _| found.datastores.iter().any(|pool| pool.target == *target));
    let mut room = DEFINITIONS;
    let mut domains = connect.list_all_domains(0)?;
    domains.sort_by_cached_key(|domain| domain.name().unwrap_or_default());
    for domain in domains {
        let Ok(Some(one)) = domain_of(&domain, &found.datastores) else { continue };
        if found.domains.len() >= DOMAINS {
            found.left_out += 1;
            continue;
        }
        let fits = one.definition.len() <= room;
        let definition = if fits { one.definition } else { String::new() };
        room = room.saturating_sub(definition.len());
        found.domains.push(v1::FoundDomain { definition, ..one });
    }
    Ok(found)
}

/// A domain that is not ours, or lies defined on this host; `None`: it runs by our mark and leaves nothing behind.
fn domain_of(domain: &Domain, pools: &[v1::FoundDatastore]) -> Result<Option<v1::FoundDomain>, Error> {
    let (running, persistent) = (domain.is_active()?, domain.is_persistent()?);
    let marked = running && mark_of(domain)?.is_some();
    if marked && !persistent {
        return Ok(None);
    }
    // Without what only a running domain has, and without secrets.
    let definition = domain.xml_desc(sys::VIR_DOMAIN_XML_INACTIVE)?;
    let said = described(&definition).unwrap_or_default();
    let asleep = |path: &str| {
        pools.iter().any(|pool| {
            !pool.trouble.is_empty() && !pool.target.is_empty() && path.starts_with(pool.target.as_str())
        })
    };
    let files = said.files.iter().map(|(what, path)| {
        let sharing = if asleep(path) { v1::FileSharing::Unspecified } else { sharing(path) };
        v1::FoundFile { what: what.clone(), path: path.clone(), sharing: sharing.into() }
    });
    Ok(Some(v1::FoundDomain {
        name: domain.name()?,
        uuid: domain.uuid_string()?,
        driver: "libvirt".into(),
        running,
        marked,
        persistent,
        autostart: persistent && domain.autostart()?,
        memory_mib: said.memory_mib,
        vcpus: said.vcpus,
        datastore: datastore(&said, pools),
        files: files.collect(),
        policy: said.policy.into_iter().collect(),
        definition,
    }))
}

fn pool_of(pool: &StoragePool, probes: &mut BTreeMap<String, Probe>) -> Option<v1::FoundDatastore> {
    let name = pool.name().ok()?;
    let xml = pool.xml_desc(0).ok()?;
    let active = pool.is_active().ok()?;
    let info = pool.info().ok();
    let (kind, target) = kind_and_directory(&xml)?;
    let trouble = if !active {
        Some("its pool is not active".to_owned())
    } else if target.is_empty() {
        None
    } else {
        ask(&target, probes).err()
    };
    Some(v1::FoundDatastore {
        name,
        kind,
        target,
        trouble: trouble.unwrap_or_default(),
        // In steps, so that what is written by any guest is no news.
        capacity_mib: info.as_ref().map_or(0, |info| info.capacity >> 20),
        available_mib: info.map_or(0, |info| (info.available >> 30) << 10),
    })
}

/// Whether a directory answers. A question that is not answered stays the only one, so that threads don't pile up.
fn ask(directory: &str, probes: &mut BTreeMap<String, Probe>) -> Result<(), String> {
    let path = directory.to_owned();
    let (asked, answer) = probes.entry(path.clone()).or_insert_with(|| {
        let (answered, answer) = bounded(1);
        let question = move || {
            let seen = fs::read_dir(&path).and_then(|mut entries| entries.next().transpose());
            let _ = answered.send(seen.map(|_| ()).map_err(|error| format!("its directory {path}: {error}")));
        };
        if let Err(error) = thread::Builder::new().name("pool-probe".into()).spawn(question) {
            tracing::warn!(%error, "no thread to look at a storage pool");
        }
        (now(), answer)
    });
    let left = (*asked + DIRECTORY_PATIENCE).saturating_duration_since(now());
    let answered = match answer.recv_timeout(left) {
        Ok(answered) => Some(answered),
        Err(_) => match answer.try_recv() {
            Ok(answered) => Some(answered),
            // It was never asked; the next time it is.
            Err(TryRecvError::Disconnected) => Some(Ok(())),
            Err(TryRecvError::Empty) => None,
        },
    };
    match answered {
        Some(answered) => {
            probes.remove(directory);
            answered
        }
        None => Err(format!("its directory {directory} does not answer")),
    }
}

#[expect(clippy::disallowed_methods, reason = "how long a directory takes")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_gone_is_told_and_asked_again() {
        let mut probes = BTreeMap::new();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pool").display().to_string();
        assert!(ask(&path, &mut probes).unwrap_err().contains("No such file"));
        fs::create_dir(&path).unwrap();
        assert_eq!(ask(&path, &mut probes), Ok(()));
        assert!(probes.is_empty());
    }
}
