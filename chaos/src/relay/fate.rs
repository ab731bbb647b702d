//! What becomes of a frame in a relay, and when it goes on: decided by its weather, its seed and the order in which
//! frames come. No clock, no sockets.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt;
use std::time::Duration;

use crate::chance::Chance;

/// By how much a frame is later that others overtake, or the second of two, at most: several heartbeats.
const HOLD: Duration = Duration::from_millis(300);
/// Frames under way at once, one way; what comes beyond that is lost, as in a full queue.
const WAITING_MAX: usize = 4096;

/// What a relay does to frames, each way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Weather {
    /// They take so much longer …
    pub(crate) delay: Duration,
    /// … by so much more or less.
    pub(crate) jitter: Duration,
    /// So many of a hundred are lost.
    pub(crate) lose: u8,
    /// So many of a hundred come twice, the second one later.
    pub(crate) duplicate: u8,
    /// So many of a hundred are overtaken by those behind them. All others keep their order.
    pub(crate) reorder: u8,
}

impl fmt::Display for Weather {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (delay, jitter) = (self.delay.as_millis(), self.jitter.as_millis());
        write!(
            f,
            "delay by {delay} ms ± {jitter} ms, lose {} %, double {} %, reorder {} %",
            self.lose, self.duplicate, self.reorder
        )
    }
}

/// What became of frames, one way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Came in.
    pub(crate) came: u64,
    /// Went out, those that came twice counted twice.
    pub(crate) went: u64,
    /// Lost by chance.
    pub(crate) lost: u64,
    /// Sent twice.
    pub(crate) doubled: u64,
    /// Held back so that others overtake them.
    pub(crate) held: u64,
    /// Lost since too many were under way.
    pub(crate) overflowed: u64,
    /// Not taken at the other end, which may be gone.
    pub(crate) refused: u64,
}

impl Counts {
    /// Of both ways, and of all cables.
    pub(crate) fn sum(all: impl Iterator<Item = Self>) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            came: sum.came + one.came,
            went: sum.went + one.went,
            lost: sum.lost + one.lost,
            doubled: sum.doubled + one.doubled,
            held: sum.held + one.held,
            overflowed: sum.overflowed + one.overflowed,
            refused: sum.refused + one.refused,
        })
    }

    /// For another process.
    pub(crate) fn line(&self) -> String {
        let Self { came, went, lost, doubled, held, overflowed, refused } = self;
        format!("{came} {went} {lost} {doubled} {held} {overflowed} {refused}")
    }

    /// What another process says.
    pub(crate) fn read(line: &str) -> Option<Self> {
        let numbers: Option<Vec<u64>> = line.split(' ').map(|number| number.parse().ok()).collect();
        let [came, went, lost, doubled, held, overflowed, refused] = numbers?.try_into().ok()?;
        Some(Self { came, went, lost, doubled, held, overflowed, refused })
    }
}

/// A frame under way. Of two that are due in one moment the one that came first goes first.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Waiting {
    due_ns: u64,
    number: u64,
    frame: Vec<u8>,
}

