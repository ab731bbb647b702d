//! Programs of others that speak to a BMC for us: started with a deadline, ended with their whole process group.
//!
//! They get an environment of our own, so nothing of ours leaks into theirs. What is secret goes to them through a file
//! that exists in memory only: it is neither in their arguments nor in their environment, which others could list.
#![expect(unsafe_code, reason = "a descriptor that must stay open over exec is marked between fork and exec")]

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::time::{Instant, timeout, timeout_at};

/// More than any of these programs prints; the rest is not read.
const OUTPUT_BYTES_MAX: u64 = 256 * 1024;
/// How long a program's pipes may stay open after its end, by children that it left behind.
const PIPES_AFTER_END: Duration = Duration::from_millis(500);

/// A file without a name, in memory, for one child to read.
#[derive(Debug)]
pub(crate) struct MemoryFile(File);

impl MemoryFile {
    pub(crate) fn new(content: &[u8]) -> io::Result<Self> {
        let mut file = File::from(memfd_create(c"defib", MFdFlags::MFD_CLOEXEC)?);
        file.write_all(content)?;
        file.rewind()?;
        Ok(Self(file))
    }

    /// The path by which the child that keeps it open finds it.
    pub(crate) fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.0.as_raw_fd())
    }
}

/// What to start.
#[derive(Debug)]
pub(crate) struct Program<'a> {
    /// Name, looked for in the system's folders, or path.
    pub(crate) path: &'a Path,
    pub(crate) arguments: Vec<String>,
    /// What it reads from its standard input; nothing if `None`.
    pub(crate) input: Option<MemoryFile>,
    /// Files that it is told to read by their paths.
    pub(crate) files: Vec<MemoryFile>,
}

/// How it ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) output: String,
    pub(crate) errors: String,
}

/// Why it did not end by itself.
#[derive(Debug)]
pub(crate) enum NotEnded {
    /// It did not even begin.
    NotStarted(io::Error),
    /// Its time was up: it was killed, with all that it had started.
    TimedOut(Duration),
}

/// Kills a process group when dropped: at a timeout, and when whoever waited is gone. Only before its leader is reaped,
/// since then its number may become somebody else's.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

/// Runs a program to its end, at most until `deadline`.
pub(crate) async fn run(program: Program<'_>, deadline: Instant) -> Result<Ended, NotEnded> {
    let begun = Instant::now();
    let kept: Vec<RawFd> = program.files.iter().map(|file| file.0.as_raw_fd()).collect();
    let mut command = Command::new(program.path);
    command
        .args(&program.arguments)
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C")
        .env("HOME", "/")
        .current_dir("/")
        .stdin(program.input.map_or_else(Stdio::null, |input| Stdio::from(input.0)))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    // SAFETY: fcntl is async-signal-safe; the vector was made before the fork and is only read; the descriptors are
    // open in the child, since `program.files` lives until after the spawn.
    unsafe {
        command.pre_exec(move || {
            for fd in &kept {
                if libc::fcntl(*fd, libc::F_SETFD, 0) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    let mut child = command.spawn().map_err(NotEnded::NotStarted)?;
    drop(program.files);
    let id = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
    let mut group = Group(id);
    let (mut output, mut errors) = (Vec::new(), Vec::new());
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let pipes = async {
        tokio::join!(read(out, &mut output), read(err, &mut errors));
    };
    let ended = async {
        tokio::pin!(pipes);
        let status = tokio::select! {
            status = child.wait() => {
                group.0 = None;
                let _ = timeout(PIPES_AFTER_END, pipes).await;
                status
            }
            () = &mut pipes => {
                let status = child.wait().await;
                group.0 = None;
                status
            }
        };
        status
    };
    match timeout_at(deadline, ended).await {
        Ok(Ok(status)) => {
            let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
            Ok(Ended { status, output: text(output), errors: text(errors) })
        }
        Ok(Err(error)) => Err(NotEnded::NotStarted(error)),
        Err(_) => Err(NotEnded::TimedOut(begun.elapsed())),
    }
}

async fn read(pipe: Option<impl AsyncRead + Unpin>, to: &mut Vec<u8>) {
    if let Some(pipe) = pipe {
        // What breaks the pipe also ends the program, and that is what is looked at.
        let _ = pipe.take(OUTPUT_BYTES_MAX).read_to_end(to).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Program<'_> {
        let arguments = vec!["-c".to_owned(), script.to_owned()];
        Program { path: Path::new("sh"), arguments, input: None, files: Vec::new() }
    }

    fn ample() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    #[tokio::test]
    async fn what_it_prints_and_how_it_ends_come_back() {
        let ended = run(shell("echo out; echo err >&2; exit 2"), ample()).await.unwrap();
        assert_eq!((ended.output.as_str(), ended.errors.as_str()), ("out\n", "err\n"));
        assert_eq!(ended.status.code(), Some(2));
    }

    #[tokio::test]
    async fn a_secret_is_read_from_memory_and_shows_in_neither_arguments_nor_environment() {
        let secret = MemoryFile::new(b"geheim").unwrap();
        let script = format!(
            "cat {}; tr '\\0' '\\n' < /proc/$$/environ; tr '\\0' ' ' < /proc/$$/cmdline; ls -l /proc/$$/fd >&2",
            secret.path()
        );
        let mut program = shell(&script);
        program.files.push(secret);
        let ended = run(program, ample()).await.unwrap();
        assert_eq!(ended.output.matches("geheim").count(), 1, "{}", ended.output);
        assert!(!ended.output.contains("CARGO"), "our environment is not theirs: {}", ended.output);
        assert!(ended.errors.contains("memfd:defib"), "{}", ended.errors);
    }

    #[tokio::test]
    async fn standard_input_is_what_was_given() {
        let mut program = shell("cat");
        program.input = Some(MemoryFile::new(b"action=off\n").unwrap());
        assert_eq!(run(program, ample()).await.unwrap().output, "action=off\n");
    }

    async fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
        let end = ample();
        while !holds() {
            assert!(Instant::now() < end, "waited in vain for {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn a_program_whose_caller_gave_up_is_killed_with_all_that_it_has_started() {
        let folder = tempfile::tempdir().unwrap();
        let script =
            format!("sleep 600 & echo $! > {0}/new; mv {0}/new {0}/pid; wait", folder.path().display());
        let told = folder.path().join("pid");
        tokio::select! {
            ended = run(shell(&script), ample()) => panic!("{ended:?}"),
            () = wait_until("its child", || told.exists()) => {}
        }
        let child: i32 = std::fs::read_to_string(&told).unwrap().trim().parse().unwrap();
        wait_until("the child's end", || {
            let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
            stat.is_empty() || stat.contains(") Z ") || stat.contains(") X ")
        })
        .await;
    }

    #[tokio::test]
    async fn time_runs_out_for_one_that_never_ends() {
        let ended = run(shell("sleep 600"), Instant::now() + Duration::from_millis(50)).await;
        assert!(matches!(ended, Err(NotEnded::TimedOut(_))), "{ended:?}");
    }

    #[tokio::test]
    async fn a_child_that_stays_behind_does_not_hold_up_the_answer() {
        let ended = run(shell("sleep 1 & echo here"), ample()).await.unwrap();
        assert_eq!(ended.output, "here\n");
    }

    #[tokio::test]
    async fn a_missing_program_says_so() {
        let program = Program { path: Path::new("no-such-program"), ..shell("") };
        assert!(matches!(run(program, ample()).await, Err(NotEnded::NotStarted(_))));
    }
}
