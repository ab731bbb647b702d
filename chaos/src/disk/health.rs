//! How a disk is, and what that means for whoever writes to it.

use std::fmt;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// How a disk is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Health {
    /// Well.
    #[default]
    Well,
    /// Every write takes so much longer.
    Slow(Duration),
    /// Every write waits until it is something else.
    Stalled,
    /// Every write fails.
    Broken,
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Well => f.write_str("is well"),
            Self::Slow(by) => write!(f, "takes {} longer for each write", humantime::format_duration(*by)),
            Self::Stalled => f.write_str("stalls"),
            Self::Broken => f.write_str("fails"),
        }
    }
}

/// The health of one disk, which somebody changes while others write.
#[derive(Debug, Default)]
pub(crate) struct Ward {
    health: Mutex<Health>,
    changed: Condvar,
}

impl Ward {
    /// Changes it; whoever waits looks again.
    pub(crate) fn set(&self, health: Health) {
        *self.health.lock().unwrap_or_else(PoisonError::into_inner) = health;
        self.changed.notify_all();
    }

    /// Holds up whoever writes for as long as the disk's health says. `false`: the write fails.
    pub(crate) fn admits(&self) -> bool {
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match *health {
                Health::Well => return true,
                Health::Broken => return false,
                Health::Stalled => {
                    health = self.changed.wait(health).unwrap_or_else(PoisonError::into_inner);
                }
                Health::Slow(by) => {
                    // What changes meanwhile is for the next one.
                    let still = |now: &mut Health| matches!(now, Health::Slow(_));
                    let (after, _) = self
                        .changed
                        .wait_timeout_while(health, by, still)
                        .unwrap_or_else(PoisonError::into_inner);
                    health = after;
                    if matches!(*health, Health::Slow(_)) {
                        return true;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::sync_channel;

    use super::*;

    #[test]
    fn a_write_waits_while_its_disk_stalls_and_fails_on_a_broken_one() {
        let ward = Arc::new(Ward::default());
        assert!(ward.admits());
        ward.set(Health::Stalled);
        let (tell, told) = sync_channel(1);
        let writer = {
            let ward = Arc::clone(&ward);
            std::thread::spawn(move || tell.send(ward.admits()))
        };
        assert!(told.recv_timeout(Duration::from_millis(50)).is_err());
        ward.set(Health::Broken);
        assert_eq!(told.recv_timeout(Duration::from_secs(60)), Ok(false));
        writer.join().unwrap().unwrap();
        ward.set(Health::Slow(Duration::from_millis(1)));
        assert!(ward.admits());
    }
}