/// One way of one cable.
#[derive(Debug)]
pub(crate) struct Way {
    weather: Weather,
    chance: Chance,
    /// When the last one is due that keeps its order.
    last_ns: u64,
    number: u64,
    waiting: BinaryHeap<Reverse<Waiting>>,
    /// What became of frames so far.
    pub(crate) counts: Counts,
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Way {
    /// With nothing under way.
    pub(crate) const fn new(weather: Weather, seed: u64) -> Self {
        Self {
            weather,
            chance: Chance::new(seed),
            last_ns: 0,
            number: 0,
            waiting: BinaryHeap::new(),
            counts: Counts { came: 0, went: 0, lost: 0, doubled: 0, held: 0, overflowed: 0, refused: 0 },
        }
    }

    /// A frame comes.
    pub(crate) fn come(&mut self, now_ns: u64, frame: &[u8]) {
        self.counts.came += 1;
        if self.chance.percent(self.weather.lose) {
            self.counts.lost += 1;
            return;
        }
        let due_ns = self.due(now_ns);
        if self.chance.percent(self.weather.duplicate) {
            self.counts.doubled += 1;
            let later = due_ns.saturating_add(self.hold());
            self.wait(later, frame.to_vec());
        }
        self.wait(due_ns, frame.to_vec());
    }

    fn due(&mut self, now_ns: u64) -> u64 {
        let Weather { delay, jitter, .. } = self.weather;
        let jitter = nanos(jitter);
        let shifted = nanos(delay).saturating_add(self.chance.up_to(jitter.saturating_mul(2)));
        let due_ns = now_ns.saturating_add(shifted.saturating_sub(jitter));
        if self.chance.percent(self.weather.reorder) {
            self.counts.held += 1;
            return due_ns.saturating_add(self.hold());
        }
        self.last_ns = self.last_ns.max(due_ns);
        self.last_ns
    }

    fn hold(&mut self) -> u64 {
        1 + self.chance.up_to(nanos(HOLD) - 1)
    }

    fn wait(&mut self, due_ns: u64, frame: Vec<u8>) {
        if self.waiting.len() >= WAITING_MAX {
            self.counts.overflowed += 1;
            return;
        }
        self.number += 1;
        self.waiting.push(Reverse(Waiting { due_ns, number: self.number, frame }));
    }

    /// When the next one is due.
    pub(crate) fn next_ns(&self) -> Option<u64> {
        self.waiting.peek().map(|Reverse(next)| next.due_ns)
    }

    /// The next one, if it is due.
    pub(crate) fn go(&mut self, now_ns: u64) -> Option<Vec<u8>> {
        if self.next_ns()? > now_ns {
            return None;
        }
        self.waiting.pop().map(|Reverse(next)| next.frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// A frame each millisecond; when which went out.
    fn passed(weather: Weather, seed: u64, count: u16) -> (Vec<(u64, u16)>, Counts) {
        let mut way = Way::new(weather, seed);
        let mut out = Vec::new();
        for tick in 0..u64::from(count) + 2000 {
            if let Ok(number) = u16::try_from(tick)
                && number < count
            {
                way.come(tick * MS, &number.to_be_bytes());
            }
            while let Some(frame) = way.go(tick * MS) {
                out.push((tick, u16::from_be_bytes([frame[0], frame[1]])));
            }
        }
        assert_eq!(way.next_ns(), None);
        (out, way.counts)
    }

    #[test]
    fn fair_weather_changes_nothing() {
        let (out, counts) = passed(Weather::default(), 1, 50);
        assert!(out.iter().all(|(at, number)| *at == u64::from(*number)) && out.len() == 50);
        assert_eq!(counts, Counts { came: 50, ..Counts::default() });
    }

    #[test]
    fn delay_and_jitter_keep_the_order_and_stay_within_their_bounds() {
        let weather = Weather {
            delay: Duration::from_millis(200),
            jitter: Duration::from_millis(50),
            ..Weather::default()
        };
        let (out, _) = passed(weather, 3, 300);
        assert!(out.is_sorted_by_key(|(_, number)| *number) && out.len() == 300);
        let late: Vec<u64> = out.iter().map(|(at, number)| at - u64::from(*number)).collect();
        assert!(late.iter().all(|late| (150..=251).contains(late)), "{late:?}");
        assert!(late.iter().any(|late| *late < 200) && late.iter().any(|late| *late > 220), "{late:?}");
    }

    #[test]
    fn shares_are_lost_doubled_and_overtaken_and_a_seed_decides_which() {
        let weather = Weather { lose: 10, duplicate: 20, reorder: 20, ..Weather::default() };
        let (out, counts) = passed(weather, 5, 1000);
        assert_eq!((&out, counts), (&passed(weather, 5, 1000).0, passed(weather, 5, 1000).1));
        assert_ne!(out, passed(weather, 6, 1000).0);
        assert!((50..150).contains(&counts.lost), "{counts:?}");
        assert!((120..260).contains(&counts.doubled) && (120..260).contains(&counts.held), "{counts:?}");
        assert_eq!(out.len() as u64, 1000 - counts.lost + counts.doubled);
        assert!(!out.is_sorted_by_key(|(_, number)| *number));
    }

    #[test]
    fn only_those_that_are_held_are_overtaken() {
        let weather = Weather { reorder: 20, ..Weather::default() };
        let (out, counts) = passed(weather, 9, 400);
        let on_time = out.iter().filter(|(at, number)| *at == u64::from(*number)).count() as u64;
        assert_eq!(on_time, 400 - counts.held);
        assert!(out.iter().all(|(at, number)| at - u64::from(*number) <= 301));
    }

    #[test]
    fn a_full_queue_loses_what_comes_and_counts_it() {
        let mut way = Way::new(Weather { delay: Duration::from_secs(1), ..Weather::default() }, 1);
        for _ in 0..WAITING_MAX + 3 {
            way.come(0, b"frame");
        }
        assert_eq!((way.counts.overflowed, way.next_ns()), (3, Some(1_000_000_000)));
    }

    #[test]
    fn counts_are_understood_by_another_process() {
        let counts = Counts { came: 9, went: 8, lost: 1, held: 3, refused: 2, ..Counts::default() };
        assert_eq!(Counts::read(&counts.line()), Some(counts));
        assert_eq!(Counts::read("ready"), None);
        assert_eq!(Counts::sum([counts, counts].into_iter()).came, 18);
    }
}
