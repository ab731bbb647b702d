//! Seeds that are no messages, and the words of those that are.

use std::collections::BTreeSet;

/// SplitMix64, so that seeds are the same on every machine.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// For targets that draw what they do from their input: any bytes are a story, long ones a long story.
pub(crate) fn noise() -> Vec<Vec<u8>> {
    let mut dice = Dice(1);
    (0..24_u32)
        .map(|at| {
            let words = 8_u64 << (at % 8);
            (0..words).flat_map(|_| dice.next().to_le_bytes()).collect()
        })
        .collect()
}

/// Input with a mode in front, as several targets take it.
pub(crate) fn tagged(tag: u8, bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let mut tagged = vec![tag];
    tagged.extend_from_slice(bytes.as_ref());
    tagged
}

/// The words of the readable seeds in libFuzzer's form: field names are found by nobody who only flips bits.
#[must_use]
pub fn dictionary(seeds: &[Vec<u8>]) -> String {
    const WORDS_MAX: usize = 300;
    let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'@' | b'#');
    let words: BTreeSet<&str> = seeds
        .iter()
        .flat_map(|seed| seed.split(|byte| !is_word(byte)))
        .filter(|word| (3..=40).contains(&word.len()))
        .filter_map(|word| std::str::from_utf8(word).ok())
        .filter(|word| word.starts_with(|first: char| first.is_ascii_alphabetic() || first == '@'))
        .collect();
    words.into_iter().take(WORDS_MAX).map(|word| format!("\"{word}\"\n")).collect()
}
