//! What people write: policy, inventory, and the programs' own files.

use defib_engine::placement::{Placer, PlanOptions, Usability};
use defib_observe::documents::{
    diff, inventory_from_yaml, inventory_to_yaml, policy_from_yaml, policy_to_yaml,
};

use crate::seeds::tagged;

/// Longer documents only make the fuzzer slow.
const TEXT_MAX: usize = 64 << 10;

fn text(data: &[u8]) -> Option<&str> {
    std::str::from_utf8(data).ok().filter(|text| text.len() <= TEXT_MAX)
}

/// A policy that is taken is shown, and read back as the same one.
pub(crate) fn policy(data: &[u8]) {
    let Some(text) = text(data) else { return };
    match policy_from_yaml("p.yaml", text) {
        Ok(policy) => {
            assert_eq!(policy.validate(), Ok(()));
            let shown = policy_to_yaml(&policy);
            assert_eq!(policy_from_yaml("p.yaml", &shown).as_ref(), Ok(&policy), "{shown}");
            assert_eq!(policy_to_yaml(&policy), shown);
            let lease = &policy.lease;
            assert!(lease.expiry_wait() >= lease.lease.plus(lease.watchdog), "{lease:?}");
            assert!(lease.majority_wait() >= lease.answer_freshness.plus(lease.watchdog), "{lease:?}");
            let _ = diff(&shown, text);
        }
        Err(error) => assert!(error.to_string().starts_with("p.yaml:"), "{error}"),
    }
}

pub(crate) fn policy_seeds() -> Vec<Vec<u8>> {
    let shown = |policy| policy_to_yaml(&policy).into_bytes();
    vec![
        include_bytes!("../../../deploy/examples/policy.yaml").to_vec(),
        shown(defib_model::Policy::default()),
        shown(defib_model::Policy::fast()),
        b"profile: fast\nlease: { lease: 1h 2m, drift-ppm: 100 }\n".to_vec(),
        b"# nothing\n".to_vec(),
    ]
}

/// An inventory that is taken is shown, read back as the same one, and can be planned with.
pub(crate) fn inventory(data: &[u8]) {
    let Some(text) = text(data) else { return };
    let inventory = match inventory_from_yaml("i.yaml", text) {
        Ok(inventory) => inventory,
        Err(error) => return assert!(error.to_string().starts_with("i.yaml:"), "{error}"),
    };
    assert_eq!(inventory.validate(), Ok(()));
    let shown = inventory_to_yaml(&inventory);
    assert_eq!(inventory_from_yaml("i.yaml", &shown).as_ref(), Ok(&inventory), "{shown}");
    let mut placer = Placer::new(&inventory);
    for host in inventory.hosts.keys() {
        placer.set_host(host, Usability::Usable);
    }
    let wanted: Vec<_> = inventory.vms.keys().cloned().collect();
    let plan = placer.plan(&wanted, &PlanOptions::default());
    assert_eq!(plan.placements.len() + plan.unplaced.len(), wanted.len());
    for planned in plan.placements {
        placer.occupy(&planned.vm, &planned.host);
    }
    assert_eq!(placer.check(), Ok(()));
}

pub(crate) fn inventory_seeds() -> Vec<Vec<u8>> {
    let rich = r#"
fault-domain-levels: [zone, rack]
hosts:
  - id: h1
    domain: z1/r1
    capacity: { cpu: 16, memory: 64GiB, gpu: 2 }
    labels: [ssd]
    self-fence: watchdog
    spare: true
    neighbour: "127.0.0.11:7445"
    fencing:
      - - redfish: { address: "https://127.0.0.1", uuid: "a-1", pin: "abababababababababababababababababababababababababababababababab", credentials: "env:BMC" }
  - { id: h2, domain: z1/r2, capacity: { cpu: 0.5, memory: 512MiB }, self-fence: trusted }
vms:
  - id: cp-1
    priority: critical
    resources: { cpu: 0.25, memory: 256MiB }
    requires: [ssd]
    readiness: guest-agent
    readiness-timeout: 90s
    datastore: ds1
    first-host: h1
    driver: process
    arguments: [sleep, "1"]
  - { id: w-1, depends-on: [cp-1], resources: { cpu: 0.1, memory: 1MiB }, driver: process, arguments: [sleep, "1"] }
groups:
  - { id: cp, members: [cp-1, w-1], rules: [ { level: rack, limit: 1, soft: true }, { level: host, limit: 1 } ] }
"#;
    vec![
        include_bytes!("../../../deploy/examples/inventory.yaml").to_vec(),
        rich.as_bytes().to_vec(),
        inventory_to_yaml(crate::ledger::seen_hosts().inventory()).into_bytes(),
        b"hosts: []\n".to_vec(),
    ]
}

/// First byte even: a replica's file; odd: an agent's. What `print-config` shows is read again.
pub(crate) fn config(data: &[u8]) {
    let Some((mode, bytes)) = data.split_first() else { return };
    let Some(text) = text(bytes) else { return };
    let error = if mode % 2 == 0 {
        match defib_controller::config::Config::parse("c.yaml", text) {
            Ok(config) => {
                let shown = serde_saphyr::to_string(&config).expect("it is shown");
                let again = defib_controller::config::Config::parse("c.yaml", &shown);
                assert_eq!(format!("{again:?}"), format!("Ok({config:?})"), "{shown}");
                assert!(config.cluster_name().is_ok() && config.raft.election() >= config.raft.tick());
                return;
            }
            Err(error) => error,
        }
    } else {
        match defib_agent::config::Config::parse("c.yaml", text) {
            Ok(config) => {
                let shown = serde_saphyr::to_string(&config).expect("it is shown");
                let again = defib_agent::config::Config::parse("c.yaml", &shown);
                assert_eq!(format!("{again:?}"), format!("Ok({config:?})"), "{shown}");
                return;
            }
            Err(error) => error,
        }
    };
    assert!(error.to_string().starts_with("c.yaml:"), "{error}");
}

pub(crate) fn config_seeds() -> Vec<Vec<u8>> {
    vec![
        tagged(0, include_str!("../../../deploy/examples/replica-1.yaml")),
        tagged(1, include_str!("../../../deploy/examples/agent.yaml")),
    ]
}
