//! What is left to chance, and is the same for the same seed.

/// As good as chance, and the same for the same seed and place.
pub(crate) const fn mixed(seed: u64, place: u64) -> u64 {
    let mut z = seed.wrapping_add(place.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// One draw after the other.
#[derive(Debug, Clone)]
pub(crate) struct Chance {
    seed: u64,
    drawn: u64,
}

impl Chance {
    /// All draws of a seed.
    pub(crate) const fn new(seed: u64) -> Self {
        Self { seed, drawn: 0 }
    }

    const fn draw(&mut self) -> u64 {
        self.drawn += 1;
        mixed(self.seed, self.drawn)
    }

    /// True so many times of a hundred.
    pub(crate) const fn percent(&mut self, share: u8) -> bool {
        self.draw() % 100 < share as u64
    }

    /// From 0 to `most`, both among them.
    pub(crate) const fn up_to(&mut self, most: u64) -> u64 {
        match most.checked_add(1) {
            Some(count) => self.draw() % count,
            None => self.draw(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_the_same_for_a_seed_and_near_their_share() {
        let draw = |seed| {
            let mut chance = Chance::new(seed);
            (0..1000).map(|_| chance.percent(20)).collect::<Vec<bool>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        let hits = draw(7).into_iter().filter(|hit| *hit).count();
        assert!((150..250).contains(&hits), "{hits}");
        let mut chance = Chance::new(1);
        assert!((0..1000).all(|_| chance.up_to(9) <= 9) && chance.up_to(0) == 0);
    }
}
