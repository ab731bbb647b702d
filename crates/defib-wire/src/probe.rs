//! What a silent host signs when a neighbour reaches it, so that a replica that does not hear it knows that it lives.

/// Bytes of a nonce.
pub const NONCE_LEN: usize = 32;

/// Stands before what is signed, so that nothing that the same key signs elsewhere can pass for it.
pub const PURPOSE: &str = "defib probe answer 1";

/// That `host` lived in the boot `boot_id` after somebody drew `nonce`. No two answers have the same statement.
#[must_use]
pub fn statement(host: &str, boot_id: &str, nonce: &[u8]) -> Vec<u8> {
    let mut statement = Vec::with_capacity(24 + host.len() + boot_id.len() + nonce.len());
    for part in [host.as_bytes(), boot_id.as_bytes(), nonce] {
        statement.extend(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        statement.extend(part);
    }
    statement
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_answers_have_the_same_statement() {
        let parts = ["", "a", "b", "ab", "aa"];
        let mut seen = std::collections::BTreeSet::new();
        for host in parts {
            for boot in parts {
                for nonce in parts {
                    assert!(seen.insert(statement(host, boot, nonce.as_bytes())), "{host} {boot} {nonce}");
                }
            }
        }
    }
}
