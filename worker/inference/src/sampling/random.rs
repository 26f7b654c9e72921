//! Random numbers as a pure function of seed, choice and position.

/// A number in [0, 1) with 53 random bits, a pure function of its arguments.
pub(super) fn uniform(seed: u64, choice: u32, position: u32) -> f64 {
    let [a, b, _, _] = philox4x32_10([position, choice, 0, 0], [seed as u32, (seed >> 32) as u32]);
    let bits = ((u64::from(b) << 32) | u64::from(a)) >> 11;
    bits as f64 / (1_u64 << 53) as f64
}

/// Philox4x32-10: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3"
/// (SC 2011).
fn philox4x32_10(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let [c0, c1, c2, c3] = counter;
        let (high0, low0) = wide_product(0xD251_1F53, c0);
        let (high1, low1) = wide_product(0xCD9E_8D57, c2);
        counter = [high1 ^ c1 ^ key[0], low1, high0 ^ c3 ^ key[1], low0];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

fn wide_product(a: u32, b: u32) -> (u32, u32) {
    let product = u64::from(a) * u64::from(b);
    ((product >> 32) as u32, product as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::tests::chi_square;

    /// The known answers that come with Random123, the authors' own implementation.
    #[test]
    fn philox_gives_the_known_answers() {
        assert_eq!(philox4x32_10([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox4x32_10([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox4x32_10([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    /// These values must never change: jobs that are taken over by another version depend on them. The
    /// values were computed independently; the first follows from the first known answer.
    #[test]
    fn uniform_is_pinned() {
        assert_eq!(uniform(0, 0, 0), 0.8805201978886142);
        assert_eq!(uniform(0x0123_4567_89ab_cdef, 2, 3), 0.6505301825225129);
    }

    #[test]
    fn uniform_depends_on_each_argument_and_all_of_the_seed() {
        let base = uniform(1, 2, 3);
        assert_eq!(base, uniform(1, 2, 3));
        for other in [
            uniform(0, 2, 3),
            uniform(1 | 1 << 40, 2, 3),
            uniform(1, 3, 3),
            uniform(1, 2, 4),
            uniform(1, 3, 2),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn uniform_is_uniform() {
        let mut buckets = [0_u32; 64];
        for position in 0..64_000 {
            let number = uniform(42, 0, position);
            assert!((0.0..1.0).contains(&number));
            buckets[(number * 64.0) as usize] += 1;
        }
        let expected = [1000.0; 64];
        assert!(chi_square(&buckets, &expected) < 103.4, "63 degrees of freedom, p = 0.001");
    }
}
