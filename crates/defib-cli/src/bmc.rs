//! `defib bmc`: asks a BMC itself, for what the inventory must say of it. Needs no cluster.

use std::time::Duration;

use clap::Subcommand;
use defib_bmc::{
    BmcError, CredentialRef, ErrorKind, Identity, ObservedPin, Pin, RedfishEndpoint, SystemSeen, Trust,
    fetch_pin, survey,
};
use serde_json::json;
use tokio::time::Instant;

use crate::{
    cluster::Failure,
    output::{Output, json, line},
};

/// One command.
#[derive(Debug, Subcommand)]
pub(crate) enum BmcCommand {
    /// Shows the pin of a BMC's certificate and, once you have compared that, the identity of its systems.
    Pin {
        /// Name or address of the BMC, with or without https:// and a port.
        address: String,
        /// The pin that you have compared with what the BMC itself shows: then its systems are read as well.
        #[arg(long, requires = "credentials")]
        pin: Option<Pin>,
        /// Where its user and password are, file:PATH or env:NAME. Sent to nobody but the owner of --pin.
        #[arg(long, requires = "pin")]
        credentials: Option<CredentialRef>,
        /// How long to wait for it.
        #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
        timeout: Duration,
    },
}

/// `https://name:port` to `name:port`.
fn bare(address: &str) -> &str {
    address.strip_prefix("https://").unwrap_or(address).trim_end_matches('/')
}

fn failed(error: &BmcError) -> Failure {
    match &*error.kind {
        ErrorKind::Endpoint(_) | ErrorKind::Credentials(_) => Failure::Usage(error.chain()),
        _ => Failure::Refused(error.chain()),
    }
}

/// Does it.
pub(crate) async fn run(command: BmcCommand, output: Output) -> Result<(), Failure> {
    let BmcCommand::Pin { address, pin, credentials, timeout } = command;
    let deadline = Instant::now() + timeout;
    let address = bare(&address).to_owned();
    let (Some(pin), Some(credentials)) = (pin, credentials) else {
        let seen = fetch_pin(&address, deadline).await.map_err(|error| failed(&error))?;
        show_pin(&address, &seen, output);
        return Ok(());
    };
    let url = format!("https://{address}");
    let endpoint =
        RedfishEndpoint::new(&address, url, Identity::default(), Trust::Pin(pin), credentials.clone());
    let systems = survey(endpoint, deadline).await.map_err(|error| failed(&error))?;
    match output {
        Output::Json => json(&json!({
            "address": address, "pin": pin.to_string(),
            "systems": systems.iter().map(|system| json!({
                "system": system.path, "uuid": system.identity.uuid, "serial": system.identity.serial,
                "power": system.power.to_string(), "identifiable": system.identifiable,
            })).collect::<Vec<_>>(),
        })),
        Output::Table => {
            systems_text(&address, pin, &credentials, &systems).iter().for_each(|text| line(text))
        }
    }
    if systems.iter().any(|system| system.identifiable) {
        return Ok(());
    }
    Err(Failure::Refused(format!(
        "BMC {address}: none of its {} systems has a UUID or serial number that tells it from others, so it can't be used \
         for fencing; set them with the manufacturer's tool",
        systems.len()
    )))
}

fn show_pin(address: &str, seen: &ObservedPin, output: Output) {
    if output == Output::Json {
        json(
            &json!({"address": address, "pin": seen.spki.to_string(), "certificate": seen.certificate.to_string()}),
        );
        return;
    }
    line(&format!("BMC {address} presents a certificate that nobody has verified yet:"));
    line(&format!("  public key   {}", seen.spki));
    line(&format!("  certificate  {}", seen.certificate));
    line(
        "Compare one of them with what the BMC's own console or its manufacturer's label shows. Then read its identity:",
    );
    line(&format!("  defib bmc pin {address} --pin {} --credentials file:PATH", seen.spki));
}

/// What an operator reads, and can paste into the inventory.
fn systems_text(address: &str, pin: Pin, credentials: &CredentialRef, systems: &[SystemSeen]) -> Vec<String> {
    let credentials = match credentials {
        CredentialRef::File(path) => format!("file:{}", path.display()),
        CredentialRef::Environment(name) => format!("env:{name}"),
    };
    let mut text = Vec::new();
    for system in systems {
        text.push(format!("system {}: {}, power {}", system.path, system.identity, system.power));
        if !system.identifiable {
            text.push("  it can't be told from others: no host may be fenced through it".into());
            continue;
        }
        text.push("  for its host in the inventory, if it is that host's:".into());
        text.push("    fencing:".into());
        text.push("      - - redfish:".into());
        text.push(format!("            address: {}", quoted(&format!("https://{address}"))));
        text.push(format!("            pin: {}", quoted(&pin.to_string())));
        for (name, value) in [("uuid", &system.identity.uuid), ("serial", &system.identity.serial)] {
            text.extend(value.iter().map(|value| format!("            {name}: {}", quoted(value))));
        }
        text.push(format!("            credentials: {}", quoted(&credentials)));
    }
    text
}

/// A YAML string: JSON's are.
fn quoted(text: &str) -> String {
    json!(text).to_string()
}

#[cfg(test)]
mod tests {
    use defib_bmc::{PowerState, ReportedIdentity};

    use super::*;

    #[test]
    fn an_address_may_be_written_like_the_inventorys() {
        for text in ["10.0.0.7:443", "https://10.0.0.7:443", "https://10.0.0.7:443/"] {
            assert_eq!(bare(text), "10.0.0.7:443");
        }
    }

    #[test]
    fn what_is_shown_can_be_pasted_into_the_inventory() {
        let system = |uuid: &str, identifiable| SystemSeen {
            path: "/redfish/v1/Systems/1".into(),
            identity: ReportedIdentity {
                uuid: Some(uuid.into()),
                serial: Some("F5\"4".into()),
                outlet: None,
            },
            power: PowerState::On,
            identifiable,
        };
        let reference = CredentialRef::File("/etc/defib/bmc".into());
        let systems = [system("4c4c4544-0035", true), system("?", false)];
        let text = systems_text("10.0.0.7", Pin::Spki([0xab; 32]), &reference, &systems).join("\n");
        let snippet = format!(
            "            address: \"https://10.0.0.7\"\n            pin: \"spki-sha256:{}\"\n            uuid: \
             \"4c4c4544-0035\"\n            serial: \"F5\\\"4\"\n            credentials: \"file:/etc/defib/bmc\"",
            "ab".repeat(32)
        );
        assert!(text.contains(&snippet), "{text}");
        assert_eq!(text.matches("fencing:").count(), 1, "nothing is offered for a machine without a name");
    }
}
