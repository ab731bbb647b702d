//! `defib pki`: the cluster's own authority.

use std::{
    fs::OpenOptions,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Subcommand};
use defib_export::signing::SigningKey;
use defib_pki::{ClusterAuthority, ClusterName, PeerIdentity, PkiError};

use serde_json::json;

use crate::{
    cluster::Failure,
    output::{Output, json, line, told},
};

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
        /// Only say what would be done.
        #[arg(long)]
        dry_run: bool,
    },
    /// Makes a key and its certificate.
    Issue(Issue),
    /// Makes a token with which a host may join once.
    Token(Token),
    /// Makes the key that a replica signs the event stream with, and its public half for whoever verifies.
    EventKey {
        /// Where: `events.key` is for the replica's `events.signing-key`, `events.pub` for everybody.
        #[arg(long)]
        out: PathBuf,
        /// Only say what would be done.
        #[arg(long)]
        dry_run: bool,
    },
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
    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,
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
    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,
}

/// With its cause, and what to do.
fn failed(error: &PkiError) -> Failure {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    match error {
        PkiError::Read { .. } => Failure::Usage(format!(
            "{error}{cause}; is the path right, and may you read it? An authority's directory is made by: defib pki init"
        )),
        PkiError::BadFile { .. } | PkiError::Invalid { .. } => Failure::Usage(format!("{error}{cause}")),
        _ => Failure::Refused(format!("{error}{cause}")),
    }
}

fn identity(kind: &str, name: &str, role: Option<&str>) -> Result<PeerIdentity, Failure> {
    let text = match (kind, role) {
        ("operator", Some(role)) => format!("operator/{role}/{name}"),
        ("operator", None) => return Err(Failure::Usage("an operator needs --role".into())),
        (_, Some(_)) => return Err(Failure::Usage("only an operator has a --role".into())),
        (kind, None) => format!("{kind}/{name}"),
    };
    text.parse().map_err(|error| failed(&error))
}

#[expect(clippy::disallowed_methods, reason = "certificates hold for a time by the wall clock")]
fn now() -> std::time::SystemTime {
    std::time::SystemTime::now()
}

/// Writes a file that must not exist yet.
fn write_new(path: &Path, mode: u32, text: &[u8]) -> Result<(), Failure> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(text)?;
        file.sync_all()
    };
    write().map_err(|error: std::io::Error| {
        Failure::Refused(format!("{} can't be written: {error}", path.display()))
    })
}

/// Does it.
pub(crate) fn run(command: PkiCommand, output: Output) -> Result<(), Failure> {
    match command {
        PkiCommand::Init { dir, cluster, dry_run } => {
            let cluster = ClusterName::new(&cluster).map_err(|error| failed(&error))?;
            let shown = dir.display();
            if dry_run {
                defib_pki::check_vacant(&dir).map_err(|error| failed(&error))?;
                told(&format!("dry run: the authority of {cluster} would be made in {shown}"), output);
                return Ok(());
            }
            let authority = defib_pki::init(&dir, &cluster, now()).map_err(|error| failed(&error))?;
            let pin = authority.pin().to_string();
            if output == Output::Json {
                json(&json!({"cluster": cluster.to_string(), "dir": dir, "pin": pin}));
                return Ok(());
            }
            line(&format!("authority of {cluster} in {shown}, pin {pin}"));
            line("its private key decides who belongs to the cluster: keep it where only you can read it");
        }
        PkiCommand::Issue(issue) => {
            let identity = identity(&issue.kind, &issue.name, issue.role.as_deref())?;
            let authority = ClusterAuthority::load(&issue.dir).map_err(|error| failed(&error))?;
            let issued = authority
                .issue(&identity, &issue.address, issue.validity, now())
                .map_err(|error| failed(&error))?;
            let shown = issue.out.display();
            if issue.dry_run {
                defib_pki::Issued::check_new(&issue.out).map_err(|error| failed(&error))?;
                told(&format!("dry run: {identity}: key and certificate would be in {shown}"), output);
                return Ok(());
            }
            let files = issued.write_new(&issue.out).map_err(|error| failed(&error))?;
            match output {
                Output::Table => line(&format!("{identity}: key and certificate in {shown}")),
                Output::Json => json(&json!({"identity": identity.to_string(),
                    "certificate": files.certificate, "key": files.key, "authority": files.authority})),
            }
        }
        PkiCommand::Token(token) => {
            let identity = identity(&token.kind, &token.name, None)?;
            let authority = ClusterAuthority::load(&token.dir).map_err(|error| failed(&error))?;
            let minted = authority
                .mint_token(&identity, token.ttl, &token.replica, now())
                .map_err(|error| failed(&error))?;
            if token.dry_run {
                let ttl = humantime::format_duration(token.ttl);
                told(&format!("dry run: a token would let {identity} join once, within {ttl}"), output);
                return Ok(());
            }
            match output {
                Output::Table => line(minted.expose()),
                Output::Json => {
                    json(&json!({"identity": identity.to_string(), "token": minted.expose()}));
                }
            }
        }
        PkiCommand::EventKey { out, dry_run } => {
            let (secret_file, public_file) = (out.join("events.key"), out.join("events.pub"));
            if dry_run {
                for path in [&secret_file, &public_file] {
                    if path.exists() {
                        return Err(Failure::Refused(format!("{} is there already", path.display())));
                    }
                }
                told(&format!("dry run: a key for events would be made in {}", out.display()), output);
                return Ok(());
            }
            let (key, secret) =
                SigningKey::generate().map_err(|error| Failure::Refused(error.to_string()))?;
            std::fs::create_dir_all(&out)
                .map_err(|error| Failure::Refused(format!("{} can't be made: {error}", out.display())))?;
            write_new(&secret_file, 0o600, secret.as_bytes())?;
            write_new(&public_file, 0o644, key.public().to_pem().as_bytes())?;
            let id = key.public().id();
            if output == Output::Json {
                json(&json!({"key": id, "secret": secret_file, "public": public_file}));
                return Ok(());
            }
            line(&format!(
                "key {id} in {}; keep a copy of events.pub where streams are verified",
                out.display()
            ));
        }
        PkiCommand::Show { certificate } => {
            let info = defib_pki::inspect_certificate(&certificate).map_err(|error| failed(&error))?;
            let days = info.expires_in(now()).map(|left| left.as_secs() / 86_400);
            if output == Output::Json {
                json(&json!({"file": certificate, "subject": info.subject, "fingerprint": info.fingerprint,
                    "expired": days.is_none(), "expires_in_days": days}));
                return Ok(());
            }
            line(&format!("{}: {}", certificate.display(), info.subject));
            match days {
                Some(days) => line(&format!("expires in {days} days")),
                None => line("EXPIRED: issue a new one with: defib pki issue"),
            }
        }
    }
    Ok(())
}
