//! Whether replicas, agents and operators can find each other by what the file says.

use std::collections::BTreeMap;

use defib_model::address::check_told;
use defib_process::WrongField;

use super::Config;

pub(super) fn check(config: &Config) -> Result<(), WrongField> {
    let wrong = |message: String| Err(("replicas", message));
    // Who is to be found where, by the transport: a port of UDP is another one than that of TCP.
    let mut taken: BTreeMap<(bool, &str), String> = BTreeMap::new();
    for replica in &config.replicas {
        let tcp = [("peers", &replica.peers), ("control", &replica.control)];
        let tcp = tcp.into_iter().map(|(name, address)| (false, name.to_owned(), address));
        let udp =
            replica.heartbeat.iter().map(|(path, address)| (true, format!("heartbeat.{path}"), address));
        for (datagrams, name, address) in tcp.chain(udp) {
            let place = format!("{name} of replica {}", replica.id);
            if let Err(why) = check_told(address) {
                return wrong(format!("{place}: {why}"));
            }
            if let Some(other) = taken.insert((datagrams, address), place.clone()) {
                return wrong(format!("{place}: {address} is {other} too; give each its own"));
            }
        }
    }
    let Some(own) = config.replicas.iter().find(|replica| replica.id == config.replica) else {
        return Ok(());
    };
    if let Some(path) = own.heartbeat.keys().find(|path| !config.listen.heartbeat.contains_key(*path)) {
        let known: Vec<&str> = config.listen.heartbeat.keys().map(String::as_str).collect();
        return wrong(format!(
            "heartbeat.{path} of replica {}: this replica listens on no path of that name; listen.heartbeat has: {}",
            own.id,
            known.join(", ")
        ));
    }
    for (path, address) in &config.listen.heartbeat {
        if address.ip().is_unspecified() && !own.heartbeat.contains_key(path) {
            return Err((
                "listen.heartbeat",
                format!(
                    "{path}: agents would be told to beat to {address}, which is each of them itself; say in `replicas` where \
                     they reach replica {}: heartbeat: {{ {path}: \"10.0.0.1:{}\" }}",
                    own.id,
                    address.port()
                ),
            ));
        }
    }
    Ok(())
}
