//! [`Random`]: prompts that no cache knows, and the pauses between requests.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Random numbers that follow from a seed (SplitMix64).
#[derive(Debug)]
pub(super) struct Random {
    state: u64,
}

/// A month, after which nobody waits any more, and which clocks can count.
const LONGEST_PAUSE: Duration = Duration::from_secs(30 * 24 * 3600);

/// Words that are one token in most vocabularies.
const WORDS: &[&str] = &[
    "the", "of", "and", "to", "in", "that", "was", "for", "with", "as", "his", "on", "be", "at", "by", "had", "not",
    "are", "but", "from", "or", "have", "an", "they", "which", "one", "you", "were", "her", "all", "she", "there",
    "would", "their", "we", "him", "been", "has", "when", "who", "will", "more", "no", "if", "out", "so", "said",
    "what", "up", "its", "about", "into", "than", "them", "can", "only", "other", "new", "some", "could", "time",
    "these", "two", "may", "then", "do", "first", "any", "my", "now", "such", "like", "our", "over", "man", "me",
    "even", "most", "made", "after", "also", "did", "many", "before", "must", "through", "back", "years", "where",
    "much", "your", "way", "well", "down", "should", "because", "each", "just", "those", "people", "how", "too",
    "little", "state", "good", "very", "make", "world", "still", "own", "see", "men", "work", "long", "get", "here",
    "between", "both", "life", "being", "under", "never", "day", "same", "another", "know", "while", "last", "might",
    "us", "great", "old", "year", "off", "come", "since", "against", "go", "came", "right", "used", "take", "three",
];

impl Random {
    /// The numbers of `seed`.
    pub(super) fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`, which is not 0. That some are likelier by 2^-32 does no harm here.
    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// So many token ids of a vocabulary.
    pub(super) fn token_ids(&mut self, len: usize, vocab_size: usize) -> Vec<u32> {
        (0..len).map(|_| self.below(vocab_size) as u32).collect()
    }

    /// A text of so many common words.
    pub(super) fn words(&mut self, len: usize) -> String {
        (0..len).map(|_| WORDS[self.below(WORDS.len())]).collect::<Vec<_>>().join(" ")
    }

    /// Above 0 and at most 1.
    fn share(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// A normal number, of mean 0 and deviation 1.
    fn normal(&mut self) -> f64 {
        (-2.0 * self.share().ln()).sqrt() * (std::f64::consts::TAU * self.share()).cos()
    }

    /// A number whose logarithm is normal with that deviation, and whose mean is `mean`.
    pub(super) fn log_normal(&mut self, mean: f64, deviation: f64) -> f64 {
        (mean.ln() - deviation * deviation / 2.0 + deviation * self.normal()).exp()
    }

    /// The pause until the next of events that come at random, so many a second on average: none where that is
    /// infinite.
    pub(super) fn pause(&mut self, events_per_s: f64) -> Duration {
        Duration::try_from_secs_f64(-self.share().ln() / events_per_s)
            .map_or(LONGEST_PAUSE, |pause| pause.min(LONGEST_PAUSE))
    }
}

/// A seed that was not used before.
pub(super) fn fresh_seed() -> u64 {
    // JSON's readers keep whole numbers of 53 bits.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64) & ((1 << 53) - 1)
}
