//! Following the files of an own certificate.

use std::time::{Duration, SystemTime};

use defib_pki::{CertificateInfo, Credentials, TlsFiles};
use tokio::signal::unix::{SignalKind, signal};

/// How often the files are looked at without being told.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// From when on a certificate that nobody renews is complained about, before its end; with a short-lived one, in
/// the last third of its life.
const RENEW_BEFORE: Duration = Duration::from_secs(14 * 24 * 3600);

#[expect(clippy::disallowed_methods, reason = "certificates live in wall-clock time")]
fn wall() -> SystemTime {
    SystemTime::now()
}

/// What is wrong with a certificate's age; empty: nothing.
#[must_use]
pub fn certificate_trouble(info: &CertificateInfo, now: SystemTime) -> &'static str {
    let life = info.not_after.duration_since(info.not_before).unwrap_or_default();
    match info.expires_in(now) {
        None => "has expired: nobody lets it in any more",
        Some(left) if left < RENEW_BEFORE.min(life / 3) => "ends soon",
        Some(_) => "",
    }
}

/// Shows the certificate of `files` in new connections as soon as it is a new one: on SIGHUP at once, else within
/// a minute. Runs for as long as the process does, and tells `tell` which one it shows: now, and whenever that is
/// another one. What is wrong is logged once, and the former certificate stays.
///
/// # Errors
/// When the kernel refuses the handler.
pub fn keep_renewed(
    credentials: Credentials,
    files: TlsFiles,
    tell: impl Fn(CertificateInfo) + Send + 'static,
) -> std::io::Result<impl Future<Output = ()> + Send + 'static> {
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        tell(credentials.info());
        let mut told = String::new();
        loop {
            let (held, paths) = (credentials.clone(), files.clone());
            let renewed = tokio::task::spawn_blocking(move || held.renew(&paths, wall())).await;
            let trouble = match renewed {
                Ok(Ok(Some(info))) => {
                    tracing::info!(
                        subject = info.subject,
                        fingerprint = info.fingerprint,
                        "certificate renewed; new connections show it"
                    );
                    tell(info);
                    String::new()
                }
                Ok(Ok(None)) => certificate_trouble(&credentials.info(), wall()).to_owned(),
                // A renewal may be half written; the next look sees it whole.
                Ok(Err(error)) => format!("can't be renewed: {error}"),
                Err(error) => format!("can't be looked at: {error}"),
            };
            if !trouble.is_empty() && trouble != told {
                let subject = credentials.info().subject;
                tracing::warn!(
                    subject,
                    "this certificate {trouble}; put a new one into {} and {}, by defib pki issue or by joining again",
                    files.certificate.display(),
                    files.key.display()
                );
            }
            told = trouble;
            tokio::select! {
                _ = hangup.recv() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_lived_certificate_is_not_complained_about_all_its_life() {
        let day = Duration::from_secs(24 * 3600);
        let begin = SystemTime::UNIX_EPOCH + 10_000 * day;
        let info = |days: u32| CertificateInfo {
            subject: "defib://c/host/h1".into(),
            not_before: begin,
            not_after: begin + days * day,
            fingerprint: String::new(),
        };
        assert_eq!(certificate_trouble(&info(3), begin + day), "");
        assert_eq!(certificate_trouble(&info(3), begin + day * 9 / 4), "ends soon");
        assert_eq!(certificate_trouble(&info(365), begin + 340 * day), "");
        assert_eq!(certificate_trouble(&info(365), begin + 352 * day), "ends soon");
        assert_eq!(certificate_trouble(&info(3), begin + 4 * day), "has expired: nobody lets it in any more");
    }
}
