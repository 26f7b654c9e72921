//! Log-probabilities as the network gives them: before adjustments, temperature and filters.

use emberline_protocol::event::IMPOSSIBLE_LOGPROB;

/// Log-probabilities in one token's place.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    /// Of the sampled token.
    pub logprob: f32,
    /// Of the alternatives, with their ids: the most probable ones in order, lower ids first among equals, or
    /// the named ones.
    pub top: Vec<(u32, f32)>,
}

/// Which tokens' log-probabilities to return with a token's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alternatives<'a> {
    /// This many of the most probable.
    MostProbable(usize),
    /// These tokens.
    Named(&'a [u32]),
}

/// The log-probability of `token` and of its `alternatives`.
pub fn score(logits: &[f32], token: u32, alternatives: Alternatives<'_>) -> Scores {
    let count = match alternatives {
        Alternatives::MostProbable(count) => count,
        Alternatives::Named(_) => 0,
    };
    let best = most_probable(logits, count.max(1));
    let max = best.first().map_or(f64::NEG_INFINITY, |&(_, logit)| f64::from(logit));
    let share = |logit: f32| (f64::from(logit) - max).exp();
    let total: f64 = logits.iter().map(|&logit| share(logit)).filter(|share| !share.is_nan()).sum();
    let log_total = max + total.ln();
    let logprob = |logit: f32| {
        let exact = f64::from(logit) - log_total;
        if exact.is_finite() { (exact as f32).max(IMPOSSIBLE_LOGPROB) } else { IMPOSSIBLE_LOGPROB }
    };
    let of = |token: u32| logits.get(token as usize).map_or(IMPOSSIBLE_LOGPROB, |&logit| logprob(logit));
    let top = match alternatives {
        Alternatives::MostProbable(count) => {
            best.iter().take(count).map(|&(id, logit)| (id, logprob(logit))).collect()
        }
        Alternatives::Named(tokens) => tokens.iter().map(|&id| (id, of(id))).collect(),
    };
    Scores { logprob: of(token), top }
}

/// A token's rank, 1 for the most probable; of equals the lowest id comes first.
pub fn rank(logits: &[f32], token: u32) -> u32 {
    let Some(&own) = logits.get(token as usize) else {
        return u32::try_from(logits.len()).unwrap_or(u32::MAX);
    };
    let (before, after) = logits.split_at(token as usize);
    let own = if own.is_nan() { f32::NEG_INFINITY } else { own };
    let better = before.iter().filter(|&&logit| logit >= own).count()
        + after.iter().filter(|&&logit| logit > own).count();
    u32::try_from(better + 1).unwrap_or(u32::MAX)
}

/// The `count` largest logits with their ids; fewer if there are not as many.
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

    fn best(logits: &[f32], token: u32, top: usize) -> Scores {
        score(logits, token, Alternatives::MostProbable(top))
    }

    #[test]
    fn named_tokens_come_in_their_order() {
        let logits = [0.0, 3_f32.ln(), f32::NEG_INFINITY];
        let named = score(&logits, 0, Alternatives::Named(&[2, 1, 7]));
        let all = best(&logits, 0, 3);
        assert_eq!(named.logprob, all.logprob);
        assert_eq!(named.top, [(2, IMPOSSIBLE_LOGPROB), all.top[0], (7, IMPOSSIBLE_LOGPROB)]);
        assert!(score(&logits, 0, Alternatives::Named(&[])).top.is_empty());
    }

    #[test]
    fn a_rank_is_the_place_among_the_most_probable_ones() {
        let logits = [1.0, 2.0, 1.0, 2.0, f32::NAN, 1.0];
        let order = best(&logits, 0, 9).top;
        for (&(id, _), place) in order.iter().zip(1..) {
            assert_eq!(rank(&logits, id), place);
        }
        assert_eq!(rank(&logits, 4), 6, "what is no number comes last");
        assert_eq!(rank(&logits, 9), 6);
        assert_eq!(rank(&[], 0), 0);
    }

    #[test]
    fn the_numbers_are_known() {
        // e^0 + e^ln3 = 4
        let scores = best(&[0.0, 3_f32.ln()], 0, 2);
        assert!((scores.logprob - 0.25_f32.ln()).abs() < 1e-6);
        assert_eq!(scores.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 0]);
        assert!((scores.top[0].1 - 0.75_f32.ln()).abs() < 1e-6);
        assert_eq!(best(&[5.0], 0, 0), Scores { logprob: 0.0, top: Vec::new() });
    }

    #[test]
    fn what_can_not_be_has_a_finite_number() {
        let logits = [1.0, f32::NEG_INFINITY, f32::NAN, -1e30];
        for token in [1, 2, 3, 9] {
            assert_eq!(best(&logits, token, 0).logprob, IMPOSSIBLE_LOGPROB);
        }
        assert_eq!(best(&logits, 0, 9).top, [(0, 0.0), (3, IMPOSSIBLE_LOGPROB), (1, IMPOSSIBLE_LOGPROB)]);
        assert_eq!(best(&[], 0, 3), Scores { logprob: IMPOSSIBLE_LOGPROB, top: Vec::new() });
        let infinite = best(&[f32::INFINITY, 0.0], 0, 2);
        assert!(infinite.logprob.is_finite() && infinite.top.iter().all(|(_, logprob)| logprob.is_finite()));
    }

    #[test]
    fn of_equals_the_lowest_ids_come_first() {
        let top = best(&[1.0, 2.0, 1.0, 2.0, 1.0], 0, 4).top;
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
            let scores = best(&logits, token as u32, top);
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
