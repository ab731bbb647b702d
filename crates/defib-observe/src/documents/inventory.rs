//! The inventory as a document.

use std::collections::{BTreeMap, BTreeSet};

use defib_model::{
    GroupId, HostId, Inventory, Resources, VmId,
    inventory::{
        Definition, FaultDomain, FencingLevel, Group, Host, InventoryError, Priority, Readiness, SelfFence,
        SpreadRule, Vm,
    },
};
use serde::{Deserialize, Serialize};
use serde_saphyr::Spanned;

use super::{
    DocumentError,
    fencing::MethodEntry,
    from_yaml, place_of,
    scalar::{Cores, HostPort, Memory, Span, Written},
};

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Document<Id, Method> {
    #[serde(default)]
    fault_domain_levels: Vec<String>,
    #[serde(default = "Vec::new")]
    hosts: Vec<HostEntry<Id, Method>>,
    #[serde(default = "Vec::new")]
    vms: Vec<VmEntry<Id>>,
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    groups: Vec<GroupEntry<Id>>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct ResourcesEntry {
    cpu: Cores,
    memory: Memory,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    named: BTreeMap<String, u64>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct HostEntry<Id, Method> {
    id: Id,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    domain: String,
    capacity: ResourcesEntry,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    labels: BTreeSet<String>,
    #[serde(default)]
    self_fence: SelfFence,
    #[serde(default, skip_serializing_if = "is_false")]
    spare: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    neighbour: Option<Written<HostPort>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kdump_wait: Option<Span>,
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    fencing: Vec<Vec<Method>>,
}

/// A document that was read, with the places of what its errors name.
type Read = Document<Spanned<String>, Spanned<MethodEntry>>;

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the form that serde wants")]
pub(super) const fn is_false(value: &bool) -> bool {
    !*value
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct VmEntry<Id> {
    id: Id,
    #[serde(default)]
    priority: Priority,
    resources: ResourcesEntry,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    requires: BTreeSet<String>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    depends_on: BTreeSet<VmId>,
    #[serde(default)]
    readiness: Readiness,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    readiness_timeout: Option<Span>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    datastore: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    first_host: Option<HostId>,
    driver: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    arguments: Vec<String>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct GroupEntry<Id> {
    id: Id,
    members: BTreeSet<VmId>,
    rules: Vec<RuleEntry>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RuleEntry {
    level: String,
    #[serde(default = "one")]
    limit: u32,
    #[serde(default, skip_serializing_if = "is_false")]
    soft: bool,
}

const fn one() -> u32 {
    1
}

/// Where each thing stands in the file, by the path that errors use.
type Places = BTreeMap<String, (u64, u64)>;

/// Reads an inventory and checks that it makes sense.
///
/// # Errors
/// Syntax, unknown fields, duplicate ids and contradictions, with file, line and field.
pub fn inventory_from_yaml(file: &str, text: &str) -> Result<Inventory, DocumentError> {
    let document: Read = from_yaml(file, text)?;
    let mut places = Places::new();
    let inventory = convert(document, &mut places).and_then(|inventory| {
        inventory.validate()?;
        inventory.vet()?;
        Ok(inventory)
    });
    inventory.map_err(|error| {
        let at = places
            .iter()
            .filter(|(path, _)| {
                error
                    .field
                    .strip_prefix(path.as_str())
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
            })
            .max_by_key(|(path, _)| path.len())
            .map(|(_, at)| *at)
            .or_else(|| place_of(&error.field, text));
        DocumentError { file: file.into(), at, message: error.to_string() }
    })
}

fn place(places: &mut Places, kind: &str, id: &Spanned<String>) -> Result<(), InventoryError> {
    let path = format!("{kind}.{}", id.value);
    let at = (id.referenced.line(), id.referenced.column());
    if let Some((line, _)) = places.insert(path.clone(), at) {
        return Err(InventoryError {
            field: path,
            message: format!("the id is used twice; line {line} has it too"),
        });
    }
    Ok(())
}

fn convert(document: Read, places: &mut Places) -> Result<Inventory, InventoryError> {
    let levels = document.fault_domain_levels;
    let mut inventory = Inventory { levels: levels.clone(), ..Inventory::default() };
    let name = |field: &str, error: defib_model::InvalidName| InventoryError {
        field: field.into(),
        message: error.to_string(),
    };
    for entry in document.hosts {
        place(places, "hosts", &entry.id)?;
        let id = HostId::new(&entry.id.value)
            .map_err(|error| name(&format!("hosts.{}", entry.id.value), error))?;
        let domain = match entry.domain.as_str() {
            "" => Vec::new(),
            domain => domain.split('/').map(str::to_owned).collect(),
        };
        let mut fencing = Vec::new();
        for (level, methods) in entry.fencing.into_iter().enumerate() {
            for (number, method) in methods.iter().enumerate() {
                let at = (method.referenced.line(), method.referenced.column());
                places.insert(format!("hosts.{id}.fencing[{level}][{number}]"), at);
            }
            fencing
                .push(FencingLevel(methods.into_iter().map(|method| method.value.into_method()).collect()));
        }
        let host = Host {
            id: id.clone(),
            domain: FaultDomain(domain),
            capacity: resources(entry.capacity),
            labels: entry.labels,
            fencing,
            self_fence: entry.self_fence,
            spare: entry.spare,
            neighbour_address: entry.neighbour.map(|address| address.text),
            kdump_wait: entry.kdump_wait.map(|span| span.0),
        };
        inventory.hosts.insert(id, host);
    }
    for entry in document.vms {
        place(places, "vms", &entry.id)?;
        let id =
            VmId::new(&entry.id.value).map_err(|error| name(&format!("vms.{}", entry.id.value), error))?;
        let vm = Vm {
            id: id.clone(),
            priority: entry.priority,
            resources: resources(entry.resources),
            requires: entry.requires,
            depends_on: entry.depends_on,
            readiness: entry.readiness,
            readiness_timeout: entry.readiness_timeout.map(|span| span.0),
            datastore: entry.datastore,
            first_host: entry.first_host,
            definition: Definition { driver: entry.driver, arguments: entry.arguments },
        };
        inventory.vms.insert(id, vm);
    }
    for entry in document.groups {
        place(places, "groups", &entry.id)?;
        let field = format!("groups.{}", entry.id.value);
        let id = GroupId::new(&entry.id.value).map_err(|error| name(&field, error))?;
        let mut rules = Vec::new();
        for rule in entry.rules {
            let level = match levels.iter().position(|level| *level == rule.level) {
                Some(level) => level,
                None if rule.level == "host" => levels.len(),
                None => {
                    return Err(InventoryError {
                        field: format!("{field}.rules"),
                        message: format!(
                            "there is no level {:?} in fault-domain-levels; give one of: {}",
                            rule.level,
                            levels.iter().map(String::as_str).chain(["host"]).collect::<Vec<_>>().join(", ")
                        ),
                    });
                }
            };
            rules.push(SpreadRule { level, limit: rule.limit, hard: !rule.soft });
        }
        inventory.groups.insert(id.clone(), Group { id, members: entry.members, rules });
    }
    Ok(inventory)
}

fn resources(entry: ResourcesEntry) -> Resources {
    Resources { cpu_millis: entry.cpu.0, memory_mib: entry.memory.0, named: entry.named }
}

fn resources_entry(resources: &Resources) -> ResourcesEntry {
    ResourcesEntry {
        cpu: Cores(resources.cpu_millis),
        memory: Memory(resources.memory_mib),
        named: resources.named.clone(),
    }
}

/// Writes an inventory in its normal form.
#[must_use]
pub fn inventory_to_yaml(inventory: &Inventory) -> String {
    let document: Document<String, MethodEntry> = Document {
        fault_domain_levels: inventory.levels.clone(),
        hosts: inventory
            .hosts
            .values()
            .map(|host| HostEntry {
                id: host.id.to_string(),
                domain: host.domain.to_string(),
                capacity: resources_entry(&host.capacity),
                labels: host.labels.clone(),
                self_fence: host.self_fence,
                spare: host.spare,
                neighbour: host.neighbour_address.as_deref().map(Written::new),
                kdump_wait: host.kdump_wait.map(Span),
                fencing: host
                    .fencing
                    .iter()
                    .map(|level| level.0.iter().map(MethodEntry::of).collect())
                    .collect(),
            })
            .collect(),
        vms: inventory
            .vms
            .values()
            .map(|vm| VmEntry {
                id: vm.id.to_string(),
                priority: vm.priority,
                resources: resources_entry(&vm.resources),
                requires: vm.requires.clone(),
                depends_on: vm.depends_on.clone(),
                readiness: vm.readiness,
                readiness_timeout: vm.readiness_timeout.map(Span),
                datastore: vm.datastore.clone(),
                first_host: vm.first_host.clone(),
                driver: vm.definition.driver.clone(),
                arguments: vm.definition.arguments.clone(),
            })
            .collect(),
        groups: inventory
            .groups
            .values()
            .map(|group| GroupEntry {
                id: group.id.to_string(),
                members: group.members.clone(),
                rules: group
                    .rules
                    .iter()
                    .map(|rule| RuleEntry {
                        level: inventory.level_name(rule.level).to_owned(),
                        limit: rule.limit,
                        soft: !rule.hard,
                    })
                    .collect(),
            })
            .collect(),
    };
    serde_saphyr::to_string(&document).unwrap_or_else(|error| format!("# can't be shown: {error}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
fault-domain-levels: [rack]
hosts:
  - id: h1
    domain: r1
    capacity: { cpu: 8, memory: 16GiB, named: { gpu: 1 } }
    labels: [avx512]
    self-fence: trusted
    neighbour: "127.0.0.1:7001"
    fencing:
      - - redfish:
            address: "https://127.0.0.1:8443"
            uuid: 0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0
            pin: spki-sha256:5feceb66ffc86f38d952786c6d696c79c2dbc239dd4e91b46729d73a27fb57e9
            credentials: "file:/etc/defib/bmc"
      - - ipmi: { address: "10.1.0.1", serial: S1, credentials: "file:/etc/defib/bmc", cipher-suite: 3 }
      - - fence-agent:
            agent: fence_apc
            options: { ip: 10.2.0.1, plug: "3" }
            credentials: file:/etc/defib/pdu
            outlet: h1-a
        - fence-agent: { agent: fence_ack_manual, trust-address: true }
  - id: h2
    domain: r2
    capacity: { cpu: 1.5, memory: 512MiB }
vms:
  - id: cp-1
    priority: critical
    resources: { cpu: 0.5, memory: 256MiB }
    requires: [avx512]
    readiness: guest-agent
    readiness-timeout: 30s
    first-host: h1
    driver: process
    arguments: [sleep, "1000"]
  - id: w-1
    resources: { cpu: 1, memory: 256MiB }
    depends-on: [cp-1]
    driver: process
    arguments: [sleep, "1000"]
groups:
  - id: all
    members: [cp-1, w-1]
    rules: [{ level: rack }, { level: host, limit: 2, soft: true }]
"#;

    fn message(text: &str) -> String {
        inventory_from_yaml("inventory.yaml", text).unwrap_err().to_string()
    }

    #[test]
    fn what_is_written_reads_back_the_same() {
        let inventory = inventory_from_yaml("i", GOOD).unwrap();
        assert_eq!(inventory.hosts.len(), 2);
        assert_eq!(inventory.vms[&VmId::new("cp-1").unwrap()].resources.cpu_millis, 500);
        let text = inventory_to_yaml(&inventory);
        assert_eq!(inventory_from_yaml("i", &text).unwrap(), inventory, "{text}");
    }

    #[test]
    fn an_unknown_field_is_refused_with_its_line() {
        assert!(
            message(&GOOD.replace("depends-on", "depend-on"))
                .starts_with("inventory.yaml:38:5: unknown field `depend-on`")
        );
    }

    #[test]
    fn a_weak_cipher_suite_and_a_fence_agents_password_are_refused_with_line_and_field() {
        for number in ["0", "1", "2"] {
            let weak = message(&GOOD.replace("cipher-suite: 3", &format!("cipher-suite: {number}")));
            assert!(
                weak.starts_with("inventory.yaml:16:") && weak.contains(&format!("cipher-suite {number}")),
                "{weak}"
            );
        }
        let secret = message(&GOOD.replace("plug: \"3\" }", "plug: \"3\", passwd: geheim }"));
        assert!(
            secret.starts_with("inventory.yaml:17:11: hosts.h1.fencing[2][0].options: passwd does not"),
            "{secret}"
        );
        assert!(!secret.contains("geheim"), "{secret}");
    }

    #[test]
    fn a_vm_on_an_unknown_host_is_refused_with_its_line() {
        assert_eq!(
            message(&GOOD.replace("first-host: h1", "first-host: h9")),
            "inventory.yaml:27:9: vms.cp-1.first-host: there is no host h9"
        );
    }

    #[test]
    fn a_duplicate_id_names_both_lines() {
        assert_eq!(
            message(
                &GOOD.replace("id: w-1", "id: cp-1").replace("[cp-1, w-1]", "[cp-1]").replace("[cp-1]", "[]")
            ),
            "inventory.yaml:36:9: vms.cp-1: the id is used twice; line 27 has it too"
        );
    }

    #[test]
    fn a_cycle_and_a_hopeless_group_are_refused() {
        let cyclic = GOOD.replace("    requires: [avx512]\n", "    depends-on: [w-1]\n");
        assert!(message(&cyclic).contains("cyclic dependency: cp-1 -> w-1 -> cp-1"));
        let hopeless = GOOD.replace("domain: r2", "domain: r1");
        assert!(message(&hopeless).contains("can never be satisfied"), "{}", message(&hopeless));
    }

    #[test]
    fn what_can_not_be_meant_is_refused_with_line_and_field() {
        for (from, to, told) in [
            (
                "driver: process\n    arguments",
                "driver: proces\n    arguments",
                "27:9: vms.cp-1.driver: there is no driver \"proces\"; give one of: process, libvirt",
            ),
            (
                "arguments: [sleep, \"1000\"]\n  - id: w-1",
                "arguments: []\n  - id: w-1",
                "27:9: vms.cp-1.arguments: is empty; give the program that process runs, and its arguments",
            ),
            (
                "readiness: guest-agent",
                "readiness: node-ready",
                "27:9: vms.cp-1.readiness: no driver can tell that a VM is node-ready",
            ),
            (
                "readiness-timeout: 30s",
                "readiness-timeout: 0s",
                "27:9: vms.cp-1.readiness-timeout: 0ms is not between",
            ),
            (
                "first-host: h1",
                "first-host: h2",
                "27:9: vms.cp-1.first-host: host h2 lacks the labels that it requires (avx512)",
            ),
            (
                "priority: critical",
                "priority: disabled",
                "36:9: vms.w-1.depends-on: VM cp-1 has the priority disabled",
            ),
            ("levels: [rack]", "levels: ['']", "2:1: fault-domain-levels: a level has no name"),
            ("levels: [rack]", "levels: [host]", "2:1: fault-domain-levels: host is the level below"),
            (
                "resources: { cpu: 1, memory: 256MiB }\n",
                "resources: { cpu: 1, memory: 256MiB }\n    first-host: h1\n",
                "43:9: groups.all.members: cp-1, w-1 have their first-host in one rack, which may hold at most 1",
            ),
            (
                "resources: { cpu: 1, memory: 256MiB }\n",
                "resources: { cpu: 1, memory: 256MiB }\n    requires: [avx512]\n",
                "43:9: groups.all.rules: can never be satisfied: its hard rules leave no places for all of cp-1, w-1 on the hosts that have what they ask for (h1)",
            ),
            (
                "    capacity: { cpu: 1.5,",
                "    neighbour: '127.0.0.1:7001'\n    capacity: { cpu: 1.5,",
                "23:9: hosts.h2.neighbour: 127.0.0.1:7001 is the address of host h1 too",
            ),
        ] {
            assert!(GOOD.contains(from), "{from}");
            let text = GOOD.replace(from, to);
            let text = if to.contains("[host]") || to.contains("['']") {
                text.replace("level: rack", "level: host")
            } else {
                text
            };
            let told_now = message(&text);
            assert!(told_now.starts_with(&format!("inventory.yaml:{told}")), "{told_now}\n{told}");
        }
        let twice = GOOD.replace("levels: [rack]", "levels: [rack, rack]");
        let twice = twice.replace("domain: r1", "domain: a/r1").replace("domain: r2", "domain: b/r2");
        assert!(
            message(&twice).contains(":2:1: fault-domain-levels: rack is there twice"),
            "{}",
            message(&twice)
        );
    }

    #[test]
    fn names_that_look_like_others_and_fencing_that_can_never_work_are_refused_with_line_and_field() {
        for (from, to, told) in [
            ("domain: r2", "domain: \"r2 \"", "23:9: hosts.h2.domain: \"r2 \" has a blank at an end"),
            ("domain: r2", "domain: \"\\tr2\"", "23:9: hosts.h2.domain: \"\\tr2\" has a blank at an end"),
            ("domain: r2", "domain: \" \"", "23:9: hosts.h2.domain: \" \" is no name"),
            ("levels: [rack]", "levels: [\" rack\"]", "2:1: fault-domain-levels: \" rack\" has a blank"),
            ("labels: [avx512]", "labels: [avx512, \"\"]", "4:9: hosts.h1.labels: \"\" is no name"),
            ("gpu: 1", "\"\": 1", "4:9: hosts.h1.capacity.named: \"\" is no name"),
            (
                "named: { gpu: 1 }",
                "named: { \"g\\epu\": 1 }",
                "4:9: hosts.h1.capacity.named: \"g\\u{1b}pu\" has a",
            ),
            (
                "    readiness: guest-agent",
                "    datastore: \"d \"\n    readiness: guest-agent",
                "27:9: vms.cp-1.datastore: \"d \" has a blank at an end",
            ),
            (
                "      - - ipmi:",
                "      - []\n      - - ipmi:",
                "4:9: hosts.h1.fencing[1]: a level has no method",
            ),
            (
                "serial: S1",
                "serial: \" \"",
                "16:11: hosts.h1.fencing[1][0].serial: \" \" identifies no machine",
            ),
            (
                "uuid: 0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0",
                "uuid: 00000000-0000-0000-0000-000000000000",
                "11:11: hosts.h1.fencing[0][0].uuid: \"00000000-0000-0000-0000-000000000000\" identifies no machine",
            ),
        ] {
            assert!(GOOD.contains(from), "{from}");
            let text = GOOD
                .replace(from, to)
                .replace("level: rack", if to.contains(" rack\"") { "level: host" } else { "level: rack" });
            let told_now = message(&text);
            assert!(told_now.starts_with(&format!("inventory.yaml:{told}")), "{told_now}\n{told}");
        }
        let second = |identity: &str| {
            let fencing = format!(
                "    fencing: [[redfish: {{ address: \"https://10.9.9.9\", {identity}, credentials: \"file:/x\" }}]]\n"
            );
            let text =
                GOOD.replace("    capacity: { cpu: 1.5", &format!("{fencing}    capacity: {{ cpu: 1.5"));
            inventory_from_yaml("inventory.yaml", &text)
                .map_or_else(|error| error.to_string(), |_| String::new())
        };
        assert_eq!(
            second("uuid: 0F1E2D3C4B5A69788796A5B4C3D2E1F0"),
            "inventory.yaml:23:9: hosts.h2.fencing: uuid 0F1E2D3C4B5A69788796A5B4C3D2E1F0 is recorded for host h1 too as \
             uuid 0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0; one of the two is wrong"
        );
        assert!(second("serial: \"s-1 \"").contains("is recorded for host h1 too as serial S1"));
        assert_eq!(second("serial: S2"), "");
    }

    #[test]
    fn sizes_and_numbers_are_explained() {
        assert!(
            message(&GOOD.replace("512MiB", "512M")).contains("is no size of memory; write it like 512MiB")
        );
        assert!(message(&GOOD.replace("cpu: 1.5", "cpu: -1")).contains("cores"));
        assert!(message(&GOOD.replace("level: rack", "level: row")).contains("there is no level \"row\""));
    }
}
