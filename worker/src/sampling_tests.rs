use proptest::prelude::*;

use super::*;

fn params(temperature: f32, top_p: f32, seed: u64) -> SamplingParams {
    SamplingParams { temperature, top_p, seed }
}

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

/// What is written here must never change: a job that another version takes over depends on it.
/// Computed apart from this code; the first follows from the first known answer.
#[test]
fn uniform_is_pinned() {
    assert_eq!(uniform(0, 0, 0), 0.8805201978886142);
    assert_eq!(uniform(0x0123_4567_89ab_cdef, 2, 3), 0.6505301825225129);
}

#[test]
fn uniform_depends_on_each_argument_and_all_of_the_seed() {
    let base = uniform(1, 2, 3);
    assert_eq!(base, uniform(1, 2, 3));
    for other in
        [uniform(0, 2, 3), uniform(1 | 1 << 40, 2, 3), uniform(1, 3, 3), uniform(1, 2, 4), uniform(1, 3, 2)]
    {
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

#[test]
fn greedy_takes_the_lowest_id_of_the_largest() {
    assert_eq!(sample(&[1.0, 3.0, 3.0, 2.0], &params(0.0, 1.0, 7), 0, 0), 1);
    assert_eq!(sample(&[-5.0, -1.0], &params(0.0, 0.1, 7), 0, 0), 1);
    assert_eq!(sample(&[f32::NAN, f32::NEG_INFINITY, -1e30], &params(0.0, 1.0, 7), 0, 0), 2);
}

fn chi_square(observed: &[u32], expected: &[f64]) -> f64 {
    let terms = observed.iter().zip(expected).filter(|&(_, &expected)| expected > 0.0);
    terms.map(|(&observed, &expected)| (f64::from(observed) - expected).powi(2) / expected).sum()
}

/// The distribution, computed in the plainest way.
fn exact(logits: &[f32], temperature: f64, top_p: f64) -> Vec<f64> {
    let weights: Vec<f64> = logits.iter().map(|&logit| (f64::from(logit) / temperature).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]));
    let mut kept = vec![0.0; logits.len()];
    let mut mass = 0.0;
    for id in order {
        kept[id] = weights[id] / sum;
        mass += kept[id];
        if mass >= top_p {
            break;
        }
    }
    kept.iter().map(|weight| weight / mass).collect()
}

#[test]
fn draws_follow_the_distribution() {
    const DRAWS: u32 = 40_000;
    let logits = [0.1, 2.0, -1.0, 1.5, 0.7, -3.0, 1.9, 0.0];
    for (temperature, top_p) in [(1.0, 1.0), (0.5, 1.0), (1.7, 1.0), (1.0, 0.7), (0.8, 0.5), (1.3, 0.95)] {
        let mut observed = [0; 8];
        for position in 0..DRAWS {
            observed[sample(&logits, &params(temperature, top_p, 99), 0, position) as usize] += 1;
        }
        let shares = exact(&logits, f64::from(temperature), f64::from(top_p));
        let expected: Vec<f64> = shares.iter().map(|share| share * f64::from(DRAWS)).collect();
        for (id, &share) in shares.iter().enumerate() {
            assert!(share > 0.0 || observed[id] == 0, "{id} is outside the nucleus of {top_p}");
        }
        let distance = chi_square(&observed, &expected);
        assert!(distance < 24.3, "{temperature}, {top_p}: {distance} (7 degrees of freedom, p = 0.001)");
    }
}

#[test]
fn choices_are_independent() {
    let logits = [0.0; 4];
    let mut pairs = [0; 16];
    for position in 0..16_000 {
        let first = sample(&logits, &params(1.0, 1.0, 5), 0, position);
        let second = sample(&logits, &params(1.0, 1.0, 5), 1, position);
        pairs[(first * 4 + second) as usize] += 1;
    }
    assert!(chi_square(&pairs, &[1000.0; 16]) < 37.7, "15 degrees of freedom, p = 0.001");
}

#[test]
fn a_small_top_p_leaves_the_most_probable_token() {
    let logits = [0.0, 1.0, 0.5, 1.0];
    for position in 0..100 {
        assert_eq!(sample(&logits, &params(2.0, 0.0, 3), 0, position), 1);
        assert_eq!(sample(&logits, &params(2.0, 1e-6, 3), 0, position), 1);
        assert_eq!(sample(&logits, &params(1e-6, 1.0, 3), 0, position) % 2, 1);
    }
}

#[test]
fn a_nucleus_larger_than_the_first_sort_is_found() {
    let weights: Vec<f64> = (0..5000).map(|id| if id % 2 == 0 { 1.0 } else { 2.0 }).collect();
    let (nucleus, mass) = nucleus(&weights, 0.9);
    assert_eq!((nucleus.len(), mass), (2500 + 1750, 6750.0));
    let ids: Vec<u32> = nucleus.iter().map(|&(id, _)| id).collect();
    let expected: Vec<u32> = (0..2500).map(|i| 2 * i + 1).chain((0..1750).map(|i| 2 * i)).collect();
    assert_eq!(ids, expected);
}

#[test]
fn impossible_logits_are_never_drawn() {
    let logits = [f32::NAN, 0.0, f32::NEG_INFINITY, 0.0];
    for position in 0..100 {
        assert_eq!(sample(&logits, &params(1.0, 1.0, 3), 0, position) % 2, 1);
    }
    let logits = [f32::INFINITY, 0.0, f32::INFINITY];
    for position in 0..100 {
        assert_ne!(sample(&logits, &params(1.0, 1.0, 3), 0, position), 1);
    }
    for nothing in [&[][..], &[f32::NAN, f32::NEG_INFINITY]] {
        assert_eq!(sample(nothing, &params(1.0, 0.9, 3), 0, 0), 0);
    }
}

proptest! {
    #[test]
    fn any_logits_give_an_id_of_theirs(
        logits in prop::collection::vec(prop::num::f32::ANY, 1..600),
        temperature in prop::num::f32::ANY,
        top_p in prop::num::f32::ANY,
        seed: u64,
        position: u32,
    ) {
        let id = sample(&logits, &params(temperature, top_p, seed), 0, position);
        prop_assert!((id as usize) < logits.len());
        let possible = |logit: f32| logit > f32::NEG_INFINITY;
        prop_assert!(possible(logits[id as usize]) || !logits.iter().copied().any(possible));
    }
}
