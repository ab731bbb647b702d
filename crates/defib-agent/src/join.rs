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

/// Makes a key, has it signed by the first replica of the token that answers, and writes key, certificate and
/// authority to `out`. The key never leaves this host.
///
/// # Errors
/// What went wrong at each replica, and what to do.
pub async fn join(token_file: &Path, out: &Path) -> anyhow::Result<String> {
    let token = read_token(token_file)?;
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
                let issued = request.accept(&token, &answer.certificate_pem, &answer.ca_pem, wall())?;
                let files = issued.write_new(out)?;
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
