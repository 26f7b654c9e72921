//! Text to token ids and back, as the model file's metadata define it.
//!
//! Read so far: byte-level BPE (`tokenizer.ggml.model` = `gpt2`) with the ways of splitting text
//! that `pre` lists.
//!
//! Special tokens are found wherever they stand in the text, because that is how a rendered chat
//! template carries them. Message content that contains `<|im_start|>` and the like is therefore
//! taken as such a token; Hugging Face's and llama.cpp's chat front ends do the same.

mod bytes;
mod pre;

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::{AddedToken, Tokenizer};

use crate::gguf::{GgufError, GgufFile, Metadata};
use bytes::TokenBytes;
use pre::PreTokenizer;

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

/// Why a tokenizer could not be built or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The metadata lack something.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A kind of tokenizer, or of splitting, that is not implemented.
    #[error(
        "{}: {key} is {value:?}, which is not supported ({supported} is); choose another model",
        path.display()
    )]
    Unsupported {
        /// The model file.
        path: PathBuf,
        /// The metadata key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What it could be.
        supported: String,
    },
    /// Metadata that contradict themselves.
    #[error("{}: the tokenizer's metadata are damaged: {what}; pull the model again", path.display())]
    Malformed {
        /// The model file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The text could not be encoded.
    #[error("can't tokenize the prompt: {0}")]
    Encode(#[source] tokenizers::Error),
}

/// ggml's kinds of tokens that matter here.
mod token_type {
    pub(super) const NORMAL: i32 = 1;
    pub(super) const CONTROL: i32 = 3;
    pub(super) const USER_DEFINED: i32 = 4;
}

/// A model's tokenizer.
pub struct ModelTokenizer {
    inner: Tokenizer,
    bytes: TokenBytes,
    end_of_generation: HashSet<u32>,
    /// No token takes more bytes of text than this.
    longest_token: usize,
}

impl ModelTokenizer {
    /// Builds it from a model file's metadata.
    pub fn from_gguf(file: &GgufFile) -> Result<Self, TokenizerError> {
        let metadata = file.metadata();
        let model = metadata.get_str("tokenizer.ggml.model")?;
        if model != "gpt2" {
            return Err(TokenizerError::Unsupported {
                path: file.path().to_path_buf(),
                key: "tokenizer.ggml.model",
                value: model.to_owned(),
                supported: "\"gpt2\", byte-level BPE,".to_owned(),
            });
        }
        let pre = PreTokenizer::from_gguf(file)?;
        let tokens = metadata.get_str_array("tokenizer.ggml.tokens")?;
        let types = metadata.get_i32_array("tokenizer.ggml.token_type")?;
        let malformed = |what| malformed(file.path(), what);
        if types.len() != tokens.len() {
            return Err(malformed(format!("{} tokens but {} token types", tokens.len(), types.len())));
        }
        if u32::try_from(tokens.len()).is_err() {
            return Err(malformed(format!("{} tokens are too many", tokens.len())));
        }
        let mut inner = Tokenizer::new(byte_pair_model(file, tokens, &pre)?);
        inner.with_pre_tokenizer(Some(pre.splitter));
        // Composing leaves at least a third of a text's bytes.
        let composed = if pre.normalizer.is_some() { 3 } else { 1 };
        if let Some(normalizer) = pre.normalizer {
            inner.with_normalizer(Some(normalizer)).map_err(|error| malformed(error.to_string()))?;
        }
        inner.add_tokens(special_tokens(tokens, types)).map_err(|error| malformed(error.to_string()))?;
        let bytes = TokenBytes::new(tokens, types);
        let special = special_tokens(tokens, types).map(|token| token.content.len());
        let longest = special.chain([bytes.longest(), 1]).max().unwrap_or(1);
        Ok(Self {
            inner,
            bytes,
            longest_token: composed * longest,
            end_of_generation: end_of_generation(file.path(), metadata, tokens, types)?,
        })
    }

    /// The token ids of `text`. Special tokens in it are recognised, none is added.
    ///
    /// Bytes that the vocabulary lacks are left out, as in Hugging Face's and llama.cpp's
    /// tokenizers.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self.inner.encode_fast(text, false).map_err(TokenizerError::Encode)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// At least as many tokens as `text` has, without encoding it: encoding takes a second a
    /// megabyte, too long for a prompt that can't fit anyway.
    pub fn least_tokens(&self, text: &str) -> usize {
        text.len().div_ceil(self.longest_token)
    }

    /// The bytes a token stands for: part of a character, at times. Empty for control tokens and
    /// for ids that are none.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.bytes.get(id)
    }

    /// The tokens that end an answer, in no order.
    pub fn end_of_generation(&self) -> impl Iterator<Item = u32> {
        self.end_of_generation.iter().copied()
    }

    /// How many tokens there are.
    pub fn vocab_size(&self) -> usize {
        self.bytes.len()
    }
}

