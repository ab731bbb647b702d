//! What drivers have in common that ask a program of others each time, and keep nothing open between two calls.

use std::fmt;
use std::future::Future;

use tokio::time::{Instant, timeout_at};

use crate::child::{Ended, NotEnded, Program, run};
use crate::off::{Steps, may_write, power_off};
use crate::{
    Bmc, BmcError, BmcFuture, ErrorKind, FenceOutcome, Limits, Phase, PowerOff, PowerReading,
    ReportedIdentity, ResetOutcome, WriteGate,
};

/// The two questions that such a driver answers; all the rest follows.
pub(crate) trait ByProgram: fmt::Debug + Send + Sync {
    /// Host whose power this controls.
    fn controlled_host(&self) -> &str;

    /// Time limits and repetition.
    fn limits(&self) -> &Limits;

    /// The Debian package that the program comes with.
    const PACKAGE: &'static str;

    /// Reads identity and power; an error unless the identity is the recorded one.
    fn read(&self, deadline: Instant) -> impl Future<Output = Result<PowerReading, BmcError>> + Send;

    /// Asks once for a change of the power, `on` or `off`. The identity was read and matched in the same operation by
    /// the caller.
    fn control(&self, action: &str, deadline: Instant) -> impl Future<Output = ResetOutcome> + Send;

    /// An error of this host's.
    fn error(&self, kind: ErrorKind) -> BmcError {
        BmcError::new(self.controlled_host(), kind)
    }

    /// Runs the program to its end, within the limits of a request and until `deadline` at most.
    fn start(
        &self,
        program: Program<'_>,
        deadline: Instant,
    ) -> impl Future<Output = Result<Ended, BmcError>> + Send {
        async move {
            let own = Instant::now() + self.limits().request;
            let (phase, end) =
                if deadline < own { (Phase::Operation, deadline) } else { (Phase::Request, own) };
            let name = program.path.display().to_string();
            run(program, end).await.map_err(|error| match error {
                NotEnded::TimedOut(after) => self.error(ErrorKind::Timeout { phase, after }),
                NotEnded::NotStarted(source) => {
                    self.error(ErrorKind::NotInstalled { program: name, package: Self::PACKAGE, source })
                }
            })
        }
    }
}

/// Asks the program for a change, if that may be. It logs in before it asks the BMC: that time can't be taken out.
async fn control<T: ByProgram>(
    driver: &T,
    action: &str,
    gate: &dyn WriteGate,
    deadline: Instant,
) -> ResetOutcome {
    match timeout_at(deadline, may_write(gate)).await {
        Ok(true) => driver.control(action, deadline).await,
        Ok(false) | Err(_) => ResetOutcome::NotSent(driver.error(ErrorKind::Revoked)),
    }
}

async fn switch_on<T: ByProgram>(driver: &T, gate: &dyn WriteGate, deadline: Instant) -> ResetOutcome {
    match driver.read(deadline).await {
        Ok(_) => control(driver, "on", gate, deadline).await,
        Err(error) => ResetOutcome::NotSent(error),
    }
}

impl<T: ByProgram> Steps for T {
    type Ticket = ();

    async fn observe(&self, deadline: Instant) -> Result<(PowerReading, ()), BmcError> {
        Ok((self.read(deadline).await?, ()))
    }

    async fn ask_off(&self, (): (), gate: &dyn WriteGate, deadline: Instant) -> ResetOutcome {
        control(self, "off", gate, deadline).await
    }
}

impl<T: ByProgram> Bmc for T {
    fn host(&self) -> &str {
        self.controlled_host()
    }

    fn prepare(&self, deadline: Instant) -> BmcFuture<'_, Result<(), BmcError>> {
        // Who may read by these may switch: a session of `ipmitool` was granted the OPERATOR privilege.
        Box::pin(async move { self.read(deadline).await.map(|_| ()) })
    }

    fn read_power(&self, deadline: Instant) -> BmcFuture<'_, Result<PowerReading, BmcError>> {
        Box::pin(self.read(deadline))
    }

    fn identity(&self, deadline: Instant) -> BmcFuture<'_, Result<ReportedIdentity, BmcError>> {
        Box::pin(async move { Ok(self.read(deadline).await?.identity) })
    }

    fn power_off_and_confirm<'a>(&'a self, order: PowerOff<'a>) -> BmcFuture<'a, FenceOutcome> {
        Box::pin(power_off(self, self.controlled_host(), self.limits(), order))
    }

    fn power_on<'a>(&'a self, gate: &'a dyn WriteGate, deadline: Instant) -> BmcFuture<'a, ResetOutcome> {
        Box::pin(switch_on(self, gate, deadline))
    }

    fn close(&self, _deadline: Instant) -> BmcFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}
