//! Sampling.

use burn::tensor::Tensor;
use emberline_kernels::{SamplingParams, reference, sample};

use crate::support::{Random, both};

const GREEDY: SamplingParams =
    SamplingParams { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, random: 0.0 };

fn sampled(logits: Tensor<2>, params: &[SamplingParams]) -> Vec<i64> {
    sample(logits, params).into_data().iter::<i64>().collect()
}

#[test]
fn greedy_sampling_takes_the_largest_logit_and_the_lowest_id_of_several() {
    let mut random = Random::new(21);
    let (rows, vocabulary) = (5, 1777);
    let mut numbers = random.numbers(rows * vocabulary);
    numbers[300] = 2.0;
    numbers[299] = 2.0;
    numbers[vocabulary..2 * vocabulary].fill(f32::NEG_INFINITY);
    numbers[vocabulary + 1500] = -1.0e9;
    let (logits, _) = both(numbers.clone(), [rows, vocabulary]);
    let expected: Vec<i64> = numbers
        .chunks(vocabulary)
        .map(|row| {
            (0..)
                .zip(row)
                .fold(
                    (0, f32::NEG_INFINITY),
                    |best, (id, &logit)| if logit > best.1 { (id, logit) } else { best },
                )
                .0
        })
        .collect();
    assert_eq!(expected[..2], [299, 1500]);
    assert_eq!(sampled(logits, &[GREEDY; 5]), expected);
}

#[test]
fn tokens_are_drawn_as_the_reference_draws_them() {
    let mut random = Random::new(22);
    let vocabulary = 700;
    let mut same = 0;
    let mut count = 0;
    for (temperature, top_k, top_p, min_p) in [
        (1.0, 0, 1.0, 0.0),
        (0.7, 40, 1.0, 0.0),
        (1.3, 0, 0.8, 0.0),
        (0.9, 0, 1.0, 0.1),
        (1.0, 50, 0.9, 0.02),
        (2.0, 5, 0.5, 0.0),
        (0.01, 1, 0.1, 0.9),
    ] {
        let rows: Vec<SamplingParams> = (0..12)
            .map(|_| SamplingParams { temperature, top_k, top_p, min_p, random: random.number().abs() })
            .collect();
        let numbers = random.numbers(12 * vocabulary).iter().map(|number| 5.0 * number).collect();
        let (logits, logits_cpu) = both(numbers, [12, vocabulary]);
        let expected: Vec<i64> = reference::sample(logits_cpu, &rows).into_data().iter::<i64>().collect();
        let got = sampled(logits, &rows);
        same += got.iter().zip(&expected).filter(|(got, expected)| got == expected).count();
        count += got.len();
        println!("{temperature} {top_k} {top_p} {min_p}: {got:?} {expected:?}");
    }
    // A random number next to a boundary between two tokens may fall to either side.
    assert!(same + 1 >= count, "{same} of {count} tokens are the reference's");
}

