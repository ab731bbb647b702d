//! Any program of Debian's `fence-agents` as a driver: `off`, and then `status` must say off.
//!
//! Such a program ignores options that it does not know, so a misspelt `plug` would switch whatever it takes for the
//! default. Nothing is therefore asked before its metadata was read and knows every option. What identifies a host
//! is the name that the device itself has for its outlet, since these devices know no UUIDs.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use defib_model::inventory::FenceAgentTarget;
use tokio::time::Instant;

use crate::by_program::ByProgram;
use crate::child::{Ended, MemoryFile, Program};
use crate::printed::{end_of, fence_agent, metadata::Metadata, said};
use crate::{
    BmcError, CredentialRef, ErrorKind, IdentityProblem, Limits, PowerReading, ReportedIdentity, ResetOutcome,
};

/// Configuration of one fencing device as a program of `fence-agents` sees it. Credentials are named, never held.
#[derive(Debug, Clone)]
pub struct FenceAgentEndpoint {
    /// Unique name of the host whose power this controls; it appears in every error.
    pub host: String,
    /// The program, by name or path.
    pub agent: PathBuf,
    /// What it is told, by the names of its metadata.
    pub options: BTreeMap<String, String>,
    /// Where user name and password are, read for each call.
    pub credentials: Option<CredentialRef>,
    /// What the device calls the outlet; `None`: the operator vouches that address and options mean this host.
    pub outlet: Option<String>,
    /// Time limits and repetition.
    pub limits: Limits,
}

impl FenceAgentEndpoint {
    /// An endpoint without credentials and with limits for programs that log in by a dialogue.
    pub fn new(
        host: impl Into<String>,
        agent: impl Into<PathBuf>,
        options: BTreeMap<String, String>,
        outlet: Option<String>,
    ) -> Self {
        let limits = Limits { request: Duration::from_secs(30), ..Limits::default() };
        Self { host: host.into(), agent: agent.into(), options, credentials: None, outlet, limits }
    }
}

/// A fencing device by way of its program. Nothing stays open between two calls.
#[derive(Debug)]
pub struct FenceAgentClient {
    endpoint: FenceAgentEndpoint,
    /// What the program says of itself, once it was asked and found fit.
    metadata: Mutex<Option<Arc<Metadata>>>,
}

impl FenceAgentClient {
    /// A client that has not started anything yet.
    pub fn new(endpoint: FenceAgentEndpoint) -> Self {
        Self { endpoint, metadata: Mutex::default() }
    }

    fn name(&self) -> String {
        self.endpoint
            .agent
            .file_name()
            .unwrap_or(self.endpoint.agent.as_os_str())
            .to_string_lossy()
            .into_owned()
    }

    /// All that it printed, in `errors`, without secrets: such programs complain on either of their outputs.
    fn told(ended: Ended, secrets: &[&str]) -> Ended {
        Ended { errors: said(&format!("{}\n{}", ended.errors, ended.output), secrets), ..ended }
    }

    fn failed(&self, ended: &Ended) -> BmcError {
        let said = format!("{}: {}", ended.status, end_of(&ended.errors));
        self.error(ErrorKind::Program { program: self.name(), said })
    }

    fn refused(&self, said: String, next: &str) -> BmcError {
        self.error(ErrorKind::ProgramRefused { program: self.name(), said, next: next.to_owned() })
    }

