//! The local socket: how `defib-agent goodbye` talks to the running agent.

use std::{
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    sync::mpsc,
};

/// What may be asked for by whoever may open the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// The agent restarts; VMs run on.
    Restart,
    /// The host shuts down: stop all VMs, say so, end.
    Shutdown,
}

/// Where the socket is.
#[must_use]
pub fn path(run_dir: &Path) -> PathBuf {
    run_dir.join("agent.sock")
}

/// Takes wishes until the process ends. A connection is answered when its wish has come true.
///
/// # Errors
/// When the socket can't be made.
pub fn serve(run_dir: &Path) -> io::Result<mpsc::Receiver<(Wish, UnixStream)>> {
    use std::os::unix::fs::PermissionsExt as _;
    let path = path(run_dir);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    let (sender, receiver) = mpsc::channel(4);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut word = [0; 16];
            let read = tokio::time::timeout(std::time::Duration::from_secs(1), stream.read(&mut word)).await;
            let wish = match read {
                Ok(Ok(length)) => match word.get(..length).map(<[u8]>::trim_ascii) {
                    Some(b"restart") => Wish::Restart,
                    Some(b"shutdown") => Wish::Shutdown,
                    Some(b"") => continue,
                    _ => {
                        let _ = stream.write_all(b"say restart or shutdown\n").await;
                        continue;
                    }
                },
                _ => continue,
            };
            if sender.send((wish, stream)).await.is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}

fn connect(path: &Path) -> io::Result<std::os::unix::net::UnixStream> {
    std::os::unix::net::UnixStream::connect(path).map_err(|error| {
        io::Error::new(error.kind(), format!("{}: {error}; does the agent run, and as whom?", path.display()))
    })
}

/// What [`ask`] would have the running agent do. Changes nothing.
///
/// # Errors
/// When no agent runs.
pub fn rehearse(run_dir: &Path, wish: Wish) -> io::Result<String> {
    // A connection that says nothing is forgotten.
    drop(connect(&path(run_dir))?);
    Ok(match wish {
        Wish::Restart => "dry run: the replicas would expect a silence; VMs would run on",
        Wish::Shutdown => "dry run: all VMs of this host would be stopped, and the replicas would know",
    }
    .into())
}

/// Asks the running agent and waits for its answer.
///
/// # Errors
/// When no agent runs, or it does not answer.
pub fn ask(run_dir: &Path, wish: Wish) -> io::Result<String> {
    let mut stream = connect(&path(run_dir))?;
    stream.write_all(match wish {
        Wish::Restart => b"restart\n",
        Wish::Shutdown => b"shutdown\n",
    })?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.trim().to_owned())
}
