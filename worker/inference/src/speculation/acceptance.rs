//! How often what was expected did follow.

/// Lengths of a match from which the next class begins: the more tokens are the same, the more often the
/// next one is, too.
const CLASSES: [usize; 2] = [4, 8];
/// What is assumed of each class before anything was seen, as if it had been seen twice.
const ASSUMED: [f64; 3] = [0.3, 0.5, 0.7];
const ASSUMED_COUNT: f64 = 2.0;
/// How many of the latest tokens count, roughly.
const MEMORY: f64 = 16.0;

/// One sequence's share of expected tokens that were right, by the length of the match before them.
#[derive(Debug, Clone)]
pub(super) struct Acceptance {
    rates: [f64; 3],
    seen: [f64; 3],
}

impl Default for Acceptance {
    fn default() -> Self {
        Self { rates: ASSUMED, seen: [ASSUMED_COUNT; 3] }
    }
}

impl Acceptance {
    /// The chance that the token after a match is the expected one.
    pub(super) fn chance(&self, matched: usize) -> f64 {
        self.rates.get(class(matched)).copied().unwrap_or(0.0)
    }

    /// Takes note of whether it was.
    pub(super) fn observe(&mut self, matched: usize, is_right: bool) {
        let class = class(matched);
        if let (Some(rate), Some(seen)) = (self.rates.get_mut(class), self.seen.get_mut(class)) {
            *seen = (*seen + 1.0).min(MEMORY);
            *rate += (f64::from(u8::from(is_right)) - *rate) / *seen;
        }
    }
}

fn class(matched: usize) -> usize {
    CLASSES.iter().filter(|from| matched >= **from).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_follow_what_is_seen_for_each_length_of_match() {
        let mut acceptance = Acceptance::default();
        for _ in 0..100 {
            acceptance.observe(2, false);
            acceptance.observe(8, true);
        }
        assert!(acceptance.chance(3) < 0.01 && acceptance.chance(30) > 0.99);
        assert_eq!(acceptance.chance(4), ASSUMED[1]);
        // The latest count.
        for _ in 0..16 {
            acceptance.observe(2, true);
        }
        assert!(acceptance.chance(2) > 0.6, "{}", acceptance.chance(2));
    }

    #[test]
    fn a_longer_match_is_trusted_more_at_first() {
        let chances = [2, 4, 8].map(|matched| Acceptance::default().chance(matched));
        assert!(chances.is_sorted() && chances[0] > 0.0 && chances[2] < 1.0);
    }
}
