//! `defib pki`: the cluster's own authority.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand};
use defib_pki::{ClusterAuthority, ClusterName, PeerIdentity};

use crate::{cluster::Failure, output::line};

/// One command.
#[derive(Debug, Subcommand)]
pub(crate) enum PkiCommand {
    /// Makes the authority of a new cluster.
    Init {
        /// Where: a directory that is empty or does not exist.
        #[arg(long)]
        dir: PathBuf,
        /// The cluster's name.
        #[arg(long)]
        cluster: String,
    },
    /// Makes a key and its certificate.
    Issue(Issue),
    /// Makes a token with which a host may join once.
    Token(Token),
    /// Shows a certificate.
    Show {
        /// The file, PEM.
        certificate: PathBuf,
    },
}

/// Whom.
#[derive(Debug, Args)]
pub(crate) struct Issue {
    /// `replica`, `host` or `operator`.
    kind: String,
    /// Number of the replica, or name.
    name: String,
    /// Of an operator: viewer, operator or admin.
    #[arg(long)]
    role: Option<String>,
    /// The authority's directory.
    #[arg(long)]
    dir: PathBuf,
    /// Where to write it.
    #[arg(long)]
    out: PathBuf,
    /// Address or DNS name under which others reach it; may be given several times.
    #[arg(long)]
    address: Vec<String>,
    /// How long it holds.
    #[arg(long, default_value = "365d", value_parser = humantime::parse_duration)]
    validity: Duration,
}

/// For whom.
#[derive(Debug, Args)]
pub(crate) struct Token {
    /// `host`.
    kind: String,
    /// Its name.
    name: String,
    /// The authority's directory.
    #[arg(long)]
    dir: PathBuf,
    /// How long it may be used.
    #[arg(long, default_value = "1h", value_parser = humantime::parse_duration)]
    ttl: Duration,
    /// Join address of a replica; may be given several times.
    #[arg(long, required = true)]
    replica: Vec<String>,
}

fn failed(error: &dyn std::fmt::Display) -> Failure {
    Failure::Refused(error.to_string())
}

fn identity(kind: &str, name: &str, role: Option<&str>) -> Result<PeerIdentity, Failure> {
    let text = match (kind, role) {
        ("operator", Some(role)) => format!("operator/{role}/{name}"),
        ("operator", None) => return Err(Failure::Usage("an operator needs --role".into())),
        (_, Some(_)) => return Err(Failure::Usage("only an operator has a --role".into())),
        (kind, None) => format!("{kind}/{name}"),
    };
    text.parse().map_err(|error: defib_pki::PkiError| Failure::Usage(error.to_string()))
}

#[expect(clippy::disallowed_methods, reason = "certificates hold for a time by the wall clock")]
fn now() -> std::time::SystemTime {
    std::time::SystemTime::now()
}

/// Does it.
pub(crate) fn run(command: PkiCommand) -> Result<(), Failure> {
    match command {
        PkiCommand::Init { dir, cluster } => {
            let cluster = ClusterName::new(&cluster).map_err(|error| Failure::Usage(error.to_string()))?;
            let authority = defib_pki::init(&dir, &cluster, now()).map_err(|error| failed(&error))?;
            line(&format!("authority of {cluster} in {}, pin {}", dir.display(), authority.pin()));
            line("its private key decides who belongs to the cluster: keep it where only you can read it");
        }
        PkiCommand::Issue(issue) => {
            let identity = identity(&issue.kind, &issue.name, issue.role.as_deref())?;
            let authority = ClusterAuthority::load(&issue.dir).map_err(|error| failed(&error))?;
            let issued = authority
                .issue(&identity, &issue.address, issue.validity, now())
                .map_err(|error| failed(&error))?;
            issued.write_new(&issue.out).map_err(|error| failed(&error))?;
            line(&format!("{identity}: key and certificate in {}", issue.out.display()));
        }
        PkiCommand::Token(token) => {
            let identity = identity(&token.kind, &token.name, None)?;
            let authority = ClusterAuthority::load(&token.dir).map_err(|error| failed(&error))?;
            let minted = authority
                .mint_token(&identity, token.ttl, &token.replica, now())
                .map_err(|error| failed(&error))?;
            line(minted.expose());
        }
        PkiCommand::Show { certificate } => {
            let info = defib_pki::inspect_certificate(&certificate).map_err(|error| failed(&error))?;
            line(&format!("{}: {}", certificate.display(), info.subject));
            match info.expires_in(now()) {
                Some(left) => line(&format!("expires in {} days", left.as_secs() / 86_400)),
                None => line("EXPIRED: issue a new one with: defib pki issue"),
            }
        }
    }
    Ok(())
}
