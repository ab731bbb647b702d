//! The IPMI 2.0 driver of one BMC: `ipmitool` as a child process, one session per question.
//!
//! A question names identity and power to `ipmitool exec`, so that both are answered in one session, whose packets are
//! authenticated with one key: `Chassis Power is off` is then said by the very controller that said which system it
//! belongs to. Sessions ask for the OPERATOR privilege and not for more: less can't switch, more is not needed.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use defib_model::inventory::CipherSuite;
use tokio::time::Instant;

use crate::by_program::ByProgram;
use crate::child::{Ended, MemoryFile, Program};
use crate::endpoint::Address;
use crate::printed::{
    end_of,
    event_log::{self, LogEntry, SensorReading},
    ipmitool as answers, said,
};
use crate::{
    BmcError, CredentialError, CredentialRef, Credentials, EndpointError, ErrorKind, Identity,
    IdentityProblem, Limits, PowerReading, ResetOutcome,
};

/// The port of RMCP+.
const PORT: u16 = 623;
/// An IPMI 2.0 password has at most so many bytes.
const PASSWORD_BYTES_MAX: usize = 20;
/// After the BMC refused the login we don't try the same again for this long: accounts get locked.
const LOGIN_PAUSE: Duration = Duration::from_secs(10);
/// Get System GUID, as bytes in the order of the wire: `ipmitool mc guid` guesses at their order, and guesses change.
const GUID: &str = "raw 0x06 0x37";
const SERIAL: &str = "fru print 0";
const POWER: &str = "chassis power status";

/// Configuration of one BMC. Credentials are named, never held.
#[derive(Debug, Clone)]
pub struct IpmiEndpoint {
    /// Unique name of the host whose power this BMC controls; it appears in every error.
    pub host: String,
    /// `address[:port]`.
    pub address: String,
    /// Identity of the host; each power reading is checked against it.
    pub identity: Identity,
    /// Where user name and password are, read for each session.
    pub credentials: CredentialRef,
    /// How sessions are authenticated and encrypted.
    pub cipher_suite: CipherSuite,
    /// The program, by name or path.
    pub program: PathBuf,
    /// Time limits and repetition.
    pub limits: Limits,
}

impl IpmiEndpoint {
    /// An endpoint with Debian's `ipmitool`, default limits and the stronger cipher suite.
    pub fn new(
        host: impl Into<String>,
        address: impl Into<String>,
        identity: Identity,
        credentials: CredentialRef,
    ) -> Self {
        Self {
            host: host.into(),
            address: address.into(),
            identity,
            credentials,
            cipher_suite: CipherSuite::default(),
            program: "ipmitool".into(),
            limits: Limits::default(),
        }
    }
}

/// A client of one BMC over IPMI. Nothing stays open between two calls.
#[derive(Debug)]
pub struct IpmiClient {
    endpoint: Arc<IpmiEndpoint>,
    address: Address,
    /// The last refusal of a login, which is not repeated before its pause is over.
    refusal: Mutex<Option<(Instant, String)>>,
}

impl IpmiClient {
    /// A client that has not connected yet. Fails only on a configuration that can't be used.
    pub fn new(endpoint: IpmiEndpoint) -> Result<Self, EndpointError> {
        let address = Address::from_host_and_port(&endpoint.address, PORT).ok_or_else(|| {
            EndpointError::IpmiAddress { host: endpoint.host.clone(), address: endpoint.address.clone() }
        })?;
        if !endpoint.identity.is_usable() {
            return Err(EndpointError::NoIdentity { host: endpoint.host });
        }
        Ok(Self { endpoint: Arc::new(endpoint), address, refusal: Mutex::default() })
    }

    async fn credentials(&self) -> Result<Credentials, BmcError> {
        let reference = &self.endpoint.credentials;
        let credentials =
            reference.read().await.map_err(|error| self.error(ErrorKind::Credentials(error)))?;
        if credentials.password.len() > PASSWORD_BYTES_MAX {
            let why = "an IPMI password has at most 20 bytes";
            let malformed = CredentialError::Malformed { place: reference.clone(), why };
            return Err(self.error(ErrorKind::Credentials(malformed)));
        }
        Ok(credentials)
    }

