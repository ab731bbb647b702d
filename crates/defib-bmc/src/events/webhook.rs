//! Where BMCs send events that can't be had as a stream: an address for each host that nobody can guess.
//!
//! The secret in its path keeps strangers from being heard; it does not make an event true. Whoever may read the
//! subscriptions of a BMC reads it.

use std::fmt;
use std::str::FromStr as _;
use std::sync::Arc;

use defib_model::HostId;
use ring::hmac;
use zeroize::Zeroizing;

use crate::WriteGate;
use crate::endpoint::{Address, AddressError};

/// Begins the path of every host's address.
const PATH: &str = "/redfish-events/";
/// A shorter secret could be found by trying.
const SECRET_BYTES_MIN: usize = 32;
/// Tells what this key signs from whatever else the same secret may be used for.
const PURPOSE: &str = "defib bmc webhook";
/// Fewer hexadecimal digits of a secret path tell nothing worth hiding.
const TOLD_MIN: usize = 8;

/// Why webhooks can't be had as configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WebhookError {
    /// Where BMCs shall send to is no address.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The secret can be guessed.
    #[error("the secret is shorter than {SECRET_BYTES_MIN} bytes; write 32 random bytes in hexadecimal")]
    Secret,
}

/// The addresses of all hosts, at one replica.
pub struct Webhooks {
    authority: String,
    cluster: String,
    key: hmac::Key,
}

impl fmt::Debug for Webhooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhooks").field("authority", &self.authority).finish_non_exhaustive()
    }
}

impl Webhooks {
    /// At `advertise`, which is `https://address[:port]`. All replicas of a cluster have the same secret, so that each
    /// of them knows the paths that any of them gave away.
    ///
    /// # Errors
    /// When the address or the secret is unusable.
    pub fn new(advertise: &str, cluster: &str, secret: &str) -> Result<Self, WebhookError> {
        let Address { authority, .. } = Address::from_str(advertise)?;
        if secret.len() < SECRET_BYTES_MIN {
            return Err(WebhookError::Secret);
        }
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        Ok(Self { authority, cluster: cluster.to_owned(), key })
    }

    fn signed(&self, host: &HostId) -> Vec<u8> {
        // No name holds a NUL, so no two pairs of names give the same.
        format!("{PURPOSE}\0{}\0{host}", self.cluster).into_bytes()
    }

    /// Where the BMC of this host shall send its events. `gate` is asked before it is told so.
    #[must_use]
    pub fn of(&self, host: &HostId, gate: Arc<dyn WriteGate>) -> Webhook {
        let tag = hmac::sign(&self.key, &self.signed(host));
        let tag: String = tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let destination = format!("https://{}{PATH}{host}/{tag}", self.authority);
        let context = format!("defib/{}/{host}", self.cluster);
        Webhook { destination: Zeroizing::new(destination), secret: Zeroizing::new(tag), context, gate }
    }

    /// Whose BMC was given this path; `None` if nobody's.
    #[must_use]
    pub fn host(&self, path: &str) -> Option<HostId> {
        let (host, tag) = path.strip_prefix(PATH)?.split_once('/')?;
        let host = HostId::new(host).ok()?;
        let tag = bytes(tag)?;
        // In constant time.
        hmac::verify(&self.key, &self.signed(&host), &tag).ok()?;
        Some(host)
    }
}

fn bytes(hexadecimal: &str) -> Option<Vec<u8>> {
    let digits = hexadecimal.as_bytes();
    if digits.len() != 64 || !digits.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    let pairs = digits.chunks_exact(2).map(|pair| std::str::from_utf8(pair).ok());
    pairs.map(|pair| u8::from_str_radix(pair?, 16).ok()).collect()
}

/// What a subscription for one host shall be.
#[derive(Clone)]
pub struct Webhook {
    pub(super) destination: Zeroizing<String>,
    /// The part of the destination that nobody can guess.
    secret: Zeroizing<String>,
    /// By which we know our own subscriptions again.
    pub(super) context: String,
    pub(super) gate: Arc<dyn WriteGate>,
}

impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhook").field("context", &self.context).finish_non_exhaustive()
    }
}

impl Webhook {
    /// Where the BMC shall send to. It holds the secret: not for logs.
    #[must_use]
    pub fn destination(&self) -> &str {
        &self.destination
    }

