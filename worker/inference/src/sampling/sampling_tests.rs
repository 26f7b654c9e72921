use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

fn options(temperature: f32, top_p: f32) -> SamplingOptions {
    SamplingOptions { temperature, top_p, ..SamplingOptions::default() }
}

/// Draws from logits that nothing adjusts.
fn draw_at(logits: &[f32], options: &SamplingOptions, seed: u64, choice: u32, position: u32) -> u32 {
    sample_adjusted(logits, options, uniform(seed, choice, position)).unwrap_or(0)
}

#[test]
fn greedy_takes_the_lowest_id_of_the_largest() {
    assert_eq!(draw_at(&[1.0, 3.0, 3.0, 2.0], &options(0.0, 1.0), 7, 0, 0), 1);
    assert_eq!(draw_at(&[-5.0, -1.0], &options(0.0, 0.1), 7, 0, 0), 1);
    assert_eq!(draw_at(&[f32::NAN, f32::NEG_INFINITY, -1e30], &options(0.0, 1.0), 7, 0, 0), 2);
}

pub(super) fn chi_square(observed: &[u32], expected: &[f64]) -> f64 {
    let terms = observed.iter().zip(expected).filter(|&(_, &expected)| expected > 0.0);
    terms.map(|(&observed, &expected)| (f64::from(observed) - expected).powi(2) / expected).sum()
}

/// The distribution, computed in the plainest way.
fn exact(logits: &[f64], options: &SamplingOptions) -> Vec<f64> {
    let temperature = f64::from(options.temperature);
    let mut shares: Vec<f64> = logits.iter().map(|logit| (logit / temperature).exp()).collect();
    let most = shares.iter().copied().fold(0.0, f64::max);
    shares.iter_mut().filter(|p| **p < f64::from(options.min_p) * most).for_each(|p| *p = 0.0);
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| shares[b].total_cmp(&shares[a]));
    if options.top_k > 0 {
        order.iter().skip(options.top_k as usize).for_each(|&id| shares[id] = 0.0);
    }
    normalise(&mut shares);
    let mut mass = 0.0;
    for id in order {
        if mass >= f64::from(options.top_p) {
            shares[id] = 0.0;
        }
        mass += shares[id];
    }
    normalise(&mut shares);
    shares
}

fn normalise(shares: &mut [f64]) {
    let sum: f64 = shares.iter().sum();
    shares.iter_mut().for_each(|share| *share /= sum);
}

/// Checks 40,000 draws of a sampler, each at another position, against the exact distribution of
/// logits after adjustment. Needs 8 tokens.
pub(super) fn assert_follows(sampler: &Sampler, logits: &[f32], adjusted: &[f64]) {
    const DRAWS: u32 = 40_000;
    let mut observed = [0; 8];
    for position in 0..DRAWS {
        let sampler = Sampler { position: sampler.position + position, ..sampler.clone() };
        observed[sampler.sample(logits) as usize] += 1;
    }
    let shares = exact(adjusted, &sampler.options);
    let expected: Vec<f64> = shares.iter().map(|share| share * f64::from(DRAWS)).collect();
    for (id, &share) in shares.iter().enumerate() {
        assert!(share > 0.0 || observed[id] == 0, "{id} is excluded by {:?}", sampler.options);
    }
    let distance = chi_square(&observed, &expected);
    let candidates = shares.iter().filter(|&&share| share > 0.0).count();
    // Of 1 to 7 degrees of freedom, p = 0.001.
    let critical = [0.0, 10.83, 13.82, 16.27, 18.47, 20.52, 22.46, 24.32][candidates - 1];
    assert!(distance <= critical, "{:?}: {distance} is above {critical}", sampler.options);
}

