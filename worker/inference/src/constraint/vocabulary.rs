//! A model's tokens as llguidance wants them.

use std::collections::HashSet;
use std::sync::Arc;

use toktrie::{ApproximateTokEnv, INVALID_TOKEN, TokEnv, TokRxInfo, TokTrie};

use crate::tokenizer::ModelTokenizer;

/// Tokens that end an answer have no text here, whatever it is elsewhere: they are allowed where the
/// grammar may end, and nowhere else. Control tokens have none anyway and are never allowed.
pub(super) fn of(tokenizer: &ModelTokenizer) -> TokEnv {
    let size = u32::try_from(tokenizer.vocab_size()).unwrap_or(u32::MAX);
    let ends: HashSet<u32> = tokenizer.end_of_generation().collect();
    let bytes = |id: u32| if ends.contains(&id) { Vec::new() } else { tokenizer.token_bytes(id).to_vec() };
    let words: Vec<Vec<u8>> = (0..size).map(bytes).collect();
    let mut ends: Vec<u32> = ends.into_iter().filter(|id| *id < size).collect();
    ends.sort_unstable();
    let trie = TokTrie::from(&TokRxInfo::new(size, ends.first().copied().unwrap_or(INVALID_TOKEN)), &words);
    let trie = if ends.is_empty() { trie } else { trie.with_eos_tokens(&ends) };
    // Any way to write a text in tokens will do: the model knows best which one it prefers.
    Arc::new(ApproximateTokEnv::new(trie))
}
