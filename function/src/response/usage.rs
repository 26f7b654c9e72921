//! What a stream tells of usage.

use emberline_api::answer::ChunkUsage;
use emberline_api::parameters::StreamUsage;
use emberline_protocol::event::{Acceptance, Usage};

/// Counts the tokens that a stream has told of.
#[derive(Debug, Clone, Copy)]
pub struct Count {
    when: StreamUsage,
    so_far: Usage,
}

impl Count {
    /// For an answer to these prompts.
    pub fn new(when: StreamUsage, prompts: &[Acceptance]) -> Self {
        let usage = |prompt: &Acceptance| Usage {
            prompt_tokens: prompt.prompt_tokens,
            cached_tokens: prompt.cached_tokens,
            completion_tokens: 0,
        };
        Self { when, so_far: prompts.iter().map(usage).fold(Usage::default(), Usage::and) }
    }

    /// So many more tokens have been written.
    pub fn add(&mut self, completion_tokens: u32) {
        self.so_far = self.so_far.and(Usage { completion_tokens, ..Usage::default() });
    }

    /// What a chunk says that has a part of the answer.
    pub fn of_chunk(&self) -> ChunkUsage {
        match self.when {
            StreamUsage::Never => ChunkUsage::Absent,
            StreamUsage::Last => ChunkUsage::Null,
            StreamUsage::Always => ChunkUsage::Counts(self.so_far),
        }
    }

    /// Whether a last chunk tells of usage alone.
    pub fn is_told_last(&self) -> bool {
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
        let mut count = Count::new(StreamUsage::Always, &prompts);
        let counts = |completion_tokens| {
            ChunkUsage::Counts(Usage { prompt_tokens: 7, cached_tokens: 2, completion_tokens })
        };
        assert_eq!(count.of_chunk(), counts(0));
        count.add(2);
        count.add(1);
        assert_eq!(count.of_chunk(), counts(3));
        assert_eq!(Count::new(StreamUsage::Last, &prompts).of_chunk(), ChunkUsage::Null);
        assert_eq!(Count::new(StreamUsage::Never, &prompts).of_chunk(), ChunkUsage::Absent);
    }
}
