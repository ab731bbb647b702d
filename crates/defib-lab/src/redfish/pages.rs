//! The Redfish resources, as JSON.

use serde_json::{Value, json};

use super::control::{Core, System, lock};
use super::events;
use super::faults::{Faults, SessionFault};

pub(crate) const ROOT: &str = "/redfish/v1";
pub(crate) const ODATA: &str = "/redfish/v1/odata";
pub(crate) const METADATA: &str = "/redfish/v1/$metadata";
pub(crate) const SESSIONS: &str = "/redfish/v1/SessionService/Sessions";
pub(crate) const SYSTEMS: &str = "/redfish/v1/Systems";
pub(crate) const MANAGER: &str = "/redfish/v1/Managers/1";
pub(crate) const RESET_TYPES: [&str; 6] =
    ["On", "ForceOff", "ForceRestart", "GracefulShutdown", "PowerCycle", "PushPowerButton"];

fn link(path: &str) -> Value {
    json!({ "@odata.id": path })
}

/// The resource at `path` (without a slash at its end), or none.
pub(crate) fn page(core: &Core, faults: &Faults, path: &str) -> Option<Value> {
    if let Some(subscription) = core.events.subscriptions.page(path) {
        return Some(subscription);
    }
    let mut page =
        if core.layout.is_captured() { core.layout.page(path)? } else { own_page(core, faults, path)? };
    let place = core.layout.places.iter().position(|place| place.path == path);
    if let Some(system) = place.and_then(|number| core.systems.get(number)) {
        overlay(&mut page, system, faults);
    }
    if core.layout.subscriptions.as_deref() == Some(path) {
        let members: Vec<_> = core.events.subscriptions.paths().iter().map(|path| link(path)).collect();
        page["Members@odata.count"] = members.len().into();
        page["Members"] = members.into();
    }
    if path == ROOT && faults.session == Some(SessionFault::Absent) {
        remove(&mut page, "/SessionService");
        remove(&mut page, "/Links/Sessions");
    }
    for property in &faults.missing {
        remove(&mut page, property);
    }
    Some(page)
}

/// Takes away what a JSON pointer names.
fn remove(page: &mut Value, pointer: &str) {
    let Some((parent, name)) = pointer.rsplit_once('/') else { return };
    let name = name.replace("~1", "/").replace("~0", "~");
    if let Some(Value::Object(parent)) = page.pointer_mut(parent) {
        parent.remove(&name);
    }
}

/// What is true of a system at this moment, or what the faults make of it.
fn overlay(page: &mut Value, system: &System, faults: &Faults) {
    page["PowerState"] = system.power_state(faults).into();
    for (name, claimed) in [("UUID", &faults.uuid), ("SerialNumber", &faults.serial)] {
        if let Some(claimed) = claimed {
            page[name] = claimed.clone().into();
        }
        if faults.identity_missing {
            remove(page, &format!("/{name}"));
        }
    }
}

fn own_page(core: &Core, faults: &Faults, path: &str) -> Option<Value> {
    Some(match path {
        "/redfish" => json!({ "v1": "/redfish/v1/" }),
        ROOT => root(),
        ODATA => {
            let entry = |name: &str, url: &str| json!({ "name": name, "kind": "Singleton", "url": url });
            json!({
                "@odata.context": METADATA,
                "value": [
                    entry("Service", "/redfish/v1/"),
                    entry("Systems", SYSTEMS),
                    entry("Managers", "/redfish/v1/Managers"),
                    entry("SessionService", "/redfish/v1/SessionService"),
                    entry("EventService", events::SERVICE),
                ],
            })
        }
        SYSTEMS => {
            let members: Vec<_> = core.layout.places.iter().map(|place| link(&place.path)).collect();
            json!({
                "@odata.id": SYSTEMS,
                "@odata.type": "#ComputerSystemCollection.ComputerSystemCollection",
                "Name": "Systems",
                "Members@odata.count": members.len(),
                "Members": members,
            })
        }
        "/redfish/v1/Managers" => json!({
            "@odata.id": path,
            "@odata.type": "#ManagerCollection.ManagerCollection",
            "Name": "Managers",
            "Members@odata.count": 1,
            "Members": [link(MANAGER)],
        }),
        MANAGER => json!({
            "@odata.id": path,
            "@odata.type": "#Manager.v1_11_0.Manager",
            "Id": "1",
            "Name": "Emulated BMC",
            "ManagerType": "BMC",
            "FirmwareVersion": env!("CARGO_PKG_VERSION"),
            "Status": { "State": "Enabled", "Health": "OK" },
            "LogServices": link(events::LOGS),
            "Links": {
                "ManagerForServers": core.layout.places.iter().map(|place| link(&place.path)).collect::<Vec<_>>(),
            },
            "Actions": { "#Manager.Reset": core.layout.managers.first().map(|reset| json!({
                "target": reset.target,
                "ResetType@Redfish.AllowableValues": reset.allowed,
            })) },
        }),
        "/redfish/v1/SessionService" if faults.session != Some(SessionFault::Absent) => json!({
            "@odata.id": path,
            "@odata.type": "#SessionService.v1_1_8.SessionService",
            "Id": "SessionService",
            "Name": "Session Service",
            "ServiceEnabled": true,
            "Sessions": link(SESSIONS),
        }),
        SESSIONS if faults.session != Some(SessionFault::Absent) => {
            let members: Vec<_> = lock(&core.sessions).keys().map(|path| link(path)).collect();
            json!({
                "@odata.id": path,
                "@odata.type": "#SessionCollection.SessionCollection",
                "Name": "Sessions",
                "Members@odata.count": members.len(),
                "Members": members,
            })
        }
        _ if lock(&core.sessions).contains_key(path) => session(core, path),
        _ => {
            let own = events::page(path, faults).or_else(|| core.events.entry(path));
            return own.or_else(|| system_page(core, faults, path));
        }
    })
}

