//! Debian packages that some tests need: installed where we may, named where we may not.

use std::path::{Path, PathBuf};
use std::process::Command;

/// What shows that a package is there (a program, or a file by its whole path), and the package.
const WANTED: &[(&str, &str)] = &[
    ("ipmi_sim", "openipmi"),
    ("ipmitool", "ipmitool"),
    ("fence_ipmilan", "fence-agents"),
    ("pkg-config", "pkg-config"),
    ("make", "make"),
    ("c++", "g++"),
    ("/usr/share/doc/libssl-dev", "libssl-dev"),
    ("java", "default-jre-headless"),
    ("mvn", "maven"),
    ("/usr/include/libvirt/libvirt.h", "libvirt-dev"),
    ("libvirtd", "libvirt-daemon"),
    ("/usr/share/doc/libvirt-daemon-driver-qemu", "libvirt-daemon-driver-qemu"),
    ("virsh", "libvirt-clients"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("/usr/share/doc/libfaketime", "libfaketime"),
    ("nft", "nftables"),
    ("ip", "iproute2"),
    ("python3", "python3-venv"),
    ("rsyslogd", "rsyslog"),
    ("protoc", "protobuf-compiler"),
    ("/usr/share/doc/libprotobuf-dev", "libprotobuf-dev"),
    ("etcd", "etcd-server"),
    ("etcdctl", "etcd-client"),
    ("/usr/share/doc/rsyslog-gnutls", "rsyslog-gnutls"),
];

/// The packages that are missing.
fn missing(is_there: impl Fn(&str) -> bool) -> Vec<&'static str> {
    WANTED.iter().filter(|(sign, _)| !is_there(sign)).map(|(_, package)| *package).collect()
}

fn is_there(sign: &str) -> bool {
    if sign.starts_with('/') {
        return Path::new(sign).exists();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).any(|folder| folder.join(sign).is_file())
}

/// Installs what is missing, or says loudly that tests will be skipped. Never fails: what is missing then is counted.
pub(crate) fn provide() {
    let packages = missing(is_there);
    if packages.is_empty() {
        return;
    }
    let install = format!("apt-get install --no-install-recommends {}", packages.join(" "));
    let may = crate::tools::run("id", &["-u"]).as_deref() == Some("0") && is_there("apt-get");
    if may {
        eprintln!("installing what tests need: {}", packages.join(" "));
        let apt = |arguments: &[&str]| {
            let mut command = Command::new("apt-get");
            command.env("DEBIAN_FRONTEND", "noninteractive").args(arguments);
            command.status().is_ok_and(|status| status.success())
        };
        let mut install = vec!["install", "-q", "-y", "--no-install-recommends"];
        install.extend(&packages);
        if apt(&["update", "-q"]) && apt(&install) {
            return;
        }
    }
    eprintln!(
        "\nNOTICE: this machine lacks {}: tests that need them are SKIPPED.\n        On Debian, as root: {install}\n",
        packages.join(", ")
    );
}

/// Whether the client of etcd can be built here; else what is missing.
pub(crate) fn has_protoc() -> Result<(), String> {
    let wanted = "apt-get install protobuf-compiler libprotobuf-dev";
    if crate::tools::run("protoc", &["--version"]).is_none() {
        return Err(format!("no protoc: what needs etcd is not built ({wanted})"));
    }
    // Without them a package's protoc can't read what its own schemas import.
    let has_includes = std::env::var_os("PROTOC_INCLUDE").is_some()
        || Path::new("/usr/include/google/protobuf/struct.proto").exists();
    if has_includes {
        Ok(())
    } else {
        Err(format!("no includes of protoc: what needs etcd is not built ({wanted})"))
    }
}

/// Whether the libvirt driver can be built here.
pub(crate) fn has_libvirt() -> bool {
    crate::tools::run("pkg-config", &["--exists", "libvirt"]).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_by_its_package() {
        assert_eq!(missing(|sign| sign != "ipmi_sim"), ["openipmi"]);
        assert_eq!(missing(|_| false).len(), WANTED.len());
    }
}
