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
