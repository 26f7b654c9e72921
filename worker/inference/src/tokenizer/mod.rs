//! Text to token ids and back, as the model's files define it.
//!
//! From a folder as on the hub (`hf`): what `tokenizer.json` says. From a GGUF file (`gguf`):
//! byte-level BPE with the ways of splitting text in `pre_tokenizer`, and SentencePiece's BPE and
//! unigram vocabularies (`sentencepiece`).
//!
//! Special tokens are found wherever they stand in the text, because that is how a rendered chat
//! template carries them. Message content that contains `<|im_start|>` and the like is therefore
//! taken as such a token; Hugging Face's and llama.cpp's chat front ends do the same.

mod bytes;
mod error;
mod gguf;
mod hf;
mod pre_tokenizer;
mod sentencepiece;
mod vocabulary;

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use tokenizers::Tokenizer;

use bytes::TokenBytes;
pub use error::TokenizerError;

/// Tokens that end an answer whatever the metadata say: each is the end of a turn or of a text in
/// some family of models. llama.cpp knows them by the same names.
const END_TOKENS: [&str; 14] = [
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<EOT>",
    "_<EOT>",
    "<｜end▁of▁sentence｜>",
    "</s>",
];

/// Tokens with text, whatever the model's files say of them: whoever reads an answer finds calls of
/// functions by them.
const TOOL_MARKS: [&str; 3] = ["<tool_call>", "</tool_call>", "[TOOL_CALLS]"];

/// A model's tokenizer.
pub struct ModelTokenizer {
    inner: Tokenizer,
    bytes: TokenBytes,
    end_of_generation: HashSet<u32>,
    /// The token that a prompt begins with even if the chat template does not write it.
    first: Option<u32>,
    /// The vocabulary writes words with the space before them, also the first word of a text.
    space_before_text: bool,
    bound: Bound,
}

/// What is known about how much text a token may stand for.
#[derive(Debug, Clone, Copy)]
struct Bound {
    /// No token takes more bytes of text than this; `None` if there is no limit.
    longest: Option<usize>,
    /// White space may be part of a token beside it, however much there is.
    takes_spaces: bool,
}

impl ModelTokenizer {
    /// The token ids of `text`. Special tokens in it are recognised, none is added.
    ///
    /// Bytes that the vocabulary lacks are left out, as in Hugging Face's and llama.cpp's
    /// tokenizers.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self.inner.encode_fast(text, false).map_err(TokenizerError::Encode)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The token ids of a rendered conversation: as [`Self::encode`], with the token that begins
    /// a text where the model wants one and the template has not written it.
    pub fn encode_prompt(&self, prompt: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = self.encode(prompt)?;
        if let Some(first) = self.first
            && ids.first() != Some(&first)
        {
            ids.insert(0, first);
        }
        Ok(ids)
    }

    /// A lower bound of the number of tokens of `text`, without encoding it: encoding takes a second a
    /// megabyte, too long for a prompt that can't fit anyway.
    pub fn least_tokens(&self, text: &str) -> usize {
        let Some(longest) = self.bound.longest else { return 0 };
        let length = match self.bound.takes_spaces {
            false => text.len(),
            true => text.split_whitespace().map(str::len).sum(),
        };
        length.div_ceil(longest)
    }

    /// The bytes that a token stands for, perhaps only a part of a character. Empty for control tokens, except
    /// those around function calls, and for ids that are not tokens.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.bytes.get(id)
    }

    /// The bytes of a token that begins an answer. SentencePiece writes the space before a word
    /// with the word, also where no text is before it; such a space is left out.
    pub fn first_token_bytes(&self, id: u32) -> &[u8] {
        let bytes = self.token_bytes(id);
        match bytes.split_first() {
            Some((b' ', rest)) if self.space_before_text => rest,
            _ => bytes,
        }
    }

    /// The text of tokens, special ones included.
    pub fn decode(&self, ids: &[u32]) -> String {
        let first = self.first_with_text(ids);
        let bytes = ids.iter().enumerate().map(|(index, &id)| self.bytes_in_text(id, Some(index) == first));
        let text = bytes.fold(Vec::new(), |mut text, bytes| {
            text.extend_from_slice(&bytes);
            text
        });
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Where in a text the first token is that stands for text.
    pub fn first_with_text(&self, ids: &[u32]) -> Option<usize> {
        ids.iter().position(|id| !self.token_bytes(*id).is_empty())
    }

    /// What a token stands for in [`Self::decode`]: a special one for its name. `is_first` is that which
    /// [`Self::first_with_text`] finds.
    pub fn bytes_in_text(&self, id: u32, is_first: bool) -> Cow<'_, [u8]> {
        match self.token_bytes(id) {
            [] => self.written(id).into_bytes().into(),
            _ if is_first => self.first_token_bytes(id).into(),
            bytes => bytes.into(),
        }
    }

    /// A token as the vocabulary writes it.
    pub fn written(&self, id: u32) -> String {
        self.inner.id_to_token(id).unwrap_or_default()
    }

    /// The tokens that end an answer, in any order.
    pub fn end_of_generation(&self) -> impl Iterator<Item = u32> {
        self.end_of_generation.iter().copied()
    }

    /// Number of tokens.
    pub fn vocab_size(&self) -> usize {
        self.bytes.len()
    }
}

impl fmt::Debug for ModelTokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelTokenizer").field("vocab_size", &self.vocab_size()).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "tokenizer_tests.rs"]
mod tests;