    /// Performs the commands in one session, in order, whatever becomes of each.
    async fn session(
        &self,
        options: &[&str],
        commands: &[&str],
        deadline: Instant,
    ) -> Result<Ended, BmcError> {
        let last = self.refusal.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((_, said)) = last.filter(|(until, _)| Instant::now() < *until) {
            return Err(self.error(self.refused(said, answers::CREDENTIALS.to_owned())));
        }
        let credentials = self.credentials().await?;
        let file = |content: &str| {
            MemoryFile::new(content.as_bytes())
                .map_err(|source| self.failed(&format!("no memory for its files: {source}")))
        };
        let password = file(&credentials.password)?;
        let script = file(&(commands.join("\n") + "\n"))?;
        let suite = u8::from(self.endpoint.cipher_suite).to_string();
        let port = self.address.port.to_string();
        let (password_path, script_path) = (password.path(), script.path());
        let mut arguments = vec![
            "-I",
            "lanplus",
            "-H",
            &self.address.name,
            "-p",
            &port,
            "-U",
            &credentials.user,
            "-f",
            &password_path,
            "-C",
            &suite,
            "-L",
            "OPERATOR",
            "-N",
            "1",
            "-R",
            "2",
        ];
        arguments.extend(options);
        arguments.extend(["exec", &script_path]);
        let program = Program {
            path: &self.endpoint.program,
            arguments: arguments.into_iter().map(str::to_owned).collect(),
            input: None,
            files: vec![password, script],
        };
        let ended = self.start(program, deadline).await?;
        let errors = said(&ended.errors, &[credentials.password.as_str()]);
        Ok(Ended { errors, ..ended })
    }

    fn failed(&self, said: &str) -> BmcError {
        self.error(ErrorKind::Program { program: "ipmitool".to_owned(), said: end_of(said) })
    }

    fn refused(&self, said: String, next: String) -> ErrorKind {
        ErrorKind::ProgramRefused { program: "ipmitool".to_owned(), said, next }
    }

    /// What a session without the answer that was asked for means.
    fn trouble(&self, errors: &str) -> BmcError {
        let Some((what, next)) = answers::refusal(errors, self.endpoint.cipher_suite) else {
            return self.failed(if errors.is_empty() { "it printed nothing" } else { errors });
        };
        if next == answers::CREDENTIALS {
            let until = Instant::now() + LOGIN_PAUSE;
            *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = Some((until, what.clone()));
        }
        self.error(self.refused(what, next))
    }

    /// The system event log, oldest first.
    pub async fn event_log(&self, deadline: Instant) -> Result<Vec<LogEntry>, BmcError> {
        // Without the names of the sensors, because looking those up makes ipmitool write: see `sensors`.
        let ended = self.session(&["-c"], &["sel list"], deadline).await?;
        let entries = event_log::entries(&ended.output);
        // An empty log is told on standard error, and a log that could not be read as well.
        if entries.is_empty() && !ended.errors.contains("SEL has no entries") {
            return Err(self.trouble(&ended.errors));
        }
        Ok(entries)
    }

    /// All sensors with what they read now.
    pub async fn sensors(&self, deadline: Instant) -> Result<Vec<SensorReading>, BmcError> {
        let info = self.session(&["-c"], &["sdr info"], deadline).await?;
        match event_log::sensor_count(&info.output) {
            // Asked to list an empty repository, ipmitool erases it and fills it anew: we only read.
            Some(0) => Ok(Vec::new()),
            Some(_) => Ok(event_log::sensors(&self.session(&["-c"], &["sdr list"], deadline).await?.output)),
            None => Err(self.trouble(&info.errors)),
        }
    }
}

impl ByProgram for IpmiClient {
    const PACKAGE: &'static str = "ipmitool";

    fn controlled_host(&self) -> &str {
        &self.endpoint.host
    }

    fn limits(&self) -> &Limits {
        &self.endpoint.limits
    }

    /// Reads power and identity in one session; an error unless the identity is the recorded one.
    async fn read(&self, deadline: Instant) -> Result<PowerReading, BmcError> {
        let start = Instant::now();
        let expected = &self.endpoint.identity;
        let mut commands = Vec::with_capacity(3);
        if expected.uuid.is_some() {
            commands.push(GUID);
        }
        if expected.serial.is_some() {
            commands.push(SERIAL);
        }
        commands.push(POWER);
        let ended = self.session(&["-v"], &commands, deadline).await?;
        let Some((state, identity)) = answers::reading(&ended.output, expected) else {
            return Err(self.trouble(&ended.errors));
        };
        let system = self.address.authority.clone();
        if !expected.matches(&identity) {
            let expected = expected.clone();
            let problem = if expected.is_unanswered_by(&identity) {
                IdentityProblem::Silent { expected, path: system }
            } else {
                IdentityProblem::NoneMatches { expected, found: vec![(system, identity)] }
            };
            return Err(self.error(ErrorKind::Identity(problem)));
        }
        Ok(PowerReading { state, identity, system, took: start.elapsed() })
    }

    async fn control(&self, action: &str, deadline: Instant) -> ResetOutcome {
        let command = format!("chassis power {action}");
        let ended = match self.session(&["-v"], &[&command], deadline).await {
            Ok(ended) => ended,
            Err(error) if matches!(&*error.kind, ErrorKind::Timeout { .. }) => {
                return ResetOutcome::Unknown(error);
            }
            Err(error) => return ResetOutcome::NotSent(error),
        };
        if let Some(answer) = answers::control(&ended.output) {
            return ResetOutcome::Accepted { answer: answer.to_owned() };
        }
        let error = self.trouble(&ended.errors);
        if answers::declined(&ended.errors) {
            ResetOutcome::Refused(error)
        } else {
            ResetOutcome::Unknown(error)
        }
    }
}