#[test]
fn filters_keep_exactly_the_right_tokens_among_ties() {
    // Ids 3 and 9 share the first place, 1, 4 and 7 the second.
    let mut numbers = [-4.0_f32; 12];
    for id in [3, 9] {
        numbers[id] = 2.0;
    }
    for id in [1, 4, 7] {
        numbers[id] = 1.0;
    }
    let reachable = |params: SamplingParams| {
        let rows: Vec<SamplingParams> =
            (0..64).map(|i| SamplingParams { random: i as f32 / 64.0, ..params }).collect();
        let many = numbers.iter().copied().cycle().take(64 * 12).collect();
        let mut ids = sampled(both(many, [64, 12]).0, &rows);
        ids.sort_unstable();
        ids.dedup();
        ids
    };
    let any = SamplingParams { temperature: 1.0, ..GREEDY };
    assert_eq!(reachable(SamplingParams { top_k: 1, ..any }), [3]);
    assert_eq!(reachable(SamplingParams { top_k: 2, ..any }), [3, 9]);
    assert_eq!(reachable(SamplingParams { top_k: 4, ..any }), [1, 3, 4, 9]);
    assert_eq!(reachable(SamplingParams { min_p: 0.5, ..any }), [3, 9]);
    assert_eq!(reachable(SamplingParams { min_p: 0.3, ..any }), [1, 3, 4, 7, 9]);
    // The first place has 0.63 of the mass, a tie for the second 0.116 each.
    assert_eq!(reachable(SamplingParams { top_p: 0.3, ..any }), [3]);
    assert_eq!(reachable(SamplingParams { top_p: 0.6, ..any }), [3, 9]);
    assert_eq!(reachable(SamplingParams { top_p: 0.7, ..any }), [1, 3, 9]);
    assert_eq!(reachable(SamplingParams { top_p: 0.8, ..any }), [1, 3, 4, 9]);
    assert_eq!(reachable(SamplingParams { top_k: 3, top_p: 0.9, ..any }), [1, 3, 9]);
}

#[test]
fn a_row_is_sampled_the_same_alone_or_batched() {
    let mut random = Random::new(23);
    let (rows, vocabulary) = (20, 3000);
    let (logits, _) = both(random.numbers(rows * vocabulary), [rows, vocabulary]);
    let options: Vec<SamplingParams> = (0..rows)
        .map(|row| SamplingParams {
            temperature: [0.0, 0.8, 1.5][row % 3],
            top_k: [0, 100][row % 2],
            top_p: [1.0, 0.7, 0.95][row / 2 % 3],
            min_p: [0.0, 0.3][row / 3 % 2],
            random: random.number().abs(),
        })
        .collect();
    let all = sampled(logits.clone(), &options);
    for row in [0, 7, 13, 19] {
        let alone = sampled(logits.clone().narrow(0, row, 1), &options[row..=row]);
        assert_eq!(alone, all[row..=row]);
    }
}

/// The tokens that the filters keep, by id, each with its probability in units of 2^-31.
///
/// The arithmetic is that of the kernels, with a sort in place of the search by digits: by logit, and of equal
/// ones the lowest id first.
fn kept(row: &[f32], params: SamplingParams) -> Vec<(usize, u32)> {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f32> = row.iter().map(|logit| ((logit - largest) / params.temperature).exp()).collect();
    let unit = (2f64.powi(31) / weights.iter().copied().map(f64::from).sum::<f64>()) as f32;
    let mass = |id: usize| (weights[id].mul_add(unit, 0.5) as u32) * u32::from(weights[id] >= params.min_p);
    let mut kept: Vec<(usize, u32)> =
        (0..row.len()).map(|id| (id, mass(id))).filter(|(_, mass)| *mass > 0).collect();
    kept.sort_by(|(a, _), (b, _)| row[*b].total_cmp(&row[*a]).then(a.cmp(b)));
    if params.top_k > 0 {
        kept.truncate(params.top_k as usize);
    }
    if params.top_p < 1.0 {
        let all: u32 = kept.iter().map(|(_, mass)| mass).sum();
        let wanted = ((all as f32 * params.top_p) as u32).max(1);
        let before = kept.iter().scan(0, |sum, (_, mass)| Some(std::mem::replace(sum, *sum + mass)));
        let count = before.take_while(|before| *before < wanted).count();
        kept.truncate(count);
    }
    kept.sort_unstable();
    kept
}

/// The first id whose cumulative probability exceeds the random share of the total.
fn drawn(kept: &[(usize, u32)], random: f32) -> usize {
    let all: u32 = kept.iter().map(|(_, mass)| mass).sum();
    let target = ((all as f32 * random) as u32).min(all - 1);
    let mut sums = kept.iter().scan(0, |sum, (id, mass)| {
        *sum += mass;
        Some((*id, *sum))
    });
    sums.find(|(_, sum)| *sum > target).unwrap().0
}

