//! Joining by token: from nothing but a token to a certificate.

use std::{path::Path, time::SystemTime};

use anyhow::Context as _;
use defib_pki::{ClientTls, Issued, JOIN_SERVER_NAME, JoinRequest, JoinToken};
use defib_rpc::{Connecting, channel};
use defib_wire::v1::{self, agent_control_client::AgentControlClient};

#[expect(clippy::disallowed_methods, reason = "certificates live in wall-clock time")]
fn wall() -> SystemTime {
    SystemTime::now()
}

fn read_token(path: &Path) -> anyhow::Result<JoinToken> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    Ok(JoinToken::parse(text.trim())?)
}

/// What [`join`] would do, as far as that can be told without asking anybody. Changes nothing.
///
/// # Errors
/// Why it would fail for certain.
pub fn rehearse(token_file: &Path, out: &Path) -> anyhow::Result<String> {
    let token = read_token(token_file)?;
    Issued::check_new(out)?;
    anyhow::ensure!(
        wall() <= token.expires(),
        "{}: the token has expired; make a new one",
        token_file.display()
    );
    Ok(format!(
        "dry run: {} would join cluster {} by one of {}; key and certificate would be in {}",
        token.identity(),
        token.cluster(),
        token.replicas().join(", "),
        out.display()
    ))
}

/// What to do once the cluster has used a token up and the host has nothing for it.
fn spent(token: &JoinToken) -> String {
    let identity = token.identity().to_string();
    let replicas = token.replicas().iter().map(|address| format!(" --replica {address}"));
    format!(
        "{identity} has no certificate, and its token is used up: mend what follows, then make a new one where the \
         authority is with: defib pki token {} --dir DIRECTORY{}",
        identity.replacen('/', " ", 1),
        replicas.collect::<String>()
    )
}

/// Makes a key, has it signed by the first replica of the token that answers, and writes key, certificate and
/// authority to `out`. The key never leaves this host. Looks first whether `out` takes them: a token is good once.
///
/// # Errors
/// What went wrong at each replica, and what to do.
pub async fn join(token_file: &Path, out: &Path) -> anyhow::Result<String> {
    let token = read_token(token_file)?;
    Issued::prepare_new(out)?;
    let tls = ClientTls::for_join(token.authority(), token.cluster(), &[b"h2"])?;
    let request = JoinRequest::create(token.identity())?;
    let mut failures = Vec::new();
    for address in token.replicas() {
        let channel = channel(Connecting::to(address.clone(), JOIN_SERVER_NAME), tls.clone());
        let message =
            v1::JoinRequest { token: token.expose().to_owned(), csr_pem: request.request_pem().to_owned() };
        match AgentControlClient::new(channel).join(message).await {
            Ok(answer) => {
                let answer = answer.into_inner();
                let files = request
                    .accept(&token, &answer.certificate_pem, &answer.ca_pem, wall())
                    .and_then(|issued| issued.write_new(out))
                    .with_context(|| spent(&token))?;
                return Ok(format!(
                    "{} joined cluster {}: {}",
                    token.identity(),
                    token.cluster(),
                    files.certificate.display()
                ));
            }
            Err(status) if status.code() == tonic::Code::PermissionDenied => {
                // Another replica would say the same.
                anyhow::bail!("{address}: {}", status.message());
            }
            Err(status) => failures.push(format!("{address}: {}", status.message())),
        }
    }
    anyhow::bail!("no replica of the cluster could be reached: {}", failures.join("; "))
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, time::Duration};

    use defib_model::HostId;
    use defib_pki::{ClusterName, PeerIdentity, init};

    use super::*;

    #[tokio::test]
    async fn where_nothing_can_be_written_nobody_is_asked_so_that_the_token_stays_good() {
        let work = tempfile::tempdir().unwrap();
        let authority = init(&work.path().join("pki"), &ClusterName::new("x").unwrap(), wall()).unwrap();
        let replica = TcpListener::bind("127.0.0.1:0").unwrap();
        replica.set_nonblocking(true).unwrap();
        let host = PeerIdentity::Host(HostId::new("h1").unwrap());
        let addresses = [replica.local_addr().unwrap().to_string()];
        let token = authority.mint_token(&host, Duration::from_secs(600), &addresses, wall()).unwrap();
        let file = work.path().join("token");
        std::fs::write(&file, token.expose()).unwrap();
        // Neither into a directory below a file, nor over a key.
        let taken = work.path().join("taken");
        std::fs::create_dir(&taken).unwrap();
        std::fs::write(taken.join("tls.key"), "a key").unwrap();
        for out in [file.join("out"), taken] {
            let told = format!("{:#}", join(&file, &out).await.unwrap_err());
            assert!(told.contains(&out.display().to_string()), "{told}");
            assert!(!told.contains("used up"), "{told}");
            let asked = replica.accept().map_err(|error| error.kind());
            assert_eq!(asked.err(), Some(std::io::ErrorKind::WouldBlock), "{told}");
        }
        let told = spent(&token);
        assert!(told.contains("host/h1 has no certificate") && told.contains("pki token host h1"), "{told}");
        assert!(told.contains(&format!("--replica {}", addresses[0])), "{told}");
    }
}
