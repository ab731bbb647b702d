//! What a domain's definition says of it, for people who want to protect it.

use std::{collections::BTreeMap, path::Path};

use defib_wire::v1;
use nix::sys::statfs::statfs;
use roxmltree::{Document, Node};

use super::mark::child;

/// The namespace of the element by which a domain's owner says how it wants to be protected.
pub const POLICY: &str = "https://defib.dev/xmlns/libvirt/policy/1";

/// File systems that several hosts can share: NFS, CephFS, GFS2, OCFS2, CIFS, SMB2, Lustre, FUSE, 9P, virtiofs is FUSE.
const SHARED: [i64; 9] = [
    0x6969,
    0x00c3_6400,
    0x0116_1970,
    0x7461_636f,
    0xff53_4d42,
    0xfe53_4d42,
    0x0bd0_0bd0,
    0x6573_5546,
    0x0102_1997,
];

/// What is said of a domain.
#[derive(Debug, Default, PartialEq)]
pub struct Described {
    /// Its memory; 0: it does not say.
    pub memory_mib: u64,
    /// Its processors.
    pub vcpus: u32,
    /// Everything outside of the definition that it needs: what for, and its path.
    pub files: Vec<(String, String)>,
    /// The pools that its disks name.
    pub pools: Vec<String>,
    /// How its owner wants it to be protected, by the names of the element's attributes.
    pub policy: BTreeMap<String, String>,
}

fn text<'a>(node: Node<'a, '_>, name: &str) -> Option<&'a str> {
    child(node, name).and_then(|child| child.text()).map(str::trim).filter(|text| !text.is_empty())
}

/// Sizes as libvirt has them: KiB if nothing else is said.
fn mebibytes(node: Node<'_, '_>) -> Option<u64> {
    let amount: u64 = node.text()?.trim().parse().ok()?;
    let unit: u64 = match node.attribute("unit").unwrap_or("KiB") {
        "b" | "bytes" => 1,
        "KB" => 1000,
        "k" | "KiB" => 1 << 10,
        "MB" => 1_000_000,
        "M" | "MiB" => 1 << 20,
        "GB" => 1_000_000_000,
        "G" | "GiB" => 1 << 30,
        "TB" => 1_000_000_000_000,
        "T" | "TiB" => 1 << 40,
        _ => return None,
    };
    Some(amount.checked_mul(unit)?.div_ceil(1 << 20))
}

/// Reads a definition; `None`: it is none.
pub fn described(xml: &str) -> Option<Described> {
    let document = Document::parse(xml).ok()?;
    let domain = document.root_element();
    if domain.tag_name().name() != "domain" {
        return None;
    }
    let mut said = Described {
        memory_mib: child(domain, "memory").and_then(mebibytes).unwrap_or_default(),
        vcpus: text(domain, "vcpu").and_then(|text| text.parse().ok()).unwrap_or(1),
        ..Described::default()
    };
    if let Some(os) = child(domain, "os") {
        for what in ["loader", "nvram", "kernel", "initrd", "dtb"] {
            said.files.extend(text(os, what).map(|path| (what.to_owned(), path.to_owned())));
        }
    }
    let devices = child(domain, "devices");
    let disks = devices.into_iter().flat_map(|devices| devices.children());
    for disk in disks.filter(|node| node.tag_name().name() == "disk") {
        let Some(source) = child(disk, "source") else { continue };
        let target = child(disk, "target").and_then(|target| target.attribute("dev")).unwrap_or_default();
        let what = format!("{} {target}", disk.attribute("device").unwrap_or("disk"));
        let path = ["file", "dev", "dir"].into_iter().find_map(|kind| source.attribute(kind));
        said.files.extend(path.map(|path| (what, path.to_owned())));
        said.pools.extend(source.attribute("pool").map(str::to_owned));
    }
    let policy = domain
        .descendants()
        .find(|node| node.tag_name().name() == "policy" && node.tag_name().namespace() == Some(POLICY));
    for attribute in policy.into_iter().flat_map(|policy| policy.attributes()) {
        said.policy.insert(attribute.name().to_owned(), attribute.value().to_owned());
    }
    Some(said)
}