/// Whether `token` can be drawn if exponentials and sums are rounded a little differently.
fn is_near(row: &[f32], params: SamplingParams, token: usize) -> bool {
    const NEAR: f32 = 1e-5;
    let near = [-NEAR, 0.0, NEAR];
    near.iter().flat_map(|p| near.map(|m| (p, m))).any(|(p, m)| {
        let top_p = if params.top_p < 1.0 { params.top_p + p } else { params.top_p };
        let kept = kept(row, SamplingParams { top_p, min_p: params.min_p * (1.0 + m), ..params });
        let ends = [-NEAR, NEAR].map(|r| drawn(&kept, (params.random + r).clamp(0.0, 1.0)));
        kept.iter().any(|(id, _)| *id == token) && (ends[0]..=ends[1]).contains(&token)
    })
}

/// A row of one of many kinds: spread, with many ties, flat, with tokens that are not allowed.
fn row(random: &mut Random, vocabulary: usize, kind: usize) -> Vec<f32> {
    let number = |random: &mut Random| match kind {
        0 => 8.0 * random.number(),
        1 => (4.0 * random.number()).round(),
        2 => 0.25,
        3 if random.below(3) > 0 => f32::NEG_INFINITY,
        _ => 30.0 * random.number().powi(3),
    };
    let mut row: Vec<f32> = (0..vocabulary).map(|_| number(random)).collect();
    row[random.below(vocabulary)] = 8.0;
    row
}

#[test]
fn tokens_are_those_of_a_plain_sampler_whatever_the_vocabulary_and_the_filters() {
    const SAMPLES: usize = 8;
    let mut random = Random::new(24);
    let (mut same, mut count) = (0, 0);
    let sizes = [1, 2, 5, 255, 256, 257, 4095, 4096, 4097, 8192, 12_289, 49_152, 130_000];
    let sizes = sizes.into_iter().chain((0..12).map(|_| 1 + random.below(20_000))).collect::<Vec<_>>();
    for vocabulary in sizes {
        let kind = random.below(5);
        let rows: Vec<Vec<f32>> =
            (0..SAMPLES).map(|i| row(&mut random, vocabulary, (kind + i) % 5)).collect();
        let mut params = || SamplingParams {
            temperature: [0.3, 0.8, 1.0, 1.7][random.below(4)],
            top_k: [0, 0, 1, 2, 1 + random.below(100) as u32, 1 + random.below(vocabulary) as u32]
                [random.below(6)],
            top_p: [1.0, 1.0, 0.0, 0.1, 0.9, random.number().abs()][random.below(6)],
            min_p: [0.0, 0.0, 0.05, 0.5][random.below(4)],
            random: random.number().abs(),
        };
        let params: [SamplingParams; SAMPLES] = std::array::from_fn(|_| params());
        let tokens = sampled(both(rows.concat(), [SAMPLES, vocabulary]).0, &params);
        for ((row, params), token) in rows.iter().zip(params).zip(tokens) {
            let token = usize::try_from(token).unwrap();
            let expected = drawn(&kept(row, params), params.random);
            assert!(
                token == expected || is_near(row, params, token),
                "{token} instead of {expected} of {vocabulary} with {params:?}"
            );
            same += usize::from(token == expected);
            count += 1;
        }
    }
    println!("{same} of {count} the same");
    // A random number next to a boundary between two tokens may fall to either side.
    assert!(20 * same >= 19 * count, "{same} of {count} tokens are the plain sampler's");
}

#[test]
fn without_a_probable_token_the_first_is_taken() {
    let logits = vec![f32::NEG_INFINITY; 5000];
    let params = SamplingParams { temperature: 1.0, top_k: 3, top_p: 0.5, random: 0.7, ..GREEDY };
    assert_eq!(sampled(both(logits, [1, 5000]).0, &[params]), [0]);
}
