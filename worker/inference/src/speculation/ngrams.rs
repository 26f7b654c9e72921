//! Finds where the last tokens of a sequence occurred before.

use std::collections::HashMap;

/// Fewest tokens that count as an occurrence.
const SHORTEST: usize = 2;
/// Most tokens that are compared.
const LONGEST: usize = 16;
/// Most earlier occurrences of the last two tokens that are compared.
const MOST_COMPARED: usize = 16;

/// The pairs of tokens in a sequence, by place: like the hash chains of LZ77 coders, which find the longest
/// match in a time that does not depend on the length of the text.
#[derive(Debug, Default)]
pub(super) struct NgramIndex {
    /// Where each pair occurred last: the place of the token after it.
    latest: HashMap<[u32; SHORTEST], u32>,
    /// For each place, where the pair before it occurred before; 0 for nowhere.
    previous: Vec<u32>,
}

/// An earlier occurrence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Occurrence {
    /// The place of the token after it.
    pub(super) at: usize,
    /// How many tokens are the same.
    pub(super) length: usize,
}

impl NgramIndex {
    /// Adds the tokens that are new since the last call. `tokens` must begin with those that were added.
    pub(super) fn extend(&mut self, tokens: &[u32]) {
        // A place where nothing follows yet is of no use.
        for place in self.previous.len()..tokens.len() {
            let pair = place.checked_sub(SHORTEST).and_then(|from| tokens.get(from..place)?.try_into().ok());
            let before = pair.and_then(|pair| self.latest.insert(pair, u32::try_from(place).ok()?));
            self.previous.push(before.unwrap_or(0));
        }
    }

    /// Of the latest earlier occurrences of the last tokens, the longest one; of equals the latest.
    pub(super) fn find(&self, tokens: &[u32]) -> Option<Occurrence> {
        let mut place = *self.latest.get(tokens.last_chunk::<SHORTEST>()?)? as usize;
        let mut best = Occurrence { at: 0, length: 0 };
        for _ in 0..MOST_COMPARED {
            let before = tokens.get(..place)?;
            let same = before.iter().rev().zip(tokens.iter().rev()).take(LONGEST);
            let length = same.take_while(|(a, b)| a == b).count();
            if length > best.length {
                best = Occurrence { at: place, length };
            }
            place = *self.previous.get(place)? as usize;
            if place == 0 || best.length == LONGEST {
                break;
            }
        }
        Some(best)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn find(tokens: &[u32]) -> Option<Occurrence> {
        let mut index = NgramIndex::default();
        index.extend(tokens);
        index.find(tokens)
    }

    #[test]
    fn the_longest_occurrence_is_found_and_of_equals_the_latest() {
        let at = |at, length| Some(Occurrence { at, length });
        assert_eq!(find(&[1, 2, 3, 9, 2, 3, 8, 1, 2, 3]), at(3, 3));
        assert_eq!(find(&[1, 2, 9, 1, 2, 8, 1, 2]), at(5, 2));
        assert_eq!(find(&[5, 5, 5]), at(2, 2));
        assert_eq!(find(&[7; 40]), at(39, LONGEST));
        for none in [&[][..], &[1], &[1, 1], &[1, 2, 3], &[2, 3, 4, 3]] {
            assert_eq!(find(none), None, "{none:?}");
        }
    }

    #[test]
    fn old_occurrences_of_frequent_pairs_are_not_compared() {
        let far = [vec![4, 1, 2], [8, 1, 2].repeat(MOST_COMPARED), vec![4, 1, 2]].concat();
        assert_eq!(find(&far).unwrap().length, 2);
        let near = [vec![4, 1, 2], [8, 1, 2].repeat(MOST_COMPARED - 1), vec![4, 1, 2]].concat();
        assert_eq!(find(&near), Some(Occurrence { at: 3, length: 3 }));
    }

    proptest! {
        /// In whatever pieces a sequence grows, what is found is what a search from end to end finds.
        #[test]
        fn it_finds_what_a_plain_search_finds(
            tokens in prop::collection::vec(0..4_u32, 0..60),
            pieces in prop::collection::vec(0..9_usize, 0..20),
        ) {
            let mut index = NgramIndex::default();
            let ends = pieces.iter().scan(0, |end, piece| { *end += piece; Some(*end) });
            for end in ends.take_while(|end| *end <= tokens.len()) {
                index.extend(&tokens[..end]);
            }
            index.extend(&tokens);
            let same = |place: usize| {
                let pairs = tokens[..place].iter().rev().zip(tokens.iter().rev()).take(LONGEST);
                pairs.take_while(|(a, b)| a == b).count()
            };
            let places = (SHORTEST..tokens.len()).rev().filter(|place| same(*place) >= SHORTEST);
            let compared: Vec<usize> = places.take(MOST_COMPARED).collect();
            let longest = compared.iter().map(|place| same(*place)).max();
            let plain = longest.and_then(|length| {
                let at = compared.into_iter().find(|place| same(*place) == length)?;
                Some(Occurrence { at, length })
            });
            prop_assert_eq!(index.find(&tokens), plain);
        }
    }
}