    /// What a BMC says, without the secret that it may quote, whole or cut off.
    pub(super) fn blank(&self, said: &str) -> String {
        let is_told = |word: &str| {
            word.len() >= TOLD_MIN && {
                let word = word.to_ascii_lowercase();
                self.secret.contains(&word) || word.contains(self.secret.as_str())
            }
        };
        let mut blanked = String::with_capacity(said.len());
        for part in said.split_inclusive(|c: char| !c.is_ascii_alphanumeric()) {
            let word = part.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
            if is_told(word) {
                blanked.push('…');
                blanked.push_str(part.get(word.len()..).unwrap_or_default());
            } else {
                blanked.push_str(part);
            }
        }
        blanked
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::AlwaysAllowed;

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    fn host(name: &str) -> HostId {
        HostId::new(name).unwrap()
    }

    fn webhook(webhooks: &Webhooks, name: &str) -> Webhook {
        webhooks.of(&host(name), Arc::new(AlwaysAllowed))
    }

    #[test]
    fn a_path_is_known_by_every_replica_with_the_secret_and_nobody_finds_another() {
        let first = Webhooks::new("https://10.0.0.1:8443", "east", SECRET).unwrap();
        let second = Webhooks::new("https://[fd00::2]", "east", SECRET).unwrap();
        let destination = webhook(&first, "h1").destination.to_string();
        let path = destination.strip_prefix("https://10.0.0.1:8443").unwrap();
        assert_eq!(first.host(path), Some(host("h1")));
        assert_eq!(second.host(path), Some(host("h1")));
        assert!(webhook(&second, "h1").destination.starts_with("https://[fd00::2]/redfish-events/h1/"));
        let others = [
            Webhooks::new("https://10.0.0.1:8443", "west", SECRET).unwrap(),
            Webhooks::new("https://10.0.0.1:8443", "east", &SECRET.replace('0', "1")).unwrap(),
        ];
        assert!(others.iter().all(|other| other.host(path).is_none()));
        let changed = if path.ends_with('0') { "1" } else { "0" };
        for wrong in [
            path.replace("h1", "h2"),
            path.to_uppercase(),
            format!("{path}/"),
            format!("{path}0"),
            format!("{}{changed}", &path[..path.len() - 1]),
            path[..path.len() - 2].to_owned(),
            path.replace("/h1/", "/"),
            path.replace("/h1/", "/h1//"),
            "/redfish-events/h1/".to_owned(),
            "/redfish-events/h1".to_owned(),
            String::new(),
            "/".to_owned(),
            format!("/redfish-events/h1/{}", "ä".repeat(32)),
        ] {
            assert_eq!(first.host(&wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_can_not_be_used_is_refused_and_the_secret_is_not_told() {
        let new = |advertise: &str, secret: &str| Webhooks::new(advertise, "east", secret).map(drop);
        assert_eq!(new("https://a", &SECRET[1..]), Err(WebhookError::Secret));
        for address in ["http://a", "a:8443", "https://a/b", "https://u:p@a"] {
            assert!(matches!(new(address, SECRET), Err(WebhookError::Address(_))), "{address}");
        }
        let webhooks = Webhooks::new("https://a", "east", SECRET).unwrap();
        let webhook = webhook(&webhooks, "h1");
        let shown = format!("{webhooks:?} {webhook:?}");
        assert!(!shown.contains(SECRET) && !shown.contains(webhook.secret.as_str()), "{shown}");
    }

    #[test]
    fn a_secret_that_a_bmc_quotes_is_blanked_however_it_is_cut() {
        let webhooks = Webhooks::new("https://a", "east", SECRET).unwrap();
        let webhook = webhook(&webhooks, "h1");
        let said = format!("the value '{}' for Destination is not valid.", *webhook.destination);
        let blanked = webhook.blank(&said);
        assert_eq!(blanked, "the value 'https://a/redfish-events/h1/…' for Destination is not valid.");
        for cut in 0..said.len() {
            let blanked = webhook.blank(&said[..cut]);
            assert!(!blanked.contains(&webhook.secret[..TOLD_MIN]), "{blanked}");
            assert!(!webhook.blank(&said[cut..]).contains(&webhook.secret[64 - TOLD_MIN..]), "{blanked}");
        }
        assert!(!webhook.blank(&said.to_uppercase()).contains(&webhook.secret.to_uppercase()));
        assert_eq!(
            webhook.blank("Ünlimited: the limit, 20, was exceeded."),
            "Ünlimited: the limit, 20, was exceeded."
        );
    }
}
