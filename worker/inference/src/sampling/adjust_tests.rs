use proptest::prelude::*;

use super::*;
use crate::sampling::Sampler;
use crate::sampling::tests::assert_follows;

const LOGITS: [f32; 8] = [0.1, 2.0, -1.0, 1.5, 0.7, -3.0, 1.9, 0.0];

/// Options by their names.
macro_rules! options {
    ($($name:ident: $value:expr),*) => {
        SamplingOptions { $($name: $value,)* ..SamplingOptions::default() }
    };
}

/// A sampler that has already picked `answer`.
fn sampler(options: SamplingOptions, prompt: &[u32], answer: &[u32]) -> Sampler {
    let mut sampler = Sampler::new(options, 7, 0, prompt, vec![1, 6]);
    answer.iter().for_each(|&token| sampler.record(token));
    sampler
}

/// The logits after adjustment.
fn adjusted(sampler: &Sampler) -> Vec<f32> {
    sampler.adjustments.apply(&LOGITS, sampler.position).into_owned()
}

#[test]
fn without_options_nothing_is_adjusted() {
    let sampler = sampler(SamplingOptions::default(), &[1, 2], &[3, 3, 4]);
    assert!(matches!(sampler.adjustments.apply(&LOGITS, 3), Cow::Borrowed(_)));
}

#[test]
fn bias_is_added() {
    let sampler = sampler(options!(logit_bias: vec![(0, 2.0), (5, 4.5), (9, 1.0)]), &[], &[]);
    assert_eq!(adjusted(&sampler), [2.1, 2.0, -1.0, 1.5, 0.7, 1.5, 1.9, 0.0]);
}

#[test]
fn presence_counts_once_and_the_prompt_never() {
    let sampler = sampler(options!(presence_penalty: 0.5), &[0, 1], &[1, 2, 2, 2]);
    assert_eq!(adjusted(&sampler), [0.1, 1.5, -1.5, 1.5, 0.7, -3.0, 1.9, 0.0]);
}

#[test]
fn frequency_counts_each_time_and_the_prompt_never() {
    let sampler = sampler(options!(frequency_penalty: -0.5), &[0, 1], &[1, 2, 2, 2]);
    assert_eq!(adjusted(&sampler), [0.1, 2.5, 0.5, 1.5, 0.7, -3.0, 1.9, 0.0]);
}

#[test]
fn repetition_weakens_what_prompt_or_answer_have() {
    let sampler = sampler(options!(repetition_penalty: 2.0), &[1, 5], &[5, 2, 3, 3]);
    assert_eq!(adjusted(&sampler), [0.1, 1.0, -2.0, 0.75, 0.7, -6.0, 1.9, 0.0]);
}

#[test]
fn bias_comes_first_then_repetition_then_the_others() {
    let options = options!(
        logit_bias: vec![(5, 5.0)], repetition_penalty: 2.0, frequency_penalty: 0.25, presence_penalty: 0.5
    );
    let sampler = sampler(options, &[], &[5, 5]);
    // (-3 + 5) / 2 - 2 × 0.25 - 0.5
    assert_eq!(adjusted(&sampler)[5], 0.0);
}

#[test]
fn ends_are_impossible_until_the_least_tokens_are_there_whatever_the_bias() {
    let options = options!(min_tokens: 2, logit_bias: vec![(1, 100.0)], temperature: 0.0);
    let mut sampler = sampler(options, &[], &[]);
    let picked = (0..4).map(|_| {
        let token = sampler.sample(&LOGITS);
        sampler.record(token);
        token
    });
    assert_eq!(picked.collect::<Vec<_>>(), [3, 3, 1, 1]);
}

#[test]
fn greedy_honours_every_adjustment() {
    let greedy = |mut options: SamplingOptions, prompt: &[u32], answer: &[u32]| {
        options.temperature = 0.0;
        sampler(options, prompt, answer).sample(&LOGITS)
    };
    assert_eq!(greedy(options!(), &[1], &[1]), 1);
    assert_eq!(greedy(options!(logit_bias: vec![(1, -100.0)]), &[], &[]), 6);
    assert_eq!(greedy(options!(logit_bias: vec![(5, 100.0)]), &[], &[]), 5);
    assert_eq!(greedy(options!(presence_penalty: 0.2), &[], &[1]), 6);
    assert_eq!(greedy(options!(frequency_penalty: 0.2), &[], &[1, 6, 6]), 1);
    assert_eq!(greedy(options!(repetition_penalty: 1.2), &[1], &[]), 6);
    assert_eq!(greedy(options!(min_tokens: 9), &[], &[]), 3);
}