impl fmt::Debug for ModelTokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelTokenizer").field("vocab_size", &self.vocab_size()).finish_non_exhaustive()
    }
}

/// The vocabulary and its merges. Merges are checked here because the builder takes it on trust
/// that what a merge makes is no longer than the longest token.
fn byte_pair_model(file: &GgufFile, tokens: &[String], pre: &PreTokenizer) -> Result<BPE, TokenizerError> {
    let mut vocab = Vocab::with_capacity(tokens.len());
    for (id, token) in (0..).zip(tokens) {
        vocab.entry(token.clone()).or_insert(id);
    }
    let lines = file.metadata().get_str_array("tokenizer.ggml.merges")?;
    let mut merges = Vec::with_capacity(lines.len());
    for line in lines {
        let parts = line.split_once(' ').filter(|(left, right)| {
            vocab.contains_key(*left)
                && vocab.contains_key(*right)
                && vocab.contains_key(&format!("{left}{right}"))
        });
        let Some((left, right)) = parts else {
            return Err(malformed(file.path(), format!("the merge {line:?} is not of tokens into a token")));
        };
        merges.push((left.to_owned(), right.to_owned()));
    }
    BPE::builder()
        .vocab_and_merges(vocab, merges)
        .ignore_merges(pre.whole_words_first)
        .build()
        .map_err(|error| malformed(file.path(), error.to_string()))
}

/// The tokens that are found in the text before it is split.
fn special_tokens<'a>(tokens: &'a [String], types: &'a [i32]) -> impl Iterator<Item = AddedToken> + 'a {
    tokens
        .iter()
        .zip(types)
        .filter(|&(_, &kind)| is_special(kind))
        .map(|(token, &kind)| AddedToken::from(token.as_str(), kind == token_type::CONTROL).normalized(false))
}

fn is_special(kind: i32) -> bool {
    matches!(kind, token_type::CONTROL | token_type::USER_DEFINED)
}

fn end_of_generation(
    path: &Path,
    metadata: &Metadata,
    tokens: &[String],
    types: &[i32],
) -> Result<HashSet<u32>, TokenizerError> {
    let mut ids: HashSet<u32> = (0..)
        .zip(tokens.iter().zip(types))
        .filter(|&(_, (token, &kind))| is_special(kind) && END_TOKENS.contains(&token.as_str()))
        .map(|(id, _)| id)
        .collect();
    for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
        if let Some(id) = metadata.opt_u32(key)? {
            if id as usize >= tokens.len() {
                return Err(malformed(path, format!("{key} is {id}, but there are {} tokens", tokens.len())));
            }
            ids.insert(id);
        }
    }
    Ok(ids)
}

fn malformed(path: &Path, what: String) -> TokenizerError {
    TokenizerError::Malformed { path: path.to_path_buf(), what }
}

#[cfg(test)]
#[path = "tokenizer_tests.rs"]
mod tests;
