//! Certificates for receivers on loopback and for us.

use std::{fs, path::Path};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};

/// Writes an authority `NAME-ca.pem`, and for the broker, for one that is called otherwise (`misnamed`) and for us one
/// file with key and certificate each.
pub(crate) fn certificates(directory: &Path, name: &str) -> anyhow::Result<()> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // OpenSSL takes a certificate that is called as its issuer for one that signed itself.
    params.distinguished_name.push(DnType::CommonName, format!("authority {name}"));
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    fs::write(directory.join(format!("{name}-ca.pem")), authority.pem())?;
    let (server, client) = (ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth);
    let ours = "127.0.0.1";
    for (who, purpose, place) in
        [("broker", server.clone(), ours), ("misnamed", server, "127.0.0.9"), ("defib", client, ours)]
    {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![place.to_owned()])?;
        params.extended_key_usages = vec![purpose];
        params.distinguished_name.push(DnType::CommonName, who);
        let certificate = params.signed_by(&key, &authority)?;
        let both = format!("{}{}", key.serialize_pem(), certificate.pem());
        fs::write(directory.join(format!("{name}-{who}.pem")), both)?;
    }
    Ok(())
}
