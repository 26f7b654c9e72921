//! The token counts in the chunks of a stream.

use emberline_api::answer::ChunkUsage;
use emberline_api::parameters::StreamUsage;
use emberline_protocol::event::{Acceptance, Usage};

/// Counts the tokens of a stream's chunks.
#[derive(Debug, Clone, Copy)]
pub struct UsageCounter {
    when: StreamUsage,
    so_far: Usage,
}

impl UsageCounter {
    /// For an answer to these prompts.
    pub fn new(when: StreamUsage, prompts: &[Acceptance]) -> Self {
        let usage = |prompt: &Acceptance| Usage {
            prompt_tokens: prompt.prompt_tokens,
            cached_tokens: prompt.cached_tokens,
            completion_tokens: 0,
        };
        Self { when, so_far: prompts.iter().map(usage).fold(Usage::default(), Usage::and) }
    }

    /// Adds tokens that were written.
    pub fn add(&mut self, completion_tokens: u32) {
        self.so_far = self.so_far.and(Usage { completion_tokens, ..Usage::default() });
    }

    /// What a chunk with a part of the answer says.
    pub fn of_chunk(&self) -> ChunkUsage {
        match self.when {
            StreamUsage::Never => ChunkUsage::Absent,
            StreamUsage::Last => ChunkUsage::Null,
            StreamUsage::Always => ChunkUsage::Counts(self.so_far),
        }
    }

    /// Whether the last chunk has the usage and nothing else.
    pub fn has_last_chunk(&self) -> bool {
        self.when != StreamUsage::Never
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_counts_what_was_told_so_far_where_that_is_asked_for() {
        let prompt = |prompt_tokens| Acceptance { prompt_tokens, cached_tokens: 1, ..Acceptance::default() };
        let prompts = [prompt(3), prompt(4)];
        let mut count = UsageCounter::new(StreamUsage::Always, &prompts);
        let counts = |completion_tokens| {
            ChunkUsage::Counts(Usage { prompt_tokens: 7, cached_tokens: 2, completion_tokens })
        };
        assert_eq!(count.of_chunk(), counts(0));
        count.add(2);
        count.add(1);
        assert_eq!(count.of_chunk(), counts(3));
        assert_eq!(UsageCounter::new(StreamUsage::Last, &prompts).of_chunk(), ChunkUsage::Null);
        assert_eq!(UsageCounter::new(StreamUsage::Never, &prompts).of_chunk(), ChunkUsage::Absent);
    }
}
