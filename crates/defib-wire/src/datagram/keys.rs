//! From one secret to one key per direction.

use core::fmt;

use ring::{
    aead::{AES_128_GCM, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hkdf::{HKDF_SHA256, Salt},
    rand::SecureRandom,
};
use zeroize::Zeroizing;

use super::Direction;
use crate::WireError;

/// The secret of one session: 32 random bytes that a replica draws and tells the agent over mutually
/// authenticated TLS. Wiped from memory when dropped, never shown.
#[derive(Clone)]
pub struct SessionSecret(Zeroizing<[u8; 32]>);

impl fmt::Debug for SessionSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionSecret(<32 bytes>)")
    }
}

impl SessionSecret {
    /// Draws a new one.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn generate(random: &dyn SecureRandom) -> Result<Self, WireError> {
        let mut bytes = Zeroizing::new([0; 32]);
        random
            .fill(&mut *bytes)
            .map_err(|_| WireError::new("session_secret", "the system gives no random bytes"))?;
        Ok(Self(bytes))
    }

    /// Takes the bytes of a `Welcome`.
    ///
    /// # Errors
    /// When they are not 32.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WireError> {
        let bytes = <[u8; 32]>::try_from(bytes).map_err(|_| {
            WireError::new("session_secret", format!("has {} bytes instead of 32", bytes.len()))
        })?;
        Ok(Self(Zeroizing::new(bytes)))
    }

    /// The bytes for a `Welcome`.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &*self.0
    }

    pub(super) fn key(&self, session: u64, direction: Direction) -> LessSafeKey {
        let pseudorandom = Salt::new(HKDF_SHA256, b"defib heartbeat datagram v1").extract(&*self.0);
        let (kind, session) = ([direction.kind()], session.to_le_bytes());
        let info = [kind.as_slice(), session.as_slice()];
        let material = pseudorandom.expand(&info, &AES_128_GCM);
        LessSafeKey::new(UnboundKey::from(material.expect("16 bytes are within what HKDF can give")))
    }
}

/// Unique under its key, because counters are; the kind only guards against a mix-up of keys.
pub(super) fn nonce(direction: Direction, counter: u64) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    bytes[3] = direction.kind();
    bytes[4..].copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}
