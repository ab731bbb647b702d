//! A document of the size that is promised: 5,000 hosts, each with its fencing, and 10,000 VMs.

use std::fmt::Write as _;

use defib_observe::documents::{inventory_from_yaml, inventory_to_yaml};

#[test]
fn an_inventory_of_five_thousand_hosts_and_ten_thousand_vms_is_read_and_written() {
    let mut text = String::from("fault-domain-levels: [zone, rack]\nhosts:\n");
    for host in 0..5_000 {
        let (zone, rack) = (host % 3, host / 40);
        write!(
            text,
            "  - id: h{host}\n    domain: zone-{zone}/rack-{rack}\n    capacity: {{ cpu: 64, memory: 512GiB, named: {{ gpu: 2 }} }}\n    \
             labels: [avx512, ssd]\n    neighbour: \"10.{}.{}.1:7445\"\n    fencing:\n      - - redfish:\n            \
             address: \"https://10.{}.{}.2\"\n            serial: S{host}X\n            credentials: \"file:/etc/defib/bmc\"\n",
            host / 250,
            host % 250,
            host / 250,
            host % 250,
        )
        .unwrap();
    }
    text += "vms:\n";
    for vm in 0..10_000 {
        write!(
            text,
            "  - id: vm-{vm}\n    priority: low\n    resources: {{ cpu: 2, memory: 4GiB }}\n    requires: [ssd]\n    \
             datastore: d1\n    driver: libvirt\n    arguments: [guest-{vm}]\n"
        )
        .unwrap();
    }
    let inventory = inventory_from_yaml("large.yaml", &text).unwrap();
    assert_eq!((inventory.hosts.len(), inventory.vms.len()), (5_000, 10_000));
    assert_eq!(inventory_from_yaml("again.yaml", &inventory_to_yaml(&inventory)).unwrap(), inventory);
    // A fault in the last line is still told with its place.
    let wrong = format!("{text}    first-host: h5000\n");
    let told = inventory_from_yaml("large.yaml", &wrong).unwrap_err().to_string();
    assert!(told.contains("vms.vm-9999.first-host: there is no host h5000"), "{told}");
}
