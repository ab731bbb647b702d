//! What leaves this machine without TLS, since the file says by name that it may.

use super::Config;

impl Config {
    /// A line for each such thing: what whoever is on the way can do, and what to do about it.
    #[must_use]
    pub fn exposed(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some(metrics) = self.listen.metrics.filter(|metrics| !metrics.ip().is_loopback()) {
            lines.push(format!(
                "insecure: metrics: {metrics} tells hosts and VMs in plain HTTP to whoever asks; put a TLS proxy before \
                 an address of loopback"
            ));
        }
        if let Some(place) = self.bus.as_ref().and_then(|bus| bus.kafka.exposed()) {
            lines.push(format!(
                "insecure: bus: {place} is reached without TLS, so whoever is on the way can forge and hide beats and \
                 events of BMCs, and so delay votes; give bus.kafka its tls"
            ));
        }
        if let Some(place) = self.etcd.as_ref().and_then(defib_etcd::EtcdConfig::exposed) {
            lines.push(format!(
                "insecure: etcd: {place} is reached without TLS, so whoever is on the way can put another policy and \
                 inventory, as an admin can; give etcd its tls"
            ));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thing_is_told_while_it_is_so() {
        let base = "cluster: demo\nreplica: 1\ndata-dir: /tmp/x\ntls: { certificate: a, key: b, authority: c }\n\
                    listen: { peers: \"127.0.0.1:1\", control: \"127.0.0.1:2\", heartbeat: { m: \"127.0.0.1:3\" }METRICS }\n\
                    replicas: [{ id: 1, peers: \"127.0.0.1:1\", control: \"127.0.0.1:2\" }]\n";
        let lines = |metrics: &str, more: &str| {
            // Not checked: a build without Kafka refuses what another takes.
            let text = format!("{}{more}", base.replace("METRICS", metrics));
            defib_process::from_yaml::<Config>("replica.yaml", &text).unwrap().exposed()
        };
        assert_eq!(lines(", metrics: \"127.0.0.1:4\"", ""), Vec::<String>::new());
        let tls = "tls: { authority: a }";
        let both = |word: &str| {
            format!(
                "bus: {{ heartbeats: t, kafka: {{ brokers: [\"k1:1\"], {word} }} }}\n\
                 etcd: {{ endpoints: [\"e1:1\"], prefix: a, {word} }}\n"
            )
        };
        assert_eq!(lines("", &both(tls)), Vec::<String>::new());
        let told = lines(", metrics: \"0.0.0.0:4\", metrics-insecure: true", &both("insecure: true"));
        let starts = ["insecure: metrics: 0.0.0.0:4", "insecure: bus: k1:1", "insecure: etcd: e1:1"];
        assert_eq!(told.len(), starts.len(), "{told:?}");
        for (line, start) in told.iter().zip(starts) {
            assert!(line.starts_with(start), "{line}");
        }
    }
}
