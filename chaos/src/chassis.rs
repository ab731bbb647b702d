//! What `ipmi_sim` asks about a host's power, and orders: it is passed on to the BMC emulator that holds the host.

use std::net::SocketAddr;

use anyhow::bail;
use defib_lab::redfish::admin::AdminClient;

/// The answer to `get power`, `set power 0` and the like; `None`: there is nothing to say.
///
/// # Errors
/// When the emulator does not answer, or something else is asked.
pub(crate) async fn answer(
    admin: SocketAddr,
    verb: &str,
    words: &[String],
) -> anyhow::Result<Option<String>> {
    let admin = AdminClient::new(admin);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match (verb, words.as_slice()) {
        ("get", ["power"]) => {
            let on = admin.truth().await?.systems.iter().any(|system| system.on);
            Ok(Some(format!("power:{}", u8::from(on))))
        }
        ("get", ["boot"]) => Ok(Some("boot:default".to_owned())),
        ("set", ["power", "0"]) => admin.power(false).await.map(|_| None),
        ("set", ["power", "1"]) => admin.power(true).await.map(|_| None),
        ("set", ["reset", _]) => {
            admin.power(false).await?;
            admin.power(true).await.map(|_| None)
        }
        _ => bail!("a chassis knows no {verb} {}", words.join(" ")),
    }
}
