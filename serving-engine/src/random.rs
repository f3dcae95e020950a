//! The draw's randomness: a function of (seed, choice, position) and nothing else.

/// SplitMix64's output function (Steele, Lea and Flood, OOPSLA 2014): a bijection that scatters near inputs.
const fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Uniform in [0, 1), in steps of 2^-24. Stable for ever: answers can be drawn again from their seed.
pub fn uniform(seed: u64, choice: u32, position: u32) -> f32 {
    let counter = u64::from(choice) << 32 | u64::from(position);
    (mix(mix(seed) ^ counter) >> 40) as f32 / (1u32 << 24) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_never_change() {
        let drawn: Vec<u32> = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
            .map(|(s, c, p)| (uniform(s, c, p) * 16_777_216.0) as u32)
            .to_vec();
        assert_eq!(drawn, GOLDEN);
    }

    const GOLDEN: [u32; 4] = [10_946_269, 6_177_195, 2_964_549, 570_621];

    #[test]
    fn draws_are_spread_evenly() {
        let mut buckets = [0u32; 10];
        for position in 0..100_000 {
            buckets[(uniform(7, 0, position) * 10.0) as usize] += 1;
        }
        assert!(buckets.iter().all(|&count| (9_500..10_500).contains(&count)), "{buckets:?}");
    }
}
