//! The hardware watchdog: armed with the first coverage, petted only while covered.
#![expect(unsafe_code, reason = "the watchdog's ioctls")]

use std::{
    fmt,
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::fd::AsRawFd as _,
    path::Path,
};

use crate::config::{WatchdogConfig, WatchdogMode};

mod ioctl {
    nix::ioctl_readwrite!(set_timeout, b'W', 6, libc::c_int);
    nix::ioctl_read!(keep_alive, b'W', 5, libc::c_int);
}

/// Something that resets the host unless it is petted.
pub trait Watchdog: fmt::Debug + Send {
    /// Begins to count, with at most `seconds`; answers the seconds that it really counts.
    ///
    /// # Errors
    /// When it can't be armed.
    fn arm(&mut self, seconds: u32) -> io::Result<u32>;
    /// Counts from the beginning again.
    ///
    /// # Errors
    /// When it does not take it: the host will be reset.
    fn pet(&mut self) -> io::Result<()>;
    /// Whether it resets the host for real.
    fn is_real(&self) -> bool;
}

/// `/dev/watchdog` (linux/watchdog.h). Never closed with the magic 'V' while the agent lives: if the agent dies
/// it goes on counting, which is its purpose.
#[derive(Debug)]
struct Device {
    path: String,
    file: Option<File>,
}

impl Watchdog for Device {
    fn arm(&mut self, seconds: u32) -> io::Result<u32> {
        let explain = |what: &str, error: io::Error| {
            io::Error::new(
                error.kind(),
                format!(
                    "{}: {what}: {error}; is it a watchdog, and does nobody else hold it (systemd's RuntimeWatchdogSec)?",
                    self.path
                ),
            )
        };
        let file = OpenOptions::new()
            .write(true)
            .open(&self.path)
            .map_err(|error| explain("can't be opened", error))?;
        let mut timeout = libc::c_int::try_from(seconds).unwrap_or(libc::c_int::MAX);
        // SAFETY: the descriptor is open and the ioctl reads and writes one int.
        unsafe { ioctl::set_timeout(file.as_raw_fd(), &raw mut timeout) }
            .map_err(|errno| explain("its timeout can't be set", errno.into()))?;
        self.file = Some(file);
        Ok(u32::try_from(timeout).unwrap_or(u32::MAX))
    }

    fn pet(&mut self) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let mut unused: libc::c_int = 0;
        // SAFETY: the descriptor is open and the ioctl writes one int at most.
        let asked = unsafe { ioctl::keep_alive(file.as_raw_fd(), &raw mut unused) };
        if asked.is_err() {
            // Older drivers know only a write, of anything but 'V'.
            file.write_all(b"1")?;
        }
        Ok(())
    }

    fn is_real(&self) -> bool {
        true
    }
}

/// Says what it would do.
#[derive(Debug, Default)]
struct DryRun;

impl Watchdog for DryRun {
    fn arm(&mut self, seconds: u32) -> io::Result<u32> {
        tracing::info!(seconds, "dry run: the watchdog would be armed");
        Ok(seconds)
    }

    fn pet(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn is_real(&self) -> bool {
        false
    }
}

/// The watchdog that the configuration wants.
#[must_use]
pub fn open(config: &WatchdogConfig) -> Option<Box<dyn Watchdog>> {
    match config.mode {
        WatchdogMode::Off => None,
        WatchdogMode::DryRun => Some(Box::new(DryRun)),
        WatchdogMode::Armed => Some(device(&config.device)),
    }
}

fn device(path: &Path) -> Box<dyn Watchdog> {
    Box::new(Device { path: path.display().to_string(), file: None })
}

/// When a watchdog is armed and petted: with the first coverage, and only while it lasts.
#[derive(Debug)]
pub struct Keeper {
    watchdog: Option<Box<dyn Watchdog>>,
    armed: bool,
    covered: bool,
}

impl Keeper {
    /// Nothing is armed yet.
    #[must_use]
    pub const fn new(watchdog: Option<Box<dyn Watchdog>>) -> Self {
        Self { watchdog, armed: false, covered: true }
    }

    /// Whether the host would really be reset.
    #[must_use]
    pub fn is_armed(&self) -> bool {
        self.armed && self.watchdog.as_ref().is_some_and(|watchdog| watchdog.is_real())
    }

    /// To be called several times per timeout; `covered` was just read. `bound_ms`: the policy's watchdog time.
    ///
    /// # Errors
    /// When it can't be armed: the agent must not pretend.
    pub fn tend(&mut self, covered: bool, bound_ms: u64) -> io::Result<()> {
        let Some(watchdog) = &mut self.watchdog else { return Ok(()) };
        if covered != self.covered {
            self.covered = covered;
            if !covered && self.armed {
                tracing::error!("not covered by a lease any more: the watchdog is not petted");
            }
        }
        if !covered {
            return Ok(());
        }
        if !self.armed {
            // Whole seconds, rounded down: it must not bite later than the policy says.
            let wanted = u32::try_from(bound_ms / 1000).unwrap_or(u32::MAX).max(1);
            let counts = watchdog.arm(wanted)?;
            if u64::from(counts) * 1000 > bound_ms {
                return Err(io::Error::other(format!(
                    "the watchdog counts {counts} s at least, but the policy's lease.watchdog is {bound_ms} ms; raise the policy, or choose mode: off"
                )));
            }
            tracing::info!(seconds = counts, real = watchdog.is_real(), "watchdog armed");
            self.armed = true;
        }
        watchdog.pet()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Debug, Clone, Default)]
    struct Recording(Arc<Mutex<Vec<String>>>, u32);

    impl Watchdog for Recording {
        fn arm(&mut self, seconds: u32) -> io::Result<u32> {
            self.0.lock().unwrap().push(format!("arm {seconds}"));
            Ok(seconds.max(self.1))
        }
        fn pet(&mut self) -> io::Result<()> {
            self.0.lock().unwrap().push("pet".into());
            Ok(())
        }
        fn is_real(&self) -> bool {
            true
        }
    }

    #[test]
    fn it_is_armed_by_the_first_coverage_and_petted_only_while_covered() {
        let recording = Recording::default();
        let mut keeper = Keeper::new(Some(Box::new(recording.clone())));
        keeper.tend(false, 5500).unwrap();
        assert!(!keeper.is_armed());
        keeper.tend(true, 5500).unwrap();
        keeper.tend(false, 5500).unwrap();
        keeper.tend(true, 5500).unwrap();
        assert!(keeper.is_armed());
        assert_eq!(*recording.0.lock().unwrap(), ["arm 5", "pet", "pet"]);
    }

    #[test]
    fn a_watchdog_that_bites_too_late_is_refused() {
        let mut keeper = Keeper::new(Some(Box::new(Recording(Arc::default(), 60))));
        let error = keeper.tend(true, 5000).unwrap_err();
        assert!(error.to_string().contains("counts 60 s at least"), "{error}");
    }

    #[test]
    fn a_device_that_is_no_watchdog_is_refused_with_the_reason() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = device(file.path()).arm(5).unwrap_err();
        assert!(error.to_string().contains("its timeout can't be set"), "{error}");
        let error = device(Path::new("/no/such/watchdog")).arm(5).unwrap_err();
        assert!(error.to_string().contains("can't be opened"), "{error}");
    }
}
