//! Calls to libvirt: what runs, and the end of what must. Each may last until libvirtd answers or dies.

use std::{collections::BTreeMap, thread, time::Duration};

use crossbeam_channel::bounded;
use defib_model::{Incarnation, VmCondition, VmId, VmNote, inventory::Readiness};
use virt::{
    connect::Connect,
    domain::{Domain, DomainStateReason},
    enumutil::Enum,
    error::Error,
    sys,
};

use super::{mark, words};
use mark::Mark;

/// How long a question or a stop is waited for.
const CALL_PATIENCE: Duration = Duration::from_secs(5);

/// A domain of ours that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) incarnation: Incarnation,
    pub(super) readiness: Readiness,
    /// A guest agent may still come.
    pub(super) awaited: bool,
    /// What else there is to say of it.
    pub(super) note: VmNote,
    /// How a disk of it failed last, if it was paused for that.
    pub(super) disk_failed: Option<String>,
    /// Reboots that were seen; those that are not told yet are not in the note.
    pub(super) reboots: u32,
    /// The last look did not find it, and nothing has said that it ended.
    pub(super) missed: bool,
}

impl Held {
    /// One of which nothing is known yet but that it runs.
    pub(super) fn new(incarnation: Incarnation) -> Self {
        Self {
            incarnation,
            readiness: Readiness::PoweredOn,
            awaited: true,
            note: VmNote::default(),
            disk_failed: None,
            reboots: 0,
            missed: false,
        }
    }
}

/// Makes a call, in a thread that may hang alone.
pub(super) fn limited<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, String> {
    let (answer, received) = bounded(1);
    let run = move || {
        let _ = answer.send(call().map_err(|error| error.message().to_owned()));
    };
    thread::Builder::new()
        .name("libvirt-call".into())
        .spawn(run)
        .map_err(|error| format!("no thread to ask it: {error}"))?;
    received
        .recv_timeout(CALL_PATIENCE)
        .unwrap_or_else(|_| Err("it takes questions and does not answer".into()))
}

/// Stops what is ours of an incarnation up to `incarnation`. Whether it certainly does not run.
pub(super) fn destroy(connect: &Connect, vm: &VmId, incarnation: Incarnation) -> Result<bool, Error> {
    let domains = active(connect)?;
    let Some(domain) = domains.into_iter().find(|domain| domain.name().is_ok_and(|name| name == vm.as_str()))
    else {
        return Ok(true);
    };
    match mark_of(&domain)? {
        Some(mark) if mark.incarnation <= incarnation => {
            if let Err(error) = domain.destroy() {
                tracing::warn!(%vm, %error, "its domain could not be destroyed");
            }
            Ok(!domain.is_active().unwrap_or(false) && connect.is_alive().unwrap_or(false))
        }
        // Newer, or not ours.
        Some(_) | None => Ok(true),
    }
}

fn active(connect: &Connect) -> Result<Vec<Domain>, Error> {
    connect.list_all_domains(sys::VIR_CONNECT_LIST_DOMAINS_ACTIVE)
}

/// The mark of a domain that is running; `None`: it has none, or has ended meanwhile.
fn mark_of(domain: &Domain) -> Result<Option<Mark>, Error> {
    let kind = i32::try_from(sys::VIR_DOMAIN_METADATA_ELEMENT).unwrap_or_default();
    match domain.metadata(kind, Some(mark::NAMESPACE), 0) {
        Ok(xml) => Ok(Mark::answered(&xml)),
        // By state and not by code: drivers differ in their codes. One that ends the connection is an error of its own.
        Err(error) => match domain.is_active() {
            Ok(false) => Ok(None),
            Ok(true) if error.code().to_raw() == sys::VIR_ERR_NO_DOMAIN_METADATA => Ok(None),
            Ok(true) => Err(error),
            Err(_) => domain
                .connect()
                .and_then(|connect| if connect.is_alive()? { Ok(None) } else { Err(error.clone()) }),
        },
    }
}

/// All domains of ours that run.
pub(super) fn list(connect: &Connect, before: &BTreeMap<VmId, Held>) -> Result<BTreeMap<VmId, Held>, Error> {
    let mut found = BTreeMap::new();
    for domain in active(connect)? {
        let Some(mark) = mark_of(&domain)? else { continue };
        let Ok((state, reason)) = domain.state() else { continue };
        let paused = match reason {
            Enum::Known(DomainStateReason::Paused(reason)) => Some(reason.to_raw()),
            _ => None,
        };
        let known = before.get(&mark.vm).filter(|held| held.incarnation == mark.incarnation);
        let mut held = known.cloned().unwrap_or_else(|| Held::new(mark.incarnation));
        held.missed = false;
        let (condition, why) = words::condition(state.to_raw(), paused);
        let disk = held.disk_failed.as_deref().filter(|_| condition == VmCondition::IoError);
        if held.note.condition != condition || disk.is_some() {
            let detail = disk.unwrap_or(why).to_owned();
            held.note = VmNote { condition, detail, reboots: held.note.reboots };
        }
        if held.awaited {
            let channel = domain.xml_desc(0).ok().and_then(|xml| mark::agent_channel(&xml));
            match channel.as_deref() {
                Some("connected") => {
                    held.readiness = Readiness::GuestAgent;
                    held.awaited = false;
                }
                Some(_) => {}
                // Without a channel no agent ever comes.
                None => held.awaited = false,
            }
        }
        found.insert(mark.vm, held);
    }
    Ok(found)
}