#[test]
fn draws_follow_the_distribution() {
    let logits = [0.1, 2.0, -1.0, 1.5, 0.7, -3.0, 1.9, 0.0];
    let of = |temperature, top_p, top_k, min_p| SamplingOptions {
        temperature,
        top_p,
        top_k,
        min_p,
        ..SamplingOptions::default()
    };
    for options in [
        of(1.0, 1.0, 0, 0.0),
        of(0.5, 1.0, 0, 0.0),
        of(1.7, 1.0, 0, 0.0),
        of(1.0, 0.7, 0, 0.0),
        of(0.8, 0.5, 0, 0.0),
        of(1.3, 0.95, 0, 0.0),
        of(1.0, 1.0, 1, 0.0),
        of(1.0, 1.0, 3, 0.0),
        of(1.5, 1.0, 7, 0.0),
        of(1.0, 1.0, 8, 0.0),
        of(1.0, 1.0, u32::MAX, 0.0),
        of(1.0, 1.0, 0, 0.2),
        of(2.0, 1.0, 0, 0.2),
        of(0.6, 1.0, 0, 0.01),
        of(1.0, 1.0, 0, 1.0),
        // Here the order matters: top_p sees what min_p and top_k leave, made probabilities again.
        of(1.0, 0.8, 4, 0.0),
        of(1.0, 0.8, 0, 0.3),
        of(1.9, 0.9, 5, 0.25),
    ] {
        let sampler = Sampler::new(options, 99, 0, &[], Vec::new());
        assert_follows(&sampler, &logits, &logits.map(f64::from));
    }
}

#[test]
fn of_equals_top_k_keeps_the_lowest_ids() {
    let options = SamplingOptions { top_k: 3, ..SamplingOptions::default() };
    let logits = [1.0, 2.0, 1.0, 1.0, 2.0, 0.0];
    let drawn: HashSet<u32> = (0..500).map(|position| draw_at(&logits, &options, 4, 0, position)).collect();
    assert_eq!(drawn, HashSet::from([0, 1, 4]));
}

#[test]
fn choices_are_independent() {
    let logits = [0.0; 4];
    let mut pairs = [0; 16];
    for position in 0..16_000 {
        let first = draw_at(&logits, &options(1.0, 1.0), 5, 0, position);
        let second = draw_at(&logits, &options(1.0, 1.0), 5, 1, position);
        pairs[(first * 4 + second) as usize] += 1;
    }
    assert!(chi_square(&pairs, &[1000.0; 16]) < 37.7, "15 degrees of freedom, p = 0.001");
}

#[test]
fn a_small_top_p_leaves_the_most_probable_token() {
    let logits = [0.0, 1.0, 0.5, 1.0];
    for position in 0..100 {
        assert_eq!(draw_at(&logits, &options(2.0, 0.0), 3, 0, position), 1);
        assert_eq!(draw_at(&logits, &options(2.0, 1e-6), 3, 0, position), 1);
        assert_eq!(draw_at(&logits, &options(1e-6, 1.0), 3, 0, position) % 2, 1);
    }
}

#[test]
fn impossible_logits_are_never_drawn() {
    let logits = [f32::NAN, 0.0, f32::NEG_INFINITY, 0.0];
    for position in 0..100 {
        assert_eq!(draw_at(&logits, &options(1.0, 1.0), 3, 0, position) % 2, 1);
    }
    let logits = [f32::INFINITY, 0.0, f32::INFINITY];
    for position in 0..100 {
        assert_ne!(draw_at(&logits, &options(1.0, 1.0), 3, 0, position), 1);
    }
    for nothing in [&[][..], &[f32::NAN, f32::NEG_INFINITY]] {
        assert_eq!(draw_at(nothing, &options(1.0, 0.9), 3, 0, 0), 0);
    }
}

#[test]
fn choices_have_the_same_distribution_and_draws_of_their_own() {
    // Distribution of each, and of pairs of consecutive ones, against independence.
    let logits = [0.0, 0.7, -0.4, 1.1];
    let shares = exact(&logits.map(f64::from), &options(1.0, 1.0));
    const DRAWS: u32 = 20_000;
    let mut pairs = [[0; 16]; 15];
    let mut singles = [[0; 4]; 16];
    for seed in 0..u64::from(DRAWS) {
        let drawn: Vec<u32> =
            (0..16).map(|choice| draw_at(&logits, &options(1.0, 1.0), seed, choice, 3)).collect();
        drawn.iter().zip(&mut singles).for_each(|(id, counts)| counts[*id as usize] += 1);
        drawn
            .windows(2)
            .zip(&mut pairs)
            .for_each(|(pair, counts)| counts[(pair[0] * 4 + pair[1]) as usize] += 1);
    }
    let expected: Vec<f64> = shares.iter().map(|share| share * f64::from(DRAWS)).collect();
    for counts in singles {
        assert!(chi_square(&counts, &expected) < 21.1, "3 degrees of freedom, p = 0.0001");
    }
    let expected: Vec<f64> =
        shares.iter().flat_map(|a| shares.iter().map(move |b| a * b * f64::from(DRAWS))).collect();
    for counts in pairs {
        assert!(chi_square(&counts, &expected) < 44.3, "15 degrees of freedom, p = 0.0001");
    }
}