/// An open session, without what it is used by.
pub(crate) fn session(core: &Core, path: &str) -> Value {
    json!({
        "@odata.id": path,
        "@odata.type": "#Session.v1_3_0.Session",
        "Id": path.rsplit('/').next(),
        "Name": "User Session",
        "UserName": core.user,
    })
}

fn root() -> Value {
    json!({
        "@odata.id": "/redfish/v1/",
        "@odata.type": "#ServiceRoot.v1_11_0.ServiceRoot",
        "Id": "RootService",
        "Name": "Root Service",
        "RedfishVersion": "1.13.0",
        "Vendor": "Defib lab",
        "Product": "Emulated BMC",
        "Systems": link(SYSTEMS),
        "Managers": link("/redfish/v1/Managers"),
        "SessionService": link("/redfish/v1/SessionService"),
        "EventService": link(events::SERVICE),
        "Links": { "Sessions": link(SESSIONS) },
    })
}

fn system_page(core: &Core, faults: &Faults, path: &str) -> Option<Value> {
    let rest = path.strip_prefix(SYSTEMS)?.strip_prefix('/')?;
    let (id, tail) = rest.split_once('/').map_or((rest, ""), |(id, tail)| (id, tail));
    let number = core.systems.iter().position(|system| system.config.id == id)?;
    let (system, place) = (core.systems.get(number)?, core.layout.places.get(number)?);
    let allowed: Vec<_> =
        place.reset.allowed.iter().filter(|kind| !(faults.no_force_off && *kind == "ForceOff")).collect();
    match tail {
        "" => {}
        "ResetActionInfo" if faults.action_info => {
            return Some(json!({
                "@odata.id": path,
                "@odata.type": "#ActionInfo.v1_3_0.ActionInfo",
                "Id": "ResetActionInfo",
                "Name": "Reset Action Info",
                "Parameters": [
                    { "Name": "ResetType", "DataType": "String", "Required": true, "AllowableValues": allowed },
                ],
            }));
        }
        _ => return None,
    }
    let mut reset = json!({ "target": place.reset.target });
    if faults.action_info {
        reset["@Redfish.ActionInfo"] = format!("{path}/ResetActionInfo").into();
    } else {
        reset["ResetType@Redfish.AllowableValues"] = json!(allowed);
    }
    Some(json!({
        "@odata.id": path,
        "@odata.type": "#ComputerSystem.v1_16_0.ComputerSystem",
        "Id": id,
        "Name": "Emulated host",
        "SystemType": "Physical",
        "UUID": system.config.uuid,
        "SerialNumber": system.config.serial,
        "Status": { "State": "Enabled", "Health": "OK" },
        "Links": { "ManagedBy": [link(MANAGER)] },
        "Actions": { "#ComputerSystem.Reset": reset },
    }))
}

/// The body of an error.
pub(crate) fn error(message: &str) -> Value {
    json!({ "error": {
        "code": "Base.1.12.GeneralError",
        "message": "A general error has occurred. See ExtendedInfo for more information.",
        "@Message.ExtendedInfo": [{ "MessageId": "Base.1.12.GeneralError", "Message": message }],
    }})
}
