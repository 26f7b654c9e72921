//! The tokens of words that must not appear in an answer.

use emberline_protocol::error::{ApiError, ErrorCode};

use super::prompt_renderer::internal;
use crate::tokenizer::ModelTokenizer;

/// The token sequences of each word, as in vLLM: of the word at the beginning of a text, and of the word
/// after a space if that has another first token and the same number of tokens.
pub(super) fn tokens(words: &[String], tokenizer: &ModelTokenizer) -> Result<Vec<Vec<u32>>, ApiError> {
    let encode = |text: &str| tokenizer.encode(text).map_err(|error| internal(&error));
    let mut all: Vec<Vec<u32>> = Vec::with_capacity(2 * words.len());
    for (index, word) in words.iter().enumerate() {
        let word = word.trim_start();
        let first = encode(word)?;
        if first.is_empty() {
            let path = format!("bad_words[{index}]");
            let message = format!("'{path}' is no token of this model. Leave it out.");
            return Err(ApiError::field(ErrorCode::InvalidValue, path, message));
        }
        let later = encode(&format!(" {word}"))?;
        let differs = later.first() != first.first() && later.len() == first.len();
        for tokens in [Some(first), Some(later).filter(|_| differs)].into_iter().flatten() {
            if !all.contains(&tokens) {
                all.push(tokens);
            }
        }
    }
    Ok(all)
}