#[test]
fn the_device_picks_only_where_logits_are_all_it_takes() {
    let on_device = |options: SamplingOptions, ends: &[u32], position: u32| {
        let sampler = Sampler::new(options, 9, 2, &[1], ends.to_vec());
        Sampler { position, ..sampler }.for_device(0)
    };
    let plain =
        SamplingOptions { temperature: 0.7, top_p: 0.9, top_k: 5, min_p: 0.1, ..SamplingOptions::default() };
    let row = on_device(plain.clone(), &[3], 4).unwrap();
    assert_eq!((row.temperature, row.top_p, row.top_k, row.min_p), (0.7, 0.9, 5, 0.1));
    assert!((f64::from(row.random) - uniform(9, 2, 4)).abs() < 1e-7);
    let adjusted = [
        SamplingOptions { presence_penalty: 0.1, ..plain.clone() },
        SamplingOptions { frequency_penalty: 0.1, ..plain.clone() },
        SamplingOptions { repetition_penalty: 1.1, ..plain.clone() },
        SamplingOptions { logit_bias: vec![(1, 1.0)], ..plain.clone() },
    ];
    for options in adjusted {
        assert_eq!(on_device(options, &[], 4), None);
    }
    let least = SamplingOptions { min_tokens: 4, ..plain };
    assert_eq!(on_device(least.clone(), &[3], 3), None);
    assert!(on_device(least.clone(), &[3], 4).is_some());
    assert!(on_device(least, &[], 3).is_some(), "nothing ends it anyway");
}

#[test]
fn the_device_can_draw_before_the_tokens_before_are_known() {
    let least = SamplingOptions { temperature: 0.7, min_tokens: 5, ..SamplingOptions::default() };
    let early = Sampler::new(least, 9, 2, &[1], vec![3]);
    let mut later = early.clone();
    for ahead in 0..9 {
        assert_eq!(early.for_device(ahead), later.for_device(0));
        assert_eq!(early.for_device(ahead).is_some(), ahead >= 5);
        later.record(ahead);
    }
}

#[test]
fn no_random_number_for_the_device_is_1() {
    let sampler = Sampler::new(options(1.0, 1.0), 0, 0, &[], Vec::new());
    for position in 0..100_000 {
        let row = Sampler { position, ..sampler.clone() }.for_device(0).unwrap();
        assert!((0.0..1.0).contains(&row.random));
    }
}

proptest! {
    #[test]
    fn any_logits_give_an_id_of_theirs(
        logits in prop::collection::vec(prop::num::f32::ANY, 1..600),
        (temperature, top_p, min_p) in (prop::num::f32::ANY, prop::num::f32::ANY, prop::num::f32::ANY),
        top_k in prop_oneof![0_u32..700, any::<u32>()],
        seed: u64,
        position: u32,
    ) {
        let options = SamplingOptions { temperature, top_p, min_p, top_k, ..SamplingOptions::default() };
        let id = draw_at(&logits, &options, seed, 0, position);
        prop_assert!((id as usize) < logits.len());
        let possible = |logit: f32| logit > f32::NEG_INFINITY;
        prop_assert!(possible(logits[id as usize]) || !logits.iter().copied().any(possible));
    }

    #[test]
    fn a_top_k_of_1_is_greedy_at_any_temperature(
        logits in prop::collection::vec(-20_f32..20.0, 1..600),
        temperature in 0.01_f32..2.0,
        random in 0.0..1.0,
    ) {
        let options = SamplingOptions { temperature, top_k: 1, ..SamplingOptions::default() };
        let greedy = SamplingOptions { temperature: 0.0, ..SamplingOptions::default() };
        prop_assert_eq!(
            sample_adjusted(&logits, &options, random),
            sample_adjusted(&logits, &greedy, random)
        );
    }
}
