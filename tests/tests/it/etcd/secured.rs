//! TLS with client certificates, and users with passwords.

use std::{fs, path::Path};

use defib_lab::etcd::Secured;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};

use super::{PREFIX, etcd, key, policy, rig, section, wait_for_json, wait_for_policy};

const PASSWORD: &str = "s3cret-enough";

/// Writes an authority, and for etcd and for its clients a certificate with its key.
fn certificates(directory: &Path) -> Secured {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "authority");
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let path = |name: &str| directory.join(name);
    fs::write(path("ca.pem"), authority.pem()).unwrap();
    for who in ["etcd", "client"] {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        // etcd's own gateway is a client of it.
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        // Without a name, or etcd takes it for a user's.
        params.distinguished_name = rcgen::DistinguishedName::new();
        let certificate = params.signed_by(&key, &authority).unwrap();
        fs::write(path(&format!("{who}.pem")), certificate.pem()).unwrap();
        fs::write(path(&format!("{who}.key")), key.serialize_pem()).unwrap();
    }
    Secured {
        authority: path("ca.pem"),
        certificate: path("etcd.pem"),
        key: path("etcd.key"),
        client_certificate: path("client.pem"),
        client_key: path("client.key"),
    }
}

#[tokio::test]
async fn certificates_and_passwords_are_shown_and_a_password_is_nowhere_told() {
    let scratch = tempfile::tempdir().unwrap();
    let secured = certificates(scratch.path());
    let Some((_directory, mut etcd)) = etcd("etcd-secured", Some(secured.clone())).await else { return };
    // A user who may do what the pages tell, and nothing else.
    let root = format!("root:root-{PASSWORD}");
    for words in [
        &["user", "add", root.as_str()][..],
        &["user", "grant-role", "root", "root"],
        &["user", "add", &format!("defib:{PASSWORD}")],
        &["role", "add", "defib"],
        &["role", "grant-permission", "defib", "--prefix=true", "readwrite", &key("policy")],
        &["role", "grant-permission", "defib", "--prefix=true", "readwrite", &key("inventory")],
        &["role", "grant-permission", "defib", "readwrite", &key("status/term")],
        &["user", "grant-role", "defib", "defib"],
        &["auth", "enable"],
    ] {
        etcd.ctl(words, "").await.unwrap();
    }
    etcd.log_in(root);
    let password = scratch.path().join("password");
    fs::write(&password, "s3cret-guess\n").unwrap();
    let shown = |path: &Path| path.display().to_string();
    let tls = format!(
        ", tls: {{ authority: {}, certificate: {}, key: {} }}, user: defib, password: {{ file: {} }}",
        shown(&secured.authority),
        shown(&secured.client_certificate),
        shown(&secured.client_key),
        shown(&password)
    );
    let mut rig = rig(section(&etcd, &tls)).await;
    rig.wait_for(&["status"], "etcd: unreachable: etcd at 127.0.0.1").await;
    rig.wait_for(&["status"], "authentication failed").await;

    // The right one is found without a restart. Where nothing may be published documents are taken all the same.
    fs::write(&password, format!("{PASSWORD}\n")).unwrap();
    rig.wait_for(&["status"], "permission denied").await;
    etcd.put(&key("policy"), &policy(911)).await.unwrap();
    wait_for_policy(&rig, 911).await;
    let leader = rig.cluster.operator().status().await.unwrap().leader;
    let log = rig.cluster.replica_log(leader).unwrap();
    assert!(log.contains("etcd fails") && !log.contains("etcd is followed again"), "{log}");
    let all = ["role", "grant-permission", "defib", "--prefix=true", "readwrite", &format!("{PREFIX}/")];
    etcd.ctl(&all, "").await.unwrap();
    rig.wait_for(&["status"], "etcd: fresh").await;
    wait_for_json(&etcd, "status/leader", |leader| leader.is_object()).await;
    // Tokens of members that were restarted are not known to them any more.
    for member in 0..defib_lab::etcd::MEMBERS {
        etcd.kill(member);
        etcd.restart(member).unwrap();
        etcd.wait_until_up().await.unwrap();
    }
    etcd.put(&key("policy"), &policy(922)).await.unwrap();
    wait_for_policy(&rig, 922).await;

    for id in 1..=3 {
        let log = rig.cluster.replica_log(id).unwrap();
        assert!(!log.contains("s3cret"), "r{id} tells a password");
    }
    let status = rig.defib(["status"]).await.done();
    assert!(!status.contains("s3cret"), "{status}");
    rig.assert_calm();
}
