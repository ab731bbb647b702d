//! The Redfish resources, as JSON.

use serde_json::{Value, json};

use super::control::{Core, System};
use super::faults::{Faults, SessionFault};

pub(crate) const ROOT: &str = "/redfish/v1";
pub(crate) const SESSIONS: &str = "/redfish/v1/SessionService/Sessions";
pub(crate) const RESET: &str = "/Actions/ComputerSystem.Reset";
const SYSTEMS: &str = "/redfish/v1/Systems";
const RESET_TYPES: [&str; 6] =
    ["On", "ForceOff", "ForceRestart", "GracefulShutdown", "PowerCycle", "PushPowerButton"];

fn link(path: &str) -> Value {
    json!({ "@odata.id": path })
}

/// The resource at `path` (without a slash at its end), or none.
pub(crate) fn page(core: &Core, faults: &Faults, path: &str) -> Option<Value> {
    Some(match path {
        "/redfish" => json!({ "v1": "/redfish/v1/" }),
        ROOT => root(faults),
        SYSTEMS => {
            let members: Vec<_> = core.systems.iter().map(|system| link(&system_path(system))).collect();
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
            "Members": [link("/redfish/v1/Managers/1")],
        }),
        "/redfish/v1/Managers/1" => json!({
            "@odata.id": path,
            "@odata.type": "#Manager.v1_11_0.Manager",
            "Id": "1",
            "Name": "Emulated BMC",
            "ManagerType": "BMC",
            "FirmwareVersion": env!("CARGO_PKG_VERSION"),
            "Links": { "ManagerForServers": core.systems.iter().map(|s| link(&system_path(s))).collect::<Vec<_>>() },
        }),
        "/redfish/v1/SessionService" if faults.session != Some(SessionFault::Absent) => json!({
            "@odata.id": path,
            "@odata.type": "#SessionService.v1_1_8.SessionService",
            "Id": "SessionService",
            "Name": "Session Service",
            "ServiceEnabled": true,
            "Sessions": link(SESSIONS),
        }),
        _ => return system_page(core, faults, path),
    })
}

fn root(faults: &Faults) -> Value {
    let mut root = json!({
        "@odata.id": "/redfish/v1/",
        "@odata.type": "#ServiceRoot.v1_11_0.ServiceRoot",
        "Id": "RootService",
        "Name": "Root Service",
        "RedfishVersion": "1.13.0",
        "Vendor": "Defib lab",
        "Product": "Emulated BMC",
        "Systems": link(SYSTEMS),
        "Managers": link("/redfish/v1/Managers"),
        "Links": {},
    });
    if faults.session != Some(SessionFault::Absent) {
        root["SessionService"] = link("/redfish/v1/SessionService");
        root["Links"]["Sessions"] = link(SESSIONS);
    }
    root
}

fn system_path(system: &System) -> String {
    format!("{SYSTEMS}/{}", system.config.id)
}

fn system_page(core: &Core, faults: &Faults, path: &str) -> Option<Value> {
    let rest = path.strip_prefix(SYSTEMS)?.strip_prefix('/')?;
    let (id, tail) = rest.split_once('/').map_or((rest, ""), |(id, tail)| (id, tail));
    let system = core.systems.iter().find(|system| system.config.id == id)?;
    let allowed: Vec<_> =
        RESET_TYPES.iter().filter(|kind| !(faults.no_force_off && **kind == "ForceOff")).collect();
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
    let mut reset = json!({ "target": format!("{path}{RESET}") });
    if faults.action_info {
        reset["@Redfish.ActionInfo"] = format!("{path}/ResetActionInfo").into();
    } else {
        reset["ResetType@Redfish.AllowableValues"] = json!(allowed);
    }
    let mut page = json!({
        "@odata.id": path,
        "@odata.type": "#ComputerSystem.v1_16_0.ComputerSystem",
        "Id": id,
        "Name": "Emulated host",
        "SystemType": "Physical",
        "PowerState": system.power_state(faults),
        "Status": { "State": "Enabled", "Health": "OK" },
        "Actions": { "#ComputerSystem.Reset": reset },
    });
    if !faults.identity_missing {
        page["UUID"] = faults.uuid.clone().unwrap_or_else(|| system.config.uuid.clone()).into();
        page["SerialNumber"] = faults.serial.clone().unwrap_or_else(|| system.config.serial.clone()).into();
    }
    Some(page)
}

/// The system that a reset goes to.
pub(crate) fn reset_target<'a>(core: &'a Core, path: &str) -> Option<&'a System> {
    let id = path.strip_prefix(SYSTEMS)?.strip_prefix('/')?.strip_suffix(RESET)?;
    core.systems.iter().find(|system| system.config.id == id)
}

/// A reset type that this BMC knows.
pub(crate) fn is_reset_type(kind: &str) -> bool {
    RESET_TYPES.contains(&kind)
}

/// The body of an error.
pub(crate) fn error(message: &str) -> Value {
    json!({ "error": {
        "code": "Base.1.12.GeneralError",
        "message": "A general error has occurred. See ExtendedInfo for more information.",
        "@Message.ExtendedInfo": [{ "MessageId": "Base.1.12.GeneralError", "Message": message }],
    }})
}