    /// The program's metadata, once it is known to know all that it will be told.
    async fn metadata(&self, deadline: Instant) -> Result<Arc<Metadata>, BmcError> {
        let held = self.metadata.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(metadata) = held {
            return Ok(metadata);
        }
        let program = Program {
            path: &self.endpoint.agent,
            arguments: vec!["-o".to_owned(), "metadata".to_owned()],
            input: None,
            files: Vec::new(),
        };
        let ended = Self::told(self.start(program, deadline).await?, &[]);
        if !ended.status.success() {
            return Err(self.failed(&ended));
        }
        let metadata = Metadata::parse(&ended.output)
            .map_err(|why| self.refused(why, "is it a program of the fence-agents collection?"))?;
        let outlets = self.endpoint.outlet.is_some();
        metadata
            .fits(&self.endpoint.options, self.endpoint.credentials.is_some(), outlets)
            .map_err(|why| self.refused(why, "correct this host's entry; nothing was switched"))?;
        let metadata = Arc::new(metadata);
        *self.metadata.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&metadata));
        Ok(metadata)
    }

    /// Performs one action.
    async fn act(&self, action: &str, deadline: Instant) -> Result<Ended, BmcError> {
        let metadata = self.metadata(deadline).await?;
        let mut lines = format!("action={action}\n");
        for (name, value) in &self.endpoint.options {
            lines.push_str(&format!("{name}={value}\n"));
        }
        let mut secret = None;
        if let Some(reference) = &self.endpoint.credentials {
            let read = reference.read().await;
            let credentials = read.map_err(|error| self.error(ErrorKind::Credentials(error)))?;
            let (user, password) = metadata.login();
            lines.push_str(&format!("{user}={}\n{password}={}\n", credentials.user, &*credentials.password));
            secret = Some(credentials);
        }
        let lines = zeroize::Zeroizing::new(lines);
        let input = MemoryFile::new(lines.as_bytes()).map_err(|source| {
            self.error(ErrorKind::Program {
                program: self.name(),
                said: format!("no memory for its options: {source}"),
            })
        })?;
        let program = Program {
            path: &self.endpoint.agent,
            arguments: Vec::new(),
            input: Some(input),
            files: Vec::new(),
        };
        let ended = self.start(program, deadline).await?;
        let secrets: Vec<&str> = secret.iter().map(|secret| secret.password.as_str()).collect();
        Ok(Self::told(ended, &secrets))
    }

    /// What the device calls the outlet that it is told to switch; an error unless it is the recorded name.
    async fn identify(&self, deadline: Instant) -> Result<String, BmcError> {
        let options = &self.endpoint.options;
        let plug = options.get("plug").or_else(|| options.get("port")).cloned().unwrap_or_default();
        let Some(expected) = &self.endpoint.outlet else {
            let place = FenceAgentTarget::PLACES
                .iter()
                .filter_map(|name| options.get(*name).map(|value| format!(" {name}={value}")))
                .collect::<String>();
            return Ok(format!("{}{place}, by its operator's word", self.name()));
        };
        let ended = self.act("list", deadline).await?;
        if !ended.status.success() {
            return Err(self.failed(&ended));
        }
        let separator = options.get("separator").map_or(",", String::as_str);
        let found = fence_agent::outlet(&ended.output, separator, &plug);
        if found.as_deref() != Some(expected.trim()) {
            let expected = expected.clone();
            return Err(self.error(ErrorKind::Identity(IdentityProblem::Outlet { expected, plug, found })));
        }
        Ok(format!("outlet {plug} {expected:?}"))
    }
}

impl ByProgram for FenceAgentClient {
    const PACKAGE: &'static str = "fence-agents";

    fn controlled_host(&self) -> &str {
        &self.endpoint.host
    }

    fn limits(&self) -> &Limits {
        &self.endpoint.limits
    }

    /// Reads the outlet's name and then its power.
    async fn read(&self, deadline: Instant) -> Result<PowerReading, BmcError> {
        let start = Instant::now();
        let outlet = self.identify(deadline).await?;
        let ended = self.act("status", deadline).await?;
        let state = fence_agent::power(&ended.output, ended.status.code());
        let Some(state) = state else { return Err(self.failed(&ended)) };
        let identity = ReportedIdentity { outlet: Some(outlet.clone()), ..ReportedIdentity::default() };
        Ok(PowerReading { state, identity, system: outlet, took: start.elapsed() })
    }

    async fn control(&self, action: &str, deadline: Instant) -> ResetOutcome {
        match self.act(action, deadline).await {
            Ok(ended) if ended.status.success() => ResetOutcome::Accepted { answer: end_of(&ended.errors) },
            // It may have failed before or after the device took the order.
            Ok(ended) => ResetOutcome::Unknown(self.failed(&ended)),
            Err(error) if matches!(&*error.kind, ErrorKind::Timeout { .. }) => ResetOutcome::Unknown(error),
            Err(error) => ResetOutcome::NotSent(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    const PROGRAM: &str = r#"#!/bin/sh
if [ "$1" = -o ]; then
  echo '<resource-agent name="fence_x"><parameters><parameter name="action"/><parameter name="username"/>'
  echo '<parameter name="password"/></parameters><actions><action name="off"/><action name="status"/></actions></resource-agent>'
  exit 0
fi
cat
cat /proc/self/fd/0 >&2
exit 1
"#;

    #[tokio::test]
    async fn a_password_that_the_program_prints_is_in_no_message() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str, mode: u32| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        let credentials = file("credentials", "root\ngeheim\n", 0o600);
        let client = FenceAgentClient::new(FenceAgentEndpoint {
            host: "h1".into(),
            agent: file("fence_x", PROGRAM, 0o700),
            options: BTreeMap::new(),
            credentials: Some(CredentialRef::File(credentials)),
            outlet: None,
            limits: Limits::default(),
        });
        let deadline = Instant::now() + Duration::from_secs(20);
        let told = client.read(deadline).await.unwrap_err().to_string();
        assert!(told.contains("password=…") && !told.contains("geheim"), "{told}");
        let told = format!("{:?}", client.control("off", deadline).await);
        assert!(told.contains("password=…") && !told.contains("geheim"), "{told}");
    }
}