#[test]
fn draws_follow_the_adjusted_distribution() {
    for options in [
        options!(logit_bias: vec![(5, 4.0), (1, -1.5), (2, -100.0)]),
        options!(presence_penalty: 1.5),
        options!(presence_penalty: -2.0, temperature: 0.7),
        options!(frequency_penalty: 0.8),
        options!(frequency_penalty: -0.9, temperature: 1.6),
        options!(repetition_penalty: 1.8),
        options!(repetition_penalty: 0.6, temperature: 1.4),
        options!(min_tokens: 1_000_000),
        options!(
            logit_bias: vec![(5, 4.0), (7, 1.0)], presence_penalty: 0.4, frequency_penalty: 0.3,
            repetition_penalty: 1.3, temperature: 1.2, top_k: 6, top_p: 0.95, min_p: 0.02
        ),
    ] {
        let (prompt, answer) = ([0, 6, 6], [1, 3, 3, 5, 1, 3]);
        let sampler = sampler(options.clone(), &prompt, &answer);
        assert_follows(&sampler, &LOGITS, &plainly(&LOGITS, &options, &prompt, &answer));
    }
}

/// The adjusted logits, counted anew from prompt and answer; tokens 1 and 6 are ends.
fn plainly(logits: &[f32], options: &SamplingOptions, prompt: &[u32], answer: &[u32]) -> Vec<f64> {
    let adjust = |(token, &logit): (u32, &f32)| {
        let mut logit = f64::from(logit);
        logit += options.logit_bias.iter().find(|(t, _)| *t == token).map_or(0.0, |(_, b)| f64::from(*b));
        if prompt.contains(&token) || answer.contains(&token) {
            let penalty = f64::from(options.repetition_penalty);
            logit = if logit > 0.0 { logit / penalty } else { logit * penalty };
        }
        let count = answer.iter().filter(|t| **t == token).count();
        logit -= f64::from(options.frequency_penalty) * count as f64;
        logit -= if count > 0 { f64::from(options.presence_penalty) } else { 0.0 };
        let ends = matches!(token, 1 | 6) && answer.len() < options.min_tokens as usize;
        if ends { f64::NEG_INFINITY } else { logit }
    };
    (0..).zip(logits).map(adjust).collect()
}

proptest! {
    /// What is kept from step to step says the same as counting anew at each.
    #[test]
    fn counts_kept_equal_counts_taken(
        steps in prop::collection::vec(prop::collection::vec(-8_f32..8.0, 8), 1..60),
        prompt in prop::collection::vec(0_u32..8, 0..5),
        (presence_penalty, frequency_penalty) in (-2_f32..2.0, -2_f32..2.0),
        repetition_penalty in 0.1_f32..3.0,
        min_tokens in 0_u32..60,
        seed: u64,
    ) {
        let options = options!(
            presence_penalty: presence_penalty, frequency_penalty: frequency_penalty,
            repetition_penalty: repetition_penalty, min_tokens: min_tokens, logit_bias: vec![(3, 1.5)]
        );
        let mut sampler = Sampler::new(options.clone(), seed, 0, &prompt, vec![1, 6]);
        let mut answer = Vec::new();
        for logits in steps {
            let kept = sampler.adjustments.apply(&logits, sampler.position).into_owned();
            for (kept, plain) in kept.into_iter().zip(plainly(&logits, &options, &prompt, &answer)) {
                let kept = f64::from(kept);
                prop_assert!(kept == plain || (kept - plain).abs() < 1e-4, "{} is not {}", kept, plain);
            }
            let token = sampler.sample(&logits);
            sampler.record(token);
            answer.push(token);
        }
    }

    #[test]
    fn no_option_makes_a_logit_that_is_no_number(
        logits in prop::collection::vec(-1e30_f32..1e30, 8),
        repetition_penalty in prop_oneof![Just(f32::MIN_POSITIVE), Just(f32::MAX), Just(1e-45), 0.1_f32..9.0],
        answer in prop::collection::vec(0_u32..8, 0..20),
    ) {
        let options = options!(
            repetition_penalty: repetition_penalty, frequency_penalty: 2.0, presence_penalty: -2.0,
            logit_bias: vec![(0, 100.0), (2, -100.0)]
        );
        let sampler = sampler(options, &[], &answer);
        let adjusted = sampler.adjustments.apply(&logits, sampler.position);
        prop_assert!(adjusted.iter().all(|logit| !logit.is_nan()));
    }
}

#[test]
fn what_would_complete_a_bad_word_is_impossible_whatever_else_is_asked_for() {
    let options = SamplingOptions { logit_bias: vec![(2, 50.0)], ..SamplingOptions::default() };
    let words = BadWords::new([vec![1, 2], vec![0]].into());
    let mut adjustments = Adjustments::new(&options, &[], Vec::new()).with_bad_words(words);
    assert!(adjustments.apply_at(0), "the device does not know of it");
    let apply = |adjustments: &Adjustments| adjustments.apply(&[1.0, 1.0, 1.0], 0).into_owned();
    assert_eq!(apply(&adjustments), [f32::NEG_INFINITY, 1.0, 51.0]);
    adjustments.record(1);
    assert_eq!(apply(&adjustments), [f32::NEG_INFINITY, 1.0, f32::NEG_INFINITY]);
    adjustments.record(1);
    assert_eq!(apply(&adjustments)[2], f32::NEG_INFINITY);
    adjustments.record(3);
    assert_eq!(apply(&adjustments), [f32::NEG_INFINITY, 1.0, 51.0]);
}
