//! When a replica stands for election.
//!
//! Raft's own draw comes from a thread's random generator, and lets two replicas draw the same. Ours is a
//! function of seed, replica, term and voters, and spreads the voters over the range: each has a slot of its
//! own, which rotates with the term, and some jitter within. So two followers that lose their leader at the
//! same moment never stand at the same moment.

use raft::{RawNode, Storage};

use super::ReplicaConfig;

#[derive(Debug)]
pub(super) struct Elections {
    replica: u64,
    seed: u64,
    election_ticks: usize,
}

impl Elections {
    pub(super) fn new(config: &ReplicaConfig) -> Self {
        Self { replica: config.replica, seed: config.seed, election_ticks: config.election_ticks }
    }

    /// Replaces raft's draw, if it has drawn since the last call.
    pub(super) fn redraw<S: Storage>(&self, raw: &mut RawNode<S>) {
        let timeout = self.draw(raw.raft.term, &raw.raft.prs().conf().to_conf_state().voters);
        if raw.raft.randomized_election_timeout() != timeout {
            raw.raft.set_randomized_election_timeout(timeout);
        }
    }

    /// Ticks in `(election_ticks, 2 * election_ticks)`. One more than the least, so that a peer whose ticks
    /// fall a little later doesn't ignore the first to stand because it still believes in the leader.
    fn draw(&self, term: u64, voters: &[u64]) -> usize {
        let random = mix(self.seed ^ self.replica.rotate_left(32) ^ term.rotate_left(16));
        let range = self.election_ticks.saturating_sub(1).max(1);
        let count = voters.len().max(1);
        let rank = voters.iter().filter(|voter| **voter < self.replica).count();
        let slot = rank.wrapping_add(usize::try_from(term % count as u64).unwrap_or(0)) % count;
        let width = (range / count).max(1);
        let jitter = usize::try_from(random % (width.div_ceil(2) as u64)).unwrap_or(0);
        let offset = 1 + slot * range / count + jitter;
        self.election_ticks + offset.min(range)
    }
}

/// Splitmix64.
fn mix(seed: u64) -> u64 {
    let mut value = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn voters_never_draw_the_same_in_one_term_and_stay_in_range() {
        for election_ticks in [10, 20, 50] {
            for term in 0..50 {
                let mut drawn: Vec<usize> = (1..=5)
                    .map(|replica| {
                        let mut config = ReplicaConfig::new(1, replica, vec![1, 2, 3, 4, 5]);
                        config.election_ticks = election_ticks;
                        config.seed = 77;
                        Elections::new(&config).draw(term, &config.initial_voters)
                    })
                    .collect();
                assert!(
                    drawn.iter().all(|ticks| *ticks > election_ticks && *ticks < 2 * election_ticks),
                    "{drawn:?}"
                );
                drawn.sort_unstable();
                drawn.dedup();
                assert_eq!(drawn.len(), 5, "term {term}");
            }
        }
    }
}
