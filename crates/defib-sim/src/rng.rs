//! All chance in a run: one generator per concern, each from the seed and a name.
//!
//! So that one more lost datagram does not shift when a disk fails, or which operator errs.

/// xoshiro256**, seeded by splitmix64: small, fast, good enough for everything but secrets.
#[derive(Debug, Clone)]
pub struct Rng([u64; 4]);

const fn splitmix(state: u64) -> (u64, u64) {
    let state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut value = state;
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (state, value ^ (value >> 31))
}

impl Rng {
    /// The generator of a concern.
    #[must_use]
    pub fn new(seed: u64, concern: &str) -> Self {
        // FNV-1a of the name.
        let name = concern.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let mut state = splitmix(seed).1 ^ name;
        let mut words = [0; 4];
        for word in &mut words {
            (state, *word) = splitmix(state);
        }
        Self(words)
    }

    /// 64 random bits.
    pub fn word(&mut self) -> u64 {
        let s = &mut self.0;
        let result = s[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// A number below `bound`; 0 if that is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 {
            return 0;
        }
        // The bias of a 128-bit product is below 2^-32 for all that we draw.
        ((u128::from(self.word()) * u128::from(bound)) >> 64) as u64
    }

    /// A number in `low..=high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low) + 1)
    }

    /// An index below `bound`.
    pub fn index(&mut self, bound: usize) -> usize {
        self.below(bound as u64) as usize
    }

    /// True in so many of a thousand cases; draws nothing if that is never.
    pub fn permille(&mut self, chance: u32) -> bool {
        chance > 0 && self.below(1000) < u64::from(chance)
    }

    /// One of them; `None` of none.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        if of.is_empty() { None } else { of.get(self.index(of.len())) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_and_concern_draw_the_same_and_others_do_not() {
        let draw = |seed, concern| (0..8).map(|_| Rng::new(seed, concern).word()).collect::<Vec<_>>();
        assert_eq!(draw(1, "network"), draw(1, "network"));
        assert_ne!(draw(1, "network"), draw(1, "disk"));
        assert_ne!(draw(1, "network"), draw(2, "network"));
    }

    #[test]
    fn all_numbers_of_a_range_come_and_no_other() {
        let mut rng = Rng::new(7, "test");
        let mut seen = [0_u32; 5];
        for _ in 0..1000 {
            seen[rng.between(3, 7) as usize - 3] += 1;
        }
        assert!(seen.iter().all(|count| *count > 120), "{seen:?}");
    }
}
