//! Join tokens: what a host needs to get its first certificate, and nothing more.
//!
//! `defib1.<payload>.<mac>`, both base64url. The payload is a list of lines: cluster, identity, expiry, nonce,
//! pin of the authority, and the replicas' addresses. The MAC covers everything before it.

use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::hmac;
use zeroize::Zeroizing;

use crate::{
    ClusterName, PeerIdentity, PkiError, SpkiPin,
    certificate::rfc3339,
    files::{hex, random},
};

const PREFIX: &str = "defib1.";
const TEXT_BYTES_MAX: usize = 8 * 1024;
const REPLICAS_MAX: usize = 32;
const ADDRESS_BYTES_MAX: usize = 260;

/// What makes a token unique; the controller's log remembers the used ones.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nonce(pub [u8; 16]);

impl fmt::Display for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&hex(&self.0))
    }
}

impl fmt::Debug for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a token is refused. Nothing was changed; only a new token helps.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It is no token, or was cut or garbled in copying.
    #[error("this is not a join token: {reason}; make a new one with `defib pki token`")]
    Malformed {
        /// What is wrong.
        reason: &'static str,
    },
    /// It was not made with this authority's key, or was changed.
    #[error(
        "the join token was not made by this cluster's authority, or was changed; make a new one with `defib pki token`"
    )]
    BadMac,
    /// Its time is over.
    #[error("the join token expired at {}; make a new one with `defib pki token`", rfc3339(*since))]
    Expired {
        /// When it expired.
        since: SystemTime,
    },
    /// It is for another cluster.
    #[error("the join token is for cluster {token}, and this is cluster {ours}")]
    WrongCluster {
        /// The cluster in the token.
        token: String,
        /// The cluster that was asked.
        ours: String,
    },
}

/// A token as the joining side reads it: well-formed, but only the authority can verify it.
#[derive(Clone)]
pub struct JoinToken {
    text: Zeroizing<String>,
    payload: Payload,
}

#[derive(Clone)]
struct Payload {
    cluster: ClusterName,
    identity: PeerIdentity,
    expires_unix_seconds: u64,
    nonce: Nonce,
    authority: SpkiPin,
    replicas: Vec<String>,
}

/// A token that the authority made and whose time is not over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedToken {
    /// Who may join.
    pub identity: PeerIdentity,
    /// To be accepted once only.
    pub nonce: Nonce,
    /// After this the nonce need not be remembered any longer.
    pub expires: SystemTime,
}

impl JoinToken {
    /// Reads a token; white space around it is ignored.
    ///
    /// # Errors
    /// [`TokenError::Malformed`].
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        let (payload, _, _) = split(text)?;
        Ok(Self { text: Zeroizing::new(text.to_owned()), payload })
    }

    /// The token itself. It is a secret: whoever has it can join in the place of its owner.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.text
    }

    /// The cluster to join.
    #[must_use]
    pub const fn cluster(&self) -> &ClusterName {
        &self.payload.cluster
    }

    /// Who joins with it.
    #[must_use]
    pub const fn identity(&self) -> &PeerIdentity {
        &self.payload.identity
    }

    /// The authority that the joining side must find at the other end.
    #[must_use]
    pub const fn authority(&self) -> SpkiPin {
        self.payload.authority
    }

    /// Where to ask, `host:port`.
    #[must_use]
    pub fn replicas(&self) -> &[String] {
        &self.payload.replicas
    }

    /// When it expires.
    #[must_use]
    pub fn expires(&self) -> SystemTime {
        self.payload.expires()
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken")
            .field("cluster", &self.payload.cluster)
            .field("identity", &self.payload.identity)
            .field("expires", &rfc3339(self.payload.expires()))
            .field("authority", &self.payload.authority)
            .field("replicas", &self.payload.replicas)
            .finish_non_exhaustive()
    }
}

impl Payload {
    fn expires(&self) -> SystemTime {
        // Parsing and minting both made sure that this fits.
        UNIX_EPOCH.checked_add(Duration::from_secs(self.expires_unix_seconds)).unwrap_or(UNIX_EPOCH)
    }

    fn encode(&self) -> String {
        let mut lines = vec![
            self.cluster.to_string(),
            self.identity.to_string(),
            self.expires_unix_seconds.to_string(),
            self.nonce.to_string(),
            self.authority.to_string(),
        ];
        lines.extend(self.replicas.iter().cloned());
        lines.join("\n")
    }

