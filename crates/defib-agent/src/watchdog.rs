//! The hardware watchdog: armed with the first coverage, petted only while covered.
#![expect(unsafe_code, reason = "the watchdog's ioctls")]

use std::{
    fmt,
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
};

use defib_model::{Instant, Millis};

use crate::config::{WatchdogConfig, WatchdogMode};

/// How soon one that could not be armed is tried again: twice as late each time, up to the second.
const AGAIN_AFTER: (Millis, Millis) = (Millis(5_000), Millis(60_000));

mod ioctl {
    nix::ioctl_readwrite!(set_timeout, b'W', 6, libc::c_int);
    nix::ioctl_read!(keep_alive, b'W', 5, libc::c_int);
}

/// Something that resets the host unless it is petted.
pub trait Watchdog: fmt::Debug + Send {
    /// Begins to count, with at most `seconds`, or goes on with as many; answers the seconds that it really counts.
    ///
    /// # Errors
    /// When it can't be armed.
    fn arm(&mut self, seconds: u32) -> io::Result<u32>;
    /// Counts from the beginning again.
    ///
    /// # Errors
    /// When it does not take it: the host will be reset.
    fn pet(&mut self) -> io::Result<()>;
    /// Ends the counting: of one that could not be armed as wanted, or of a host that has shut down. Never called while
    /// a VM runs.
    fn disarm(&mut self);
    /// Whether it resets the host for real.
    fn is_real(&self) -> bool;
}

/// The device's file, once it is open: from then on it counts.
trait Node: fmt::Debug + Send {
    /// Sets the seconds that it counts; answers those that it really counts.
    fn set_timeout(&mut self, seconds: u32) -> io::Result<u32>;
    /// Counts from the beginning again.
    fn keep_alive(&mut self) -> io::Result<()>;
    fn write(&mut self, byte: u8) -> io::Result<()>;
}

impl Node for File {
    fn set_timeout(&mut self, seconds: u32) -> io::Result<u32> {
        let mut timeout = libc::c_int::try_from(seconds).unwrap_or(libc::c_int::MAX);
        // SAFETY: the descriptor is open and the ioctl reads and writes one int.
        unsafe { ioctl::set_timeout(self.as_raw_fd(), &raw mut timeout) }?;
        Ok(u32::try_from(timeout).unwrap_or(u32::MAX))
    }

    fn keep_alive(&mut self) -> io::Result<()> {
        let mut unused: libc::c_int = 0;
        // SAFETY: the descriptor is open and the ioctl writes one int at most.
        unsafe { ioctl::keep_alive(self.as_raw_fd(), &raw mut unused) }?;
        Ok(())
    }

    fn write(&mut self, byte: u8) -> io::Result<()> {
        self.write_all(&[byte])
    }
}

/// `/dev/watchdog` (linux/watchdog.h). Once it is armed it is not closed with the magic 'V', except in a shutdown when
/// no VM is left: if the agent dies it goes on counting, which is its purpose.
#[derive(Debug)]
struct Device {
    path: PathBuf,
    open: fn(&Path) -> io::Result<Box<dyn Node>>,
    node: Option<Box<dyn Node>>,
}

impl Device {
    fn new(path: &Path) -> Self {
        let open = |path: &Path| -> io::Result<Box<dyn Node>> {
            Ok(Box::new(OpenOptions::new().write(true).open(path)?))
        };
        Self { path: path.to_owned(), open, node: None }
    }
}

impl Watchdog for Device {
    fn arm(&mut self, seconds: u32) -> io::Result<u32> {
        let explain = |what: &str, error: io::Error| {
            let path = self.path.display();
            io::Error::new(
                error.kind(),
                format!(
                    "{path}: {what}: {error}; is it a watchdog, and does nobody else hold it (systemd's RuntimeWatchdogSec)?"
                ),
            )
        };
        if self.node.is_none() {
            self.node = Some((self.open)(&self.path).map_err(|error| explain("can't be opened", error))?);
        }
        let Some(node) = &mut self.node else { return Ok(seconds) };
        node.set_timeout(seconds).map_err(|error| explain("its timeout can't be set", error))
    }

