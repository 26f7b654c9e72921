//! Log-probabilities as the network sees them: before adjustments, temperature and filters.

use emberline_shared::event::IMPOSSIBLE;

/// Natural logarithms of probabilities in one token's place.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    /// Of the token that was picked.
    pub logprob: f32,
    /// Of the most probable tokens: id and logarithm, in order; lower ids first among equals.
    pub top: Vec<(u32, f32)>,
}

/// The log-probability of `token` and of the `top` most probable tokens.
pub fn score(logits: &[f32], token: u32, top: usize) -> Scores {
    let best = most_probable(logits, top.max(1));
    let max = best.first().map_or(f64::NEG_INFINITY, |&(_, logit)| f64::from(logit));
    let share = |logit: f32| (f64::from(logit) - max).exp();
    let total: f64 = logits.iter().map(|&logit| share(logit)).filter(|share| !share.is_nan()).sum();
    let log_total = max + total.ln();
    let logprob = |logit: f32| {
        let exact = f64::from(logit) - log_total;
        if exact.is_finite() { (exact as f32).max(IMPOSSIBLE) } else { IMPOSSIBLE }
    };
    Scores {
        logprob: logits.get(token as usize).map_or(IMPOSSIBLE, |&logit| logprob(logit)),
        top: best.iter().take(top).map(|&(id, logit)| (id, logprob(logit))).collect(),
    }
}

/// The `count` largest logits with their ids; fewer if there are no more.
fn most_probable(logits: &[f32], count: usize) -> Vec<(u32, f32)> {
    let mut best: Vec<(u32, f32)> = Vec::with_capacity(count + 1);
    let mut least = f32::NEG_INFINITY;
    for (id, &logit) in (0..).zip(logits) {
        if logit > least || (best.len() < count && !logit.is_nan()) {
            let place = best.partition_point(|&(_, better)| better >= logit);
            best.insert(place, (id, logit));
            best.truncate(count);
            if best.len() == count {
                least = best.last().map_or(least, |&(_, logit)| logit);
            }
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_numbers_are_known() {
        // e^0 + e^ln3 = 4
        let scores = score(&[0.0, 3_f32.ln()], 0, 2);
        assert!((scores.logprob - 0.25_f32.ln()).abs() < 1e-6);
        assert_eq!(scores.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 0]);
        assert!((scores.top[0].1 - 0.75_f32.ln()).abs() < 1e-6);
        assert_eq!(score(&[5.0], 0, 0), Scores { logprob: 0.0, top: Vec::new() });
    }

    #[test]
    fn what_can_not_be_has_a_finite_number() {
        let logits = [1.0, f32::NEG_INFINITY, f32::NAN, -1e30];
        for token in [1, 2, 3, 9] {
            assert_eq!(score(&logits, token, 0).logprob, IMPOSSIBLE);
        }
        assert_eq!(score(&logits, 0, 9).top, [(0, 0.0), (3, IMPOSSIBLE), (1, IMPOSSIBLE)]);
        assert_eq!(score(&[], 0, 3), Scores { logprob: IMPOSSIBLE, top: Vec::new() });
        let infinite = score(&[f32::INFINITY, 0.0], 0, 2);
        assert!(infinite.logprob.is_finite() && infinite.top.iter().all(|(_, logprob)| logprob.is_finite()));
    }

    #[test]
    fn of_equals_the_lowest_ids_come_first() {
        let top = score(&[1.0, 2.0, 1.0, 2.0, 1.0], 0, 4).top;
        assert_eq!(top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 3, 0, 2]);
    }

    proptest! {
        #[test]
        fn scores_equal_the_plain_formula(
            logits in prop::collection::vec(-40_f32..40.0, 1..300),
            token: prop::sample::Index,
            top in 0..21_usize,
        ) {
            let token = token.index(logits.len());
            let total: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
            let exact = |id: usize| f64::from(logits[id]) - total.ln();
            let scores = score(&logits, token as u32, top);
            prop_assert!((f64::from(scores.logprob) - exact(token)).abs() < 1e-5);
            let mut order: Vec<usize> = (0..logits.len()).collect();
            order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
            prop_assert_eq!(scores.top.len(), top.min(logits.len()));
            for ((id, logprob), expected) in scores.top.into_iter().zip(order) {
                prop_assert_eq!(id as usize, expected);
                prop_assert!((f64::from(logprob) - exact(expected)).abs() < 1e-5);
            }
        }
    }
}
