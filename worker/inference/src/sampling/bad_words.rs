//! Words that must not appear in an answer.
//!
//! As in vLLM, a word is forbidden by its tokens: when the answer ends with all of them but the last, the
//! last one becomes impossible. Tokens of the prompt do not count, and the same letters in other tokens
//! are not recognised.

use std::sync::Arc;

/// The words of one choice, and as many of its last tokens as are needed to recognise them.
#[derive(Debug, Clone, Default)]
pub(super) struct BadWords {
    words: Arc<[Vec<u32>]>,
    /// Length of the longest word without its last token.
    longest: usize,
    /// The answer's last tokens, at most `longest`.
    recent: Vec<u32>,
}

impl BadWords {
    /// Before the first token.
    pub(super) fn new(words: Arc<[Vec<u32>]>) -> Self {
        let longest = words.iter().map(Vec::len).max().unwrap_or(0).saturating_sub(1);
        Self { words, longest, recent: Vec::with_capacity(longest) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// The tokens that would complete a word.
    pub(super) fn forbidden(&self) -> impl Iterator<Item = u32> {
        self.words.iter().filter_map(|word| {
            let (last, beginning) = word.split_last()?;
            self.recent.ends_with(beginning).then_some(*last)
        })
    }

    /// Records a token of the answer.
    pub(super) fn record(&mut self, token: u32) {
        if self.longest > 0 {
            if self.recent.len() == self.longest {
                self.recent.remove(0);
            }
            self.recent.push(token);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forbidden(words: &[&[u32]], answer: &[u32]) -> Vec<u32> {
        let mut bad = BadWords::new(words.iter().map(|word| word.to_vec()).collect());
        answer.iter().for_each(|token| bad.record(*token));
        bad.forbidden().collect()
    }

    #[test]
    fn the_last_token_of_a_word_does_not_follow_the_others() {
        let words: [&[u32]; 4] = [&[7], &[1, 2], &[1, 1, 3], &[2, 1, 1, 4]];
        assert_eq!(forbidden(&words, &[]), [7]);
        assert_eq!(forbidden(&words, &[1]), [7, 2]);
        assert_eq!(forbidden(&words, &[9, 1, 1]), [7, 2, 3]);
        assert_eq!(forbidden(&words, &[2, 1, 1]), [7, 2, 3, 4]);
        assert_eq!(forbidden(&words, &[2, 1, 1, 9]), [7]);
        assert_eq!(forbidden(&[], &[1]), [0_u32; 0]);
    }

    #[test]
    fn no_more_is_remembered_than_is_needed() {
        let mut bad = BadWords::new([vec![1, 2, 3]].into());
        (0..1000).for_each(|token| bad.record(token));
        assert_eq!(bad.recent, [998, 999]);
    }
}