    fn decode(text: &str) -> Result<Self, TokenError> {
        let malformed = |reason| TokenError::Malformed { reason };
        let mut lines = text.split('\n');
        let mut next = || lines.next().ok_or_else(|| malformed("its content is incomplete"));
        let payload = Self {
            cluster: ClusterName::new(next()?).map_err(|_| malformed("its cluster is not a name"))?,
            identity: next()?.parse().map_err(|_| malformed("it is for no known kind of peer"))?,
            expires_unix_seconds: next()?.parse().map_err(|_| malformed("its expiry is not a time"))?,
            nonce: Nonce(unhex(next()?).ok_or_else(|| malformed("its nonce is garbled"))?),
            authority: SpkiPin(unhex(next()?).ok_or_else(|| malformed("its pin is garbled"))?),
            replicas: lines.map(str::to_owned).collect(),
        };
        if UNIX_EPOCH.checked_add(Duration::from_secs(payload.expires_unix_seconds)).is_none()
            || payload.expires_unix_seconds > EXPIRY_UNIX_SECONDS_MAX
        {
            return Err(malformed("its expiry is not a time"));
        }
        if check_replicas(&payload.replicas).is_err() {
            return Err(malformed("its addresses are garbled"));
        }
        // One form only: what reads the same is the same.
        if payload.encode() != text {
            return Err(malformed("its content is not in the form in which it is written"));
        }
        Ok(payload)
    }
}

/// The end of the year 9999: later times can't be written.
const EXPIRY_UNIX_SECONDS_MAX: u64 = 253_402_300_799;

fn check_replicas(replicas: &[String]) -> Result<(), String> {
    if replicas.is_empty() {
        return Err("a join token needs the address of at least one replica".to_owned());
    }
    if replicas.len() > REPLICAS_MAX {
        return Err(format!("a join token carries at most {REPLICAS_MAX} addresses"));
    }
    for address in replicas {
        let port = address
            .rsplit_once(':')
            .filter(|(host, _)| !host.is_empty())
            .map(|(_, port)| port.parse::<u16>());
        if address.len() > ADDRESS_BYTES_MAX
            || !address.bytes().all(|byte| byte.is_ascii_graphic())
            || !matches!(port, Some(Ok(1..)))
        {
            return Err(format!("{address:?} is not an address of the form host:port"));
        }
    }
    Ok(())
}

pub(crate) fn mint(
    key: &hmac::Key,
    cluster: &ClusterName,
    authority: SpkiPin,
    identity: &PeerIdentity,
    ttl: Duration,
    replicas: &[String],
    now: SystemTime,
) -> Result<JoinToken, PkiError> {
    check_replicas(replicas).map_err(PkiError::invalid)?;
    let expires_unix_seconds = now
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| since.checked_add(ttl))
        .map(|since| since.as_secs())
        .filter(|seconds| *seconds <= EXPIRY_UNIX_SECONDS_MAX && !ttl.is_zero())
        .ok_or_else(|| PkiError::invalid("the token's time to live is zero or too long"))?;
    let payload = Payload {
        cluster: cluster.clone(),
        identity: identity.clone(),
        expires_unix_seconds,
        nonce: Nonce(random()?),
        authority,
        replicas: replicas.to_vec(),
    };
    let mut text = Zeroizing::new(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(payload.encode())));
    let tag = hmac::sign(key, text.as_bytes());
    text.push('.');
    text.push_str(&URL_SAFE_NO_PAD.encode(tag.as_ref()));
    Ok(JoinToken { text, payload })
}

pub(crate) fn verify(
    key: &hmac::Key,
    cluster: &ClusterName,
    authority: SpkiPin,
    text: &str,
    now: SystemTime,
) -> Result<VerifiedToken, TokenError> {
    let (payload, covered, mac) = split(text.trim())?;
    // Not authenticated yet, but it only chooses between two refusals: the other one would be "bad MAC".
    if payload.cluster != *cluster {
        return Err(TokenError::WrongCluster {
            token: payload.cluster.to_string(),
            ours: cluster.to_string(),
        });
    }
    hmac::verify(key, covered.as_bytes(), &mac).map_err(|_| TokenError::BadMac)?;
    if payload.authority != authority {
        return Err(TokenError::BadMac);
    }
    let expires = payload.expires();
    if now >= expires {
        return Err(TokenError::Expired { since: expires });
    }
    Ok(VerifiedToken { identity: payload.identity, nonce: payload.nonce, expires })
}

/// The payload, the text that the MAC covers, and the MAC.
fn split(text: &str) -> Result<(Payload, &str, Zeroizing<Vec<u8>>), TokenError> {
    let malformed = |reason| TokenError::Malformed { reason };
    if text.len() > TEXT_BYTES_MAX {
        return Err(malformed("it is too long"));
    }
    let body = text.strip_prefix(PREFIX).ok_or_else(|| malformed("it does not begin with `defib1.`"))?;
    let (covered, mac) = text.rsplit_once('.').ok_or_else(|| malformed("it has not three parts"))?;
    let (payload, _) = body.split_once('.').ok_or_else(|| malformed("it has not three parts"))?;
    let payload = URL_SAFE_NO_PAD.decode(payload).map_err(|_| malformed("its content is not base64url"))?;
    let payload = String::from_utf8(payload).map_err(|_| malformed("its content is not text"))?;
    let mac = URL_SAFE_NO_PAD
        .decode(mac)
        .map(Zeroizing::new)
        .map_err(|_| malformed("its end is not base64url: was it cut?"))?;
    Ok((Payload::decode(&payload)?, covered, mac))
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != N * 2 {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let [high, low] = pair else { return None };
        let digit = |digit: u8| char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}
