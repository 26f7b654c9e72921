//! A model's vocabulary for llguidance.

use std::collections::HashSet;
use std::sync::Arc;

use toktrie::{ApproximateTokEnv, INVALID_TOKEN, TokEnv, TokRxInfo, TokTrie};

use crate::tokenizer::ModelTokenizer;

/// End tokens have no text here, whatever it is elsewhere: they are allowed exactly where the grammar may
/// end. Control tokens have no text anyway and are never allowed.
pub(super) fn of(tokenizer: &ModelTokenizer) -> TokEnv {
    let size = u32::try_from(tokenizer.vocab_size()).unwrap_or(u32::MAX);
    let ends: HashSet<u32> = tokenizer.end_of_generation().collect();
    let bytes = |id: u32| if ends.contains(&id) { Vec::new() } else { tokenizer.token_bytes(id).to_vec() };
    let words: Vec<Vec<u8>> = (0..size).map(bytes).collect();
    let mut ends: Vec<u32> = ends.into_iter().filter(|id| *id < size).collect();
    ends.sort_unstable();
    let trie = TokTrie::from(&TokRxInfo::new(size, ends.first().copied().unwrap_or(INVALID_TOKEN)), &words);
    let trie = if ends.is_empty() { trie } else { trie.with_eos_tokens(&ends) };
    // A text may be tokenised in any way: the model knows best which one it prefers.
    Arc::new(ApproximateTokEnv::new(trie))
}
