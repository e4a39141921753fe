//! [`TokenMask`]: the tokens that a grammar allows next.

/// The tokens of a vocabulary that may come next, a bit each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenMask {
    words: Vec<u32>,
}

impl TokenMask {
    /// Bit `id % 32` of word `id / 32` is set where the token is allowed; tokens beyond the last word are not.
    pub fn from_words(words: Vec<u32>) -> Self {
        Self { words }
    }

    /// The tokens of a list.
    pub fn from_ids(ids: impl IntoIterator<Item = u32>) -> Self {
        let mut mask = Self::default();
        for id in ids {
            let word = id as usize / 32;
            if mask.words.len() <= word {
                mask.words.resize(word + 1, 0);
            }
            mask.words[word] |= 1 << (id % 32);
        }
        mask
    }

    /// All tokens of a vocabulary of so many, but for those of a list.
    pub fn all_but(num_tokens: usize, ids: impl IntoIterator<Item = u32>) -> Self {
        let mut words = vec![u32::MAX; num_tokens.div_ceil(32)];
        for id in ids {
            if let Some(word) = words.get_mut(id as usize / 32) {
                *word &= !(1 << (id % 32));
            }
        }
        Self { words }
    }

    /// The tokens of either.
    pub fn or(mut self, other: &Self) -> Self {
        self.words.resize(self.words.len().max(other.words.len()), 0);
        self.words.iter_mut().zip(&other.words).for_each(|(word, other)| *word |= other);
        self
    }

    /// The bits.
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// Whether a token is allowed.
    pub fn allows(&self, id: u32) -> bool {
        self.words.get(id as usize / 32).is_some_and(|word| word >> (id % 32) & 1 == 1)
    }

    /// The tokens, ascending.
    pub fn ids(&self) -> impl Iterator<Item = u32> {
        let bits = |word: u32| (0..32u32).filter(move |bit| word >> bit & 1 == 1);
        self.words.iter().zip(0u32..).flat_map(move |(&word, idx)| bits(word).map(move |bit| 32 * idx + bit))
    }

    /// Makes all other logits of a row -inf.
    pub fn apply(&self, row: &mut [f32]) {
        let num_covered = row.len().min(32 * self.words.len());
        let (covered, beyond) = row.split_at_mut(num_covered);
        for (logits, &word) in covered.chunks_mut(32).zip(&self.words) {
            match word {
                u32::MAX => {}
                0 => logits.fill(f32::NEG_INFINITY),
                _ => {
                    for (bit, logit) in logits.iter_mut().enumerate() {
                        if word >> bit & 1 == 0 {
                            *logit = f32::NEG_INFINITY;
                        }
                    }
                }
            }
        }
        beyond.fill(f32::NEG_INFINITY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_allowed_stays() {
        for len in [1usize, 31, 32, 33, 64, 70, 200] {
            let ids: Vec<u32> = (0..100u32).filter(|id| id % 7 == 3 || (32..64).contains(id)).collect();
            let mask = TokenMask::from_ids(ids.iter().copied());
            let mut row: Vec<f32> = (0..len).map(|id| id as f32).collect();
            mask.apply(&mut row);
            for (id, &logit) in row.iter().enumerate() {
                let is_allowed = ids.contains(&(id as u32));
                assert_eq!(mask.allows(id as u32), is_allowed);
                assert_eq!(logit, if is_allowed { id as f32 } else { f32::NEG_INFINITY }, "{id} of {len}");
            }
            assert_eq!(mask.ids().collect::<Vec<_>>(), ids);
        }
        let all = TokenMask::all_but(64, [3, 40, 99]);
        assert_eq!(all.ids().collect::<Vec<_>>(), (0..64).filter(|id| ![3, 40].contains(id)).collect::<Vec<_>>());
        let both = TokenMask::from_ids([1]).or(&TokenMask::from_ids([70, 2]));
        assert_eq!(both.ids().collect::<Vec<_>>(), [1, 2, 70]);
        assert!(!TokenMask::default().allows(0));
        assert!(!TokenMask::from_ids([5]).allows(u32::MAX));
    }
}
