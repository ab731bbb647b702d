//! Signatures of the chain's end: Ed25519, with keys as PEM files that any tool reads.
//!
//! The chain alone shows what is missing or altered *within* a file. Whoever rewrites the whole file, hashes and all,
//! is found by the signature: it needs a key that lies on the replicas only.

use std::{fmt, path::Path};

use base64::Engine as _;
use defib_model::{EventSeq, chain::head_statement};
use ring::{
    digest::{SHA256, digest},
    rand::SystemRandom,
    signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey},
};
use rustls::pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer, pem::PemObject as _};
use zeroize::Zeroizing;

/// What stands before the 32 bytes of an Ed25519 key in a `SubjectPublicKeyInfo` (RFC 8410).
const SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Why a key can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct KeyError {
    place: String,
    problem: String,
}

impl KeyError {
    fn new(place: &Path, problem: impl fmt::Display) -> Self {
        Self { place: place.display().to_string(), problem: problem.to_string() }
    }
}

/// Signs.
pub struct SigningKey {
    pair: Ed25519KeyPair,
    public: PublicKey,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("id", &self.public.id).finish_non_exhaustive()
    }
}

/// Checks signatures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    bytes: Vec<u8>,
    id: String,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    (0..text.len())
        .step_by(2)
        .map(|at| text.get(at..at + 2).and_then(|byte| u8::from_str_radix(byte, 16).ok()))
        .collect()
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut page = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        page.push_str(&String::from_utf8_lossy(line));
        page.push('\n');
    }
    page.push_str(&format!("-----END {label}-----\n"));
    page
}

impl SigningKey {
    /// Draws a new key.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub fn generate() -> Result<(Self, Zeroizing<String>), KeyError> {
        let place = Path::new("a new key");
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())
            .map_err(|_| KeyError::new(place, "the system gives no random numbers"))?;
        let text = Zeroizing::new(pem("PRIVATE KEY", document.as_ref()));
        Ok((Self::from_der(document.as_ref(), place)?, text))
    }

    /// Reads a key that `defib pki event-key`, or openssl, made.
    ///
    /// # Errors
    /// When the file can't be read, is readable by others, or holds no Ed25519 key.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(path).map_err(|error| KeyError::new(path, error))?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(KeyError::new(path, "others may read it; make it private: chmod 600"));
        }
        let der = PrivatePkcs8KeyDer::from_pem_file(path).map_err(|error| KeyError::new(path, error))?;
        Self::from_der(der.secret_pkcs8_der(), path)
    }

    fn from_der(der: &[u8], place: &Path) -> Result<Self, KeyError> {
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der)
            .map_err(|error| KeyError::new(place, format!("it is no Ed25519 key: {error}")))?;
        let public = PublicKey::new(pair.public_key().as_ref());
        Ok(Self { pair, public })
    }

    /// The half that everybody may have.
    #[must_use]
    pub const fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Vouches for all events up to `seq`, hexadecimal.
    #[must_use]
    pub fn sign(&self, cluster: &str, seq: EventSeq, hash: &str) -> String {
        hex(self.pair.sign(head_statement(cluster, seq, hash).as_bytes()).as_ref())
    }
}

impl PublicKey {
    fn new(bytes: &[u8]) -> Self {
        let id = hex(digest(&SHA256, bytes).as_ref().get(..8).unwrap_or_default());
        Self { bytes: bytes.to_vec(), id }
    }

    /// Reads a public key in PEM.
    ///
    /// # Errors
    /// When the file can't be read or holds no Ed25519 public key.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let der = SubjectPublicKeyInfoDer::from_pem_file(path).map_err(|error| KeyError::new(path, error))?;
        match der.strip_prefix(&SPKI) {
            Some(bytes) if bytes.len() == 32 => Ok(Self::new(bytes)),
            Some(_) | None => Err(KeyError::new(path, "it is no Ed25519 public key")),
        }
    }

    /// The first 16 hexadecimal digits of SHA-256 over the key.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// As PEM.
    #[must_use]
    pub fn to_pem(&self) -> String {
        pem("PUBLIC KEY", &[&SPKI, self.bytes.as_slice()].concat())
    }

    /// Whether the key's owner vouched for it.
    #[must_use]
    pub fn verifies(&self, cluster: &str, seq: EventSeq, hash: &str, signature: &str) -> bool {
        let Some(signature) = unhex(signature) else { return false };
        let statement = head_statement(cluster, seq, hash);
        UnparsedPublicKey::new(&ED25519, &self.bytes).verify(statement.as_bytes(), &signature).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _, process::Command};

    use super::*;

    #[test]
    fn a_signature_holds_for_its_cluster_number_and_hash_only() {
        let (key, _) = SigningKey::generate().unwrap();
        let signature = key.sign("demo", EventSeq(7), "ab");
        let public = key.public();
        assert!(public.verifies("demo", EventSeq(7), "ab", &signature));
        assert!(!public.verifies("Demo", EventSeq(7), "ab", &signature));
        assert!(!public.verifies("demo", EventSeq(8), "ab", &signature));
        assert!(!public.verifies("demo", EventSeq(7), "ac", &signature));
        assert!(!public.verifies("demo", EventSeq(7), "ab", "nothing"));
        let (other, _) = SigningKey::generate().unwrap();
        assert!(!other.public().verifies("demo", EventSeq(7), "ab", &signature));
    }

    #[test]
    fn keys_are_files_that_other_tools_read_and_make() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let (key, text) = SigningKey::generate().unwrap();
        fs::write(path("key"), &*text).unwrap();
        fs::set_permissions(path("key"), fs::Permissions::from_mode(0o644)).unwrap();
        assert!(SigningKey::read(&path("key")).unwrap_err().to_string().contains("chmod 600"));
        fs::set_permissions(path("key"), fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(SigningKey::read(&path("key")).unwrap().public(), key.public());
        fs::write(path("pub"), key.public().to_pem()).unwrap();
        assert_eq!(PublicKey::read(&path("pub")).unwrap(), *key.public());
        assert!(PublicKey::read(&path("key")).is_err());

        // The judge is openssl: the documentation tells readers to use it where they do not trust us.
        fs::write(path("statement"), head_statement("demo", EventSeq(7), "ab")).unwrap();
        fs::write(path("signature"), unhex(&key.sign("demo", EventSeq(7), "ab")).unwrap()).unwrap();
        let openssl = |arguments: &[&str]| {
            Command::new("openssl").args(arguments).current_dir(directory.path()).output()
        };
        let verify = [
            "pkeyutl",
            "-verify",
            "-pubin",
            "-inkey",
            "pub",
            "-rawin",
            "-in",
            "statement",
            "-sigfile",
            "signature",
        ];
        match openssl(&verify) {
            Err(error) => eprintln!("NOTICE: openssl was not asked: {error}"),
            Ok(output) => assert!(output.status.success(), "{output:?}"),
        }
        if openssl(&["genpkey", "-algorithm", "ed25519", "-out", "theirs"]).is_ok() {
            fs::set_permissions(path("theirs"), fs::Permissions::from_mode(0o600)).unwrap();
            SigningKey::read(&path("theirs")).unwrap();
        }
    }
}
