//! What agents found that is not protected.

use defib_wire::v1;
use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, Failure, ask},
    output::{Output, document, json, line, table},
};

fn domain_json(host: &v1::HostFound, domain: &v1::FoundDomain) -> Value {
    let files = domain.files.iter().map(|file| {
        let sharing = match file.sharing() {
            v1::FileSharing::Unspecified => "unknown",
            v1::FileSharing::Local => "local",
            v1::FileSharing::Shared => "shared",
        };
        json!({"what": file.what, "path": file.path, "sharing": sharing})
    });
    json!({"host": host.host, "connected": host.connected, "name": domain.name, "uuid": domain.uuid,
        "running": domain.running, "marked": domain.marked, "persistent": domain.persistent,
        "autostart": domain.autostart, "vcpus": domain.vcpus, "memory_mib": domain.memory_mib,
        "datastore": domain.datastore, "policy": domain.policy, "files": files.collect::<Vec<_>>()})
}

/// `defib vm list --unprotected`.
pub(super) async fn list(cluster: &Cluster, host: String, output: Output) -> Result<(), Failure> {
    let answer = ask!(cluster, discover, v1::DiscoverRequest { host: host.clone(), stopped: true })?;
    let domains = || {
        answer.hosts.iter().flat_map(|host| {
            host.found.iter().flat_map(|found| found.domains.iter()).map(move |domain| (host, domain))
        })
    };
    if output == Output::Json {
        json(&domains().map(|(host, domain)| domain_json(host, domain)).collect());
        return Ok(());
    }
    let rows = domains().map(|(host, domain)| {
        let state = match (domain.running, domain.marked) {
            (true, true) => "ours",
            (true, false) => "running",
            (false, _) => "stopped",
        };
        let defined = match (domain.persistent, domain.autostart) {
            (true, true) => "starts with the host",
            (true, false) => "yes",
            (false, _) => "no",
        };
        vec![
            domain.name.clone(),
            host.host.clone(),
            state.into(),
            domain.vcpus.to_string(),
            format!("{} MiB", domain.memory_mib),
            if domain.datastore.is_empty() { "-".into() } else { domain.datastore.clone() },
            defined.into(),
        ]
    });
    table(&["domain", "host", "state", "vCPUs", "memory", "datastore", "defined there"], rows.collect());
    for host in answer.hosts.iter().filter(|host| !host.connected) {
        line(&format!("host {}: its agent has no session now, so this is old", host.host));
    }
    Ok(())
}

/// `defib inventory discover`.
pub(super) async fn discover(
    cluster: &Cluster,
    host: String,
    stopped: bool,
    output: Output,
) -> Result<(), Failure> {
    let answer = ask!(cluster, discover, v1::DiscoverRequest { host: host.clone(), stopped })?;
    if output == Output::Json {
        json(&json!({"version": answer.version, "yaml": answer.yaml, "notes": answer.notes}));
        return Ok(());
    }
    // As comments, so that the output is a file to be read, changed and applied.
    line(&format!(
        "# Would replace inventory version {}; nothing is changed before it is applied.",
        answer.version
    ));
    for note in &answer.notes {
        line(&format!("# {note}"));
    }
    document(&answer.yaml);
    Ok(())
}