    fn pet(&mut self) -> io::Result<()> {
        let Some(node) = &mut self.node else { return Ok(()) };
        // Older drivers know only a write, of anything but 'V'.
        node.keep_alive().or_else(|_| node.write(b'1')).map_err(|error| {
            let path = self.path.display();
            io::Error::new(error.kind(), format!("{path}: can't be petted: {error}; it will reset this host"))
        })
    }

    fn disarm(&mut self) {
        let Some(mut node) = self.node.take() else { return };
        if let Err(error) = node.write(b'V') {
            tracing::error!(device = %self.path.display(), %error, "the watchdog can't be stopped again: it will reset this host");
        }
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
        tracing::info!(
            seconds,
            "dry run: the watchdog would be armed; nothing is, and nothing resets this host"
        );
        Ok(seconds)
    }

    fn pet(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn disarm(&mut self) {}

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
        WatchdogMode::Armed => Some(Box::new(Device::new(&config.device))),
    }
}

/// When a watchdog is armed and petted: with the first coverage, and only while it lasts.
#[derive(Debug)]
pub struct Keeper {
    watchdog: Option<Box<dyn Watchdog>>,
    /// The bound that it was armed for, in milliseconds.
    armed_for_ms: Option<u64>,
    /// It counts longer than the bound that is in force.
    late: bool,
    covered: bool,
    /// When one that could not be armed is tried again, and how long that waits.
    again: Option<(Instant, Millis)>,
    trouble: String,
}

impl Keeper {
    /// Nothing is armed yet.
    #[must_use]
    pub const fn new(watchdog: Option<Box<dyn Watchdog>>) -> Self {
        Self { watchdog, armed_for_ms: None, late: false, covered: true, again: None, trouble: String::new() }
    }

    /// Whether the host would really be reset, and in time.
    #[must_use]
    pub fn is_armed(&self) -> bool {
        let real = self.watchdog.as_ref().is_some_and(|watchdog| watchdog.is_real());
        self.armed_for_ms.is_some() && !self.late && real
    }

    /// The host shuts down and runs no VM, nor will it in this process: the rest of the shutdown may take longer than
    /// the watchdog's time.
    pub fn let_go(&mut self) {
        if self.armed_for_ms.take().is_some()
            && let Some(watchdog) = &mut self.watchdog
        {
            watchdog.disarm();
        }
    }

    /// Why the watchdog that is wanted is not armed; empty: it is, or its time has not come, or none is wanted.
    #[must_use]
    pub fn trouble(&self) -> &str {
        &self.trouble
    }

    /// To be called several times per timeout; `covered` was just read. `bound_ms`: the watchdog's time by the policy
    /// that is in force.
    ///
    /// One that can't be armed is reported as not armed, and tried again: the agent goes on without it. VMs may run
    /// here that an agent before this one has started, and to end would bring neither them nor the watchdog back.
    ///
    /// # Errors
    /// When one that is armed can't be petted: the host will be reset.
    pub fn tend(&mut self, now: Instant, covered: bool, bound_ms: u64) -> io::Result<()> {
        let Some(watchdog) = &mut self.watchdog else { return Ok(()) };
        if covered != self.covered {
            self.covered = covered;
            if !covered && self.armed_for_ms.is_some() {
                tracing::error!("not covered by a lease any more: the watchdog is not petted");
            }
        }
        // Setting the time may count from the beginning again, which is petting.
        if !covered {
            return Ok(());
        }
        if self.again.is_some_and(|(at, _)| now < at) {
            return Ok(());
        }
        if self.armed_for_ms != Some(bound_ms) {
            match (arm(watchdog.as_mut(), bound_ms), self.armed_for_ms) {
                (Ok(()), _) => {
                    self.late = false;
                    self.again = None;
                    self.trouble.clear();
                }
                (Err(error), None) => {
                    watchdog.disarm();
                    let waits =
                        self.again.map_or(AGAIN_AFTER.0, |(_, waits)| waits.times(2).min(AGAIN_AFTER.1));
                    tracing::error!(
                        %error,
                        "the watchdog can't be armed, so no death of this host is proven by its lease; VMs run on without it, \
                         and it is tried again in {waits}. Mend it, or choose watchdog: {{ mode: off }} in the agent's \
                         configuration"
                    );
                    self.again = Some((now.plus(waits), waits));
                    self.trouble = error.to_string();
                    return Ok(());
                }
                // VMs may run already, and nothing has happened to them: they are not taken down for a new policy.
                (Err(error), Some(_)) => {
                    tracing::error!(%error, "the watchdog does not bite in the time of the new policy; it is reported as not armed");
                    self.late = true;
                    self.trouble = error.to_string();
                }
            }
            self.armed_for_ms = Some(bound_ms);
        }
        watchdog.pet()
    }
}