/// Whether several hosts can have the file system of a path in common.
pub fn sharing(path: &str) -> v1::FileSharing {
    // What is behind a device its path does not say.
    match statfs(Path::new(path)) {
        Ok(_) | Err(_) if path.starts_with("/dev/") => v1::FileSharing::Unspecified,
        Ok(found) if SHARED.contains(&(found.filesystem_type().0 & 0xffff_ffff)) => v1::FileSharing::Shared,
        Ok(_) => v1::FileSharing::Local,
        Err(_) => v1::FileSharing::Unspecified,
    }
}

/// The datastore of a domain: the one pool that its disks name, or in whose directory all of its disks lie.
pub fn datastore(said: &Described, pools: &[v1::FoundDatastore]) -> String {
    let mut names: Vec<&str> = said.pools.iter().map(String::as_str).collect();
    for (what, path) in &said.files {
        let within =
            pools.iter().filter(|pool| !pool.target.is_empty() && Path::new(path).starts_with(&pool.target));
        let nearest = within.max_by_key(|pool| pool.target.len());
        if what.starts_with("disk ") {
            names.push(nearest.map_or("", |pool| pool.name.as_str()));
        }
    }
    names.dedup();
    match names.as_slice() {
        [one] => (*one).to_owned(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const XML: &str = "<domain type='kvm'><name>a</name><memory unit='GiB'>2</memory><vcpu placement='static'>4</vcpu>\
        <metadata><p:policy xmlns:p='https://defib.dev/xmlns/libvirt/policy/1' priority='high' requires='ssd'/></metadata>\
        <os><loader>/usr/share/OVMF/OVMF_CODE.fd</loader><nvram>/var/lib/libvirt/qemu/nvram/a_VARS.fd</nvram></os>\
        <devices><disk type='file' device='disk'><source file='/srv/vms/a.qcow2'/><target dev='vda'/></disk>\
        <disk type='file' device='cdrom'><source file='/srv/seeds/a.iso'/><target dev='sda'/></disk>\
        <disk type='file' device='cdrom'><target dev='sdb'/></disk></devices></domain>";

    fn pool(name: &str, target: &str) -> v1::FoundDatastore {
        v1::FoundDatastore { name: name.into(), target: target.into(), ..v1::FoundDatastore::default() }
    }

    #[test]
    fn a_definition_says_how_big_it_is_what_it_needs_and_how_its_owner_wants_it() {
        let said = described(XML).unwrap();
        assert_eq!((said.memory_mib, said.vcpus), (2048, 4));
        let files: Vec<&str> = said.files.iter().map(|(what, _)| what.as_str()).collect();
        assert_eq!(files, ["loader", "nvram", "disk vda", "cdrom sda"], "and no drive that is empty");
        assert_eq!(said.policy["priority"], "high");
        assert_eq!(said.policy["requires"], "ssd");
        assert!(described("<network/>").is_none() && described("nonsense").is_none());
        let plain = "<domain><memory>1048577</memory></domain>";
        assert_eq!(described(plain).unwrap().memory_mib, 1025, "rounded up");
    }

    #[test]
    fn a_datastore_is_the_one_pool_of_all_disks_and_none_if_there_are_two() {
        let said = described(XML).unwrap();
        let pools = [pool("all", "/srv"), pool("vms", "/srv/vms"), pool("dir-less", "")];
        assert_eq!(datastore(&said, &pools), "vms", "the nearest");
        assert_eq!(datastore(&said, &[pool("vm", "/srv/vm")]), "", "no part of a name");
        let two = XML.replace(
            "<disk type='file' device='disk'>",
            "<disk type='volume' device='disk'><source pool='fast' volume='b'/>\
            <target dev='vdb'/></disk><disk type='file' device='disk'>",
        );
        assert_eq!(datastore(&described(&two).unwrap(), &pools), "");
    }

    #[test]
    fn what_lies_on_this_hosts_own_disk_is_told_apart() {
        assert_eq!(sharing("/proc/self"), v1::FileSharing::Local);
        for unknown in ["/nowhere/at/all", "/dev/null"] {
            assert_eq!(sharing(unknown), v1::FileSharing::Unspecified);
        }
    }
}
