//! Tansu, another broker that speaks Kafka's protocol: small, quick to start, and with nothing but its memory.

use std::{net::SocketAddr, path::Path, time::Duration};

use anyhow::Context as _;
use nix::sys::signal::Signal;
use tokio::net::TcpStream;

use crate::cluster::{Process, Program, ports, wait_until};

const STARTS_WITHIN: Duration = Duration::from_secs(60);

/// A broker. Killed when dropped, and then all that it held is gone.
#[derive(Debug)]
pub struct Tansu {
    process: Process,
    address: SocketAddr,
}

impl Tansu {
    /// Starts it; its log goes to `directory`, which must be there.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start(program: &Path, directory: &Path) -> anyhow::Result<Self> {
        let address = *ports::free(1)?.first().context("a port")?;
        let here = format!("tcp://{address}");
        let output = directory.join("tansu.log");
        let program = Program {
            path: program.to_owned(),
            arguments: ["broker", "--listener-url", &here, "--advertised-listener-url", &here]
                .map(Into::into)
                .into(),
            output: output.clone(),
            watched_input: false,
        };
        let broker = Self { process: Process::start(&program)?, address };
        wait_until("Tansu listens", STARTS_WITHIN, || async {
            TcpStream::connect(address).await.with_context(|| format!("see {}", output.display()))?;
            Ok(())
        })
        .await?;
        Ok(broker)
    }

    /// `host:port` where it listens.
    #[must_use]
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Holds it in the middle of whatever it does, or lets it go on.
    pub fn pause(&mut self, paused: bool) {
        self.process.signal(if paused { Signal::SIGSTOP } else { Signal::SIGCONT });
    }
}

impl Drop for Tansu {
    fn drop(&mut self) {
        self.process.kill();
        ports::release([self.address]);
    }
}