fn arm(watchdog: &mut dyn Watchdog, bound_ms: u64) -> io::Result<()> {
    // Whole seconds, rounded down: it must not bite later than the policy says.
    let wanted = u32::try_from(bound_ms / 1000).unwrap_or(u32::MAX).max(1);
    let counts = watchdog.arm(wanted)?;
    if u64::from(counts) * 1000 > bound_ms {
        return Err(io::Error::other(format!(
            "the watchdog counts {counts} s at least, but the policy's lease.watchdog is {bound_ms} ms; raise the policy, or choose mode: off"
        )));
    }
    if watchdog.is_real() {
        tracing::info!(seconds = counts, "watchdog armed");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    const NOW: Instant = Instant(7);

    /// What happened to fake devices, by their path. Each test has a path of its own.
    static SEEN: Mutex<Vec<(PathBuf, String)>> = Mutex::new(Vec::new());

    /// A device whose driver counts between 2 and 10 seconds. If its path says so it is old and knows no ioctl for
    /// petting, or it can't set a time at all.
    #[derive(Debug)]
    struct Fake(PathBuf);

    impl Fake {
        fn see(&self, what: impl Into<String>) {
            SEEN.lock().unwrap().push((self.0.clone(), what.into()));
        }
    }

    impl Drop for Fake {
        fn drop(&mut self) {
            self.see("closed");
        }
    }

    impl Node for Fake {
        fn set_timeout(&mut self, seconds: u32) -> io::Result<u32> {
            self.see(format!("set {seconds}"));
            if self.0.ends_with("fixed") {
                return Err(io::ErrorKind::Unsupported.into());
            }
            Ok(seconds.clamp(2, 10))
        }
        fn keep_alive(&mut self) -> io::Result<()> {
            if self.0.ends_with("old") {
                return Err(io::ErrorKind::Unsupported.into());
            }
            self.see("pet");
            Ok(())
        }
        fn write(&mut self, byte: u8) -> io::Result<()> {
            self.see(char::from(byte));
            Ok(())
        }
    }

    fn keeper(path: &str) -> Keeper {
        let open = |path: &Path| -> io::Result<Box<dyn Node>> {
            let fake = Fake(path.to_owned());
            fake.see("open");
            Ok(Box::new(fake))
        };
        Keeper::new(Some(Box::new(Device { path: path.into(), open, node: None })))
    }

    fn seen(path: &str) -> Vec<String> {
        let seen = SEEN.lock().unwrap();
        seen.iter().filter(|(of, _)| of == Path::new(path)).map(|(_, what)| what.clone()).collect()
    }

    #[test]
    fn it_is_armed_by_the_first_coverage_petted_only_while_covered_and_never_let_go() {
        let mut keeper = keeper("/fake/new");
        keeper.tend(NOW, false, 5500).unwrap();
        assert!(!keeper.is_armed());
        assert!(seen("/fake/new").is_empty(), "opening it would begin to count");
        keeper.tend(NOW, true, 5500).unwrap();
        assert!(keeper.is_armed());
        keeper.tend(NOW, false, 5500).unwrap();
        keeper.tend(NOW, false, 5500).unwrap();
        assert_eq!(seen("/fake/new"), ["open", "set 5", "pet"]);
        keeper.tend(NOW, true, 5500).unwrap();
        // The agent ends, however: no magic 'V', so it goes on counting.
        drop(keeper);
        assert_eq!(seen("/fake/new"), ["open", "set 5", "pet", "pet", "closed"]);
    }

    #[test]
    fn it_is_let_go_when_its_host_shuts_down() {
        let mut keeper = keeper("/fake/left");
        keeper.let_go();
        keeper.tend(NOW, true, 5000).unwrap();
        keeper.let_go();
        assert!(!keeper.is_armed());
        keeper.let_go();
        assert_eq!(seen("/fake/left"), ["open", "set 5", "pet", "V", "closed"]);
    }

    #[test]
    fn an_old_driver_is_petted_by_a_write_that_is_not_the_magic_one() {
        let mut keeper = keeper("/fake/old");
        keeper.tend(NOW, true, 5000).unwrap();
        keeper.tend(NOW, true, 5000).unwrap();
        assert_eq!(seen("/fake/old"), ["open", "set 5", "1", "1"]);
    }

    #[test]
    fn one_that_bites_too_late_is_refused_and_stopped_again() {
        let mut keeper = keeper("/fake/slow");
        keeper.tend(NOW, true, 1500).unwrap();
        assert!(keeper.trouble().contains("counts 2 s at least"), "{}", keeper.trouble());
        assert!(!keeper.is_armed());
        drop(keeper);
        assert_eq!(
            seen("/fake/slow"),
            ["open", "set 1", "V", "closed"],
            "a wrong policy must not reset the host"
        );
    }

    #[test]
    fn one_whose_time_can_not_be_set_is_refused_and_stopped_again() {
        let mut keeper = keeper("/fake/fixed");
        keeper.tend(NOW, true, 5000).unwrap();
        let trouble = keeper.trouble();
        assert!(trouble.contains("/fake/fixed: its timeout can't be set"), "{trouble}");
        assert_eq!(seen("/fake/fixed"), ["open", "set 5", "V", "closed"]);
    }

    /// An agent that ended over it would be started again at once, and end again: many times a minute, each with its
    /// silence, and no operator would learn why.
    #[test]
    fn one_that_can_not_be_armed_is_tried_again_ever_more_seldom_and_armed_once_it_can() {
        let mut keeper = keeper("/fake/busy");
        let mut tried = Vec::new();
        for second in 0..200 {
            let before = seen("/fake/busy").len();
            keeper.tend(Instant::from_millis(second * 1000), true, 1500).unwrap();
            if seen("/fake/busy").len() > before {
                tried.push(second);
            }
            assert!(!keeper.is_armed());
        }
        assert_eq!(tried, [0, 5, 15, 35, 75, 135, 195]);
        // The policy is raised.
        keeper.tend(Instant::from_millis(254_999), true, 5000).unwrap();
        assert!(!keeper.is_armed());
        keeper.tend(Instant::from_millis(255_000), true, 5000).unwrap();
        assert!(keeper.is_armed() && keeper.trouble().is_empty());
    }

    #[test]
    fn a_new_policy_sets_the_time_anew_and_one_that_it_can_not_keep_is_not_pretended() {
        let mut keeper = keeper("/fake/policy");
        keeper.tend(NOW, true, 9000).unwrap();
        keeper.tend(NOW, true, 4000).unwrap();
        assert!(keeper.is_armed());
        keeper.tend(NOW, false, 3000).unwrap();
        keeper.tend(NOW, true, 1500).unwrap();
        assert!(!keeper.is_armed(), "it bites after 2 s, the policy counts on 1.5");
        keeper.tend(NOW, true, 1500).unwrap();
        keeper.tend(NOW, true, 6000).unwrap();
        assert!(keeper.is_armed());
        let expected = ["open", "set 9", "pet", "set 4", "pet", "set 1", "pet", "pet", "set 6", "pet"];
        assert_eq!(seen("/fake/policy"), expected);
    }

    #[test]
    fn a_dry_run_is_never_reported_as_armed() {
        let config = WatchdogConfig { mode: WatchdogMode::DryRun, device: "/no/such/watchdog".into() };
        let mut keeper = Keeper::new(open(&config));
        keeper.tend(NOW, true, 5000).unwrap();
        keeper.tend(NOW, true, 5000).unwrap();
        assert!(!keeper.is_armed());
    }

    #[test]
    fn a_device_that_is_no_watchdog_is_refused_with_the_reason() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Device::new(file.path()).arm(5).unwrap_err();
        assert!(error.to_string().contains("its timeout can't be set"), "{error}");
        let error = Device::new(Path::new("/no/such/watchdog")).arm(5).unwrap_err();
        assert!(error.to_string().contains("can't be opened"), "{error}");
    }
}
