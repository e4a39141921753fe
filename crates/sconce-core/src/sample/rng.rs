//! Random numbers as a function of a counter: Philox4x32-10.
//!
//! Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// Added to the key after each round: the golden ratio and sqrt(3) - 1, in units of 2^-32.
const KEY_STEPS: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// A number in [0, 1), of 53 random bits.
///
/// `seed` is the request's, `sequence_index` says which of its n sequences, `position` how many tokens that sequence
/// has generated, and `draw` tells apart several numbers for the same token. The result depends on nothing else.
pub fn uniform(seed: u64, sequence_index: u32, position: u32, draw: u32) -> f64 {
    let key = [seed as u32, (seed >> 32) as u32];
    let [low, high, ..] = philox4x32([draw, position, sequence_index, 0], key);
    let bits = (u64::from(high) << 32 | u64::from(low)) >> 11;
    bits as f64 * (1.0 / (1u64 << 53) as f64)
}

/// A seed from the operating system, for a request that names none.
pub fn random_seed() -> u64 {
    getrandom::u64().expect("invariant: the operating system has a source of random bytes")
}

fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..ROUNDS {
        let product0 = u64::from(counter[0]) * u64::from(MULTIPLIERS[0]);
        let product1 = u64::from(counter[2]) * u64::from(MULTIPLIERS[1]);
        counter = [
            (product1 >> 32) as u32 ^ counter[1] ^ key[0],
            product1 as u32,
            (product0 >> 32) as u32 ^ counter[3] ^ key[1],
            product0 as u32,
        ];
        key = [key[0].wrapping_add(KEY_STEPS[0]), key[1].wrapping_add(KEY_STEPS[1])];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers that the paper's authors publish with their implementation.
    #[test]
    fn philox_gives_the_published_answers() {
        let check = |counter, key, expected| assert_eq!(philox4x32(counter, key), expected);
        check([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        check([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        check(
            [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
            [0xa409_3822, 0x299f_31d0],
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
        );
    }

    #[test]
    fn uniform_is_in_the_unit_interval_and_every_argument_matters() {
        let mut sum = 0.0;
        for position in 0..10_000 {
            let u = uniform(7, 0, position, 0);
            assert!((0.0..1.0).contains(&u), "position {position}: {u}");
            sum += u;
        }
        assert!((sum / 10_000.0 - 0.5).abs() < 0.02, "mean {}", sum / 10_000.0);

        let base = uniform(7, 1, 2, 3);
        assert_eq!(base, uniform(7, 1, 2, 3));
        for other in [uniform(8, 1, 2, 3), uniform(7 | 1 << 40, 1, 2, 3), uniform(7, 0, 2, 3), uniform(7, 1, 3, 3)] {
            assert_ne!(base, other);
        }
        assert_ne!(base, uniform(7, 1, 2, 4));
    }

    #[test]
    fn random_seeds_differ() {
        assert_ne!(random_seed(), random_seed());
    }
}
