//! How fast one agent may talk. Whoever talks faster is read more slowly, and nothing of it is lost: all agents share
//! one loop, and none may take it from the others.

use std::time::Duration;

use futures_util::Stream;
use tokio::time::{Instant, sleep_until};
use tokio_stream::StreamExt as _;

/// Messages in a row: the outcomes of a host's worth of starts, and more.
const IN_A_ROW: u32 = 512;
/// After that, one in so long.
const EVERY: Duration = Duration::from_millis(10);

/// The pace of one session.
#[derive(Debug)]
struct Pace {
    /// When as many messages are behind as are allowed in a row: the later, the more of them were used.
    used_until: Instant,
}

impl Pace {
    const fn new(now: Instant) -> Self {
        Self { used_until: now }
    }

    /// One message is there: when it may be passed on.
    fn turn(&mut self, now: Instant) -> Instant {
        self.used_until = self.used_until.max(now) + EVERY;
        self.used_until.checked_sub(EVERY * IN_A_ROW).map_or(now, |at| at.max(now))
    }
}

/// A stream that is read at a pace.
#[derive(Debug)]
pub(crate) struct Paced<S> {
    stream: S,
    pace: Pace,
}

impl<S: Stream + Unpin> Paced<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, pace: Pace::new(Instant::now()) }
    }

    /// What comes next, when it is its turn; `None`: the stream has ended.
    pub(crate) async fn next(&mut self) -> Option<S::Item> {
        let said = self.stream.next().await?;
        let now = Instant::now();
        let turn = self.pace.turn(now);
        if turn > now {
            sleep_until(turn).await;
        }
        Some(said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_talks_without_end_is_read_at_a_pace_and_who_rests_may_talk_again() {
        let begin = Instant::now();
        let mut pace = Pace::new(begin);
        for _ in 0..IN_A_ROW {
            assert_eq!(pace.turn(begin), begin);
        }
        let mut now = begin;
        for _ in 0..1000 {
            now = pace.turn(now);
        }
        assert_eq!(now, begin + EVERY * 1000);
        now += EVERY * 20;
        for _ in 0..20 {
            assert_eq!(pace.turn(now), now);
        }
        assert!(pace.turn(now) > now);
    }

    #[tokio::test]
    async fn a_stream_that_never_rests_is_read_no_faster_and_nothing_of_it_is_lost() {
        let more = 20;
        let mut heard = Vec::new();
        let begin = Instant::now();
        let mut said = Paced::new(tokio_stream::iter(0..IN_A_ROW + more));
        while let Some(word) = said.next().await {
            heard.push(word);
        }
        assert!(begin.elapsed() >= EVERY * more, "it took {:?}", begin.elapsed());
        assert_eq!(heard, (0..IN_A_ROW + more).collect::<Vec<u32>>());
    }
}
