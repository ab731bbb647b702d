//! Calls to libvirt: what runs, and the end of what must. Each may last until libvirtd answers or dies.

use std::{collections::BTreeMap, thread};

use crossbeam_channel::{Receiver, bounded};
use defib_model::{Incarnation, VmCondition, VmId, VmNote, inventory::Readiness};
use virt::{
    connect::Connect,
    domain::{Domain, DomainStateReason},
    enumutil::Enum,
    error::Error,
    sys,
};

use super::{Start, words};
use crate::domains::mark::{self, Mark};

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
    /// Its hypervisor is being set up, which may fail yet.
    pub(super) begins: bool,
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
            begins: false,
            missed: false,
        }
    }
}

/// What runs: what is ours; and of what is not, the names by UUIDs.
pub(super) type Listed = (BTreeMap<VmId, Held>, BTreeMap<String, String>);

/// Makes a call, in a thread that may hang alone.
pub(super) fn ask<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<Receiver<Result<T, String>>, String> {
    let (answer, received) = bounded(1);
    let run = move || {
        let _ = answer.send(call().map_err(|error| error.message().to_owned()));
    };
    thread::Builder::new()
        .name("libvirt-call".into())
        .spawn(run)
        .map_err(|error| format!("no thread to ask it: {error}"))?;
    Ok(received)
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
pub(super) fn mark_of(domain: &Domain) -> Result<Option<Mark>, Error> {
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

/// All domains that run.
pub(super) fn list(connect: &Connect, before: &BTreeMap<VmId, Held>) -> Result<Listed, Error> {
    let (mut found, mut unprotected) = (BTreeMap::new(), BTreeMap::new());
    for domain in active(connect)? {
        let Some(mark) = mark_of(&domain)? else {
            // One that has ended meanwhile is nobody's business.
            if domain.is_active().unwrap_or(true) {
                unprotected.insert(domain.uuid_string()?, domain.name()?);
            }
            continue;
        };
        let Ok((state, reason)) = domain.state() else { continue };
        let paused = match reason {
            Enum::Known(DomainStateReason::Paused(reason)) => Some(reason.to_raw()),
            _ => None,
        };
        let known = before.get(&mark.vm).filter(|held| held.incarnation == mark.incarnation);
        let mut held = known.cloned().unwrap_or_else(|| Held::new(mark.incarnation));
        held.missed = false;
        held.begins = paused == Some(sys::VIR_DOMAIN_PAUSED_STARTING_UP);
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
    Ok((found, unprotected))
}

/// Starts a VM: by its definition, or by taking over the very machine where it runs here already.
///
/// # Errors
/// Why not. What libvirt may have done nevertheless, the next look finds.
pub(super) fn begin(connect: &Connect, start: &Start) -> Result<(), String> {
    let words = |error: Error| error.message().to_owned();
    let domains = connect.list_all_domains(0).map_err(words)?;
    let named = |domain: &Domain| domain.name().is_ok_and(|name| name == start.vm.as_str());
    if let Some(domain) = domains.into_iter().find(named) {
        if domain.is_active().map_err(words)? {
            return adopt(&domain, start);
        }
        if domain.autostart().map_err(words)? {
            return Err(format!(
                "libvirt here would start it by itself after a reboot of this host, beside the one that runs: remove its definition here with: virsh undefine --keep-nvram {}",
                start.vm
            ));
        }
    }
    connect.create_domain_xml(&start.xml, 0).map(|_| ()).map_err(words)
}

/// Takes over a domain that runs without our mark. Its definition on this host goes first, so that from the moment
/// when it is ours nothing but us starts it anywhere; the inventory has one.
fn adopt(domain: &Domain, start: &Start) -> Result<(), String> {
    let words = |error: Error| error.message().to_owned();
    if mark_of(domain).map_err(words)?.is_some() {
        return Err("a domain of its name runs here under another incarnation".into());
    }
    let uuid = domain.uuid_string().map_err(words)?;
    if start.uuid.as_ref() != Some(&uuid) {
        return Err(format!(
            "a domain of its name runs here with the UUID {uuid}, not that of its definition: it is another machine; rename one of the two"
        ));
    }
    if domain.is_persistent().map_err(words)? {
        let keep = sys::VIR_DOMAIN_UNDEFINE_KEEP_NVRAM;
        // An older libvirt has no TPM to keep.
        let undefined = domain
            .undefine_flags(keep | sys::VIR_DOMAIN_UNDEFINE_KEEP_TPM)
            .or_else(|_| domain.undefine_flags(keep));
        undefined.map_err(|error| {
            format!(
                "it runs here and can't be taken over, because its definition here can't be removed: {}",
                error.message()
            )
        })?;
    }
    let kind = i32::try_from(sys::VIR_DOMAIN_METADATA_ELEMENT).unwrap_or_default();
    domain
        .set_metadata(
            kind,
            Some(&start.mark),
            Some("defib"),
            Some(mark::NAMESPACE),
            sys::VIR_DOMAIN_AFFECT_LIVE,
        )
        .map_err(|error| format!("it runs here and can't be marked as ours: {}", error.message()))?;
    tracing::warn!(vm = %start.vm, "it ran here unprotected: it is taken over");
    Ok(())
}
