//! A tokenizer from a GGUF file's metadata.

use tokenizers::Tokenizer;
use tokenizers::models::bpe::{BPE, Vocab};

use super::bytes::{Notation, all_bytes};
use super::error::malformed;
use super::pre_tokenizer::PreTokenizer;
use super::vocabulary::{TokenizerParts, Vocabulary};
use super::{Bound, ModelTokenizer, TokenizerError, sentencepiece};
use crate::checkpoint::gguf::GgufFile;

/// The kinds of tokenizers by `tokenizer.ggml.model`.
const BYTE_LEVEL: &str = "gpt2";
const SENTENCE_PIECE: &str = "llama";
const UNIGRAM: &str = "t5";

impl ModelTokenizer {
    /// Builds it from a model file's metadata.
    pub fn from_gguf(file: &GgufFile) -> Result<Self, TokenizerError> {
        let vocabulary = Vocabulary::read(file)?;
        let mut parts = match vocabulary.metadata.get_str("tokenizer.ggml.model")? {
            BYTE_LEVEL => byte_level(&vocabulary)?,
            SENTENCE_PIECE => sentencepiece::byte_pairs(&vocabulary)?,
            UNIGRAM => sentencepiece::unigram(&vocabulary)?,
            other => {
                return Err(TokenizerError::Unsupported {
                    path: file.path().to_path_buf(),
                    key: "tokenizer.ggml.model",
                    value: format!("{other:?}"),
                    supported: format!(
                        "{BYTE_LEVEL:?}, byte-level BPE, {SENTENCE_PIECE:?} or {UNIGRAM:?}, SentencePiece,"
                    ),
                });
            }
        };
        let special = vocabulary.special_tokens(&parts.notation)?;
        let takes_spaces = special.iter().any(|token| token.rstrip);
        parts.inner.add_tokens(special).map_err(|error| malformed(file.path(), error.to_string()))?;
        let bytes = vocabulary.bytes(&parts.notation);
        let special = vocabulary.special().map(|(_, token, _)| token.len());
        let longest = special.chain([bytes.longest(), 1]).max().unwrap_or(1);
        Ok(Self {
            inner: parts.inner,
            bytes,
            end_of_generation: vocabulary.end_of_generation()?,
            first: vocabulary.first_token(parts.adds_bos)?,
            space_before_text: parts.space_before_text,
            bound: Bound { longest: parts.bytes_per_byte.map(|factor| factor * longest), takes_spaces },
        })
    }
}

fn byte_level(vocabulary: &Vocabulary<'_>) -> Result<TokenizerParts, TokenizerError> {
    let pre = PreTokenizer::named(vocabulary.path, vocabulary.metadata.get_str("tokenizer.ggml.pre")?)?;
    let ids = vocabulary.ids();
    let is_complete = all_bytes(|character| ids.contains_key(character));
    let mut inner = Tokenizer::new(byte_pair_model(vocabulary, ids, pre.whole_words_first)?);
    inner.with_pre_tokenizer(Some(pre.splitter));
    // Composing leaves at least a third of a text's bytes.
    let composed = if pre.normalizer.is_some() { 3 } else { 1 };
    if let Some(normalizer) = pre.normalizer {
        inner.with_normalizer(Some(normalizer)).map_err(|error| vocabulary.malformed(error.to_string()))?;
    }
    Ok(TokenizerParts {
        inner,
        notation: Notation::ByteLevel,
        bytes_per_byte: is_complete.then_some(composed),
        space_before_text: false,
        adds_bos: pre.adds_bos,
    })
}

/// The vocabulary and its merges. Merges are checked here because the builder takes it on trust
/// that what a merge makes is no longer than the longest token.
fn byte_pair_model(
    vocabulary: &Vocabulary<'_>,
    ids: Vocab,
    whole_words_first: bool,
) -> Result<BPE, TokenizerError> {
    let lines = vocabulary.metadata.get_str_array("tokenizer.ggml.merges")?;
    let mut merges = Vec::with_capacity(lines.len());
    for line in lines {
        let parts = line.split_once(' ').filter(|(left, right)| {
            ids.contains_key(*left) && ids.contains_key(*right) && ids.contains_key(&format!("{left}{right}"))
        });
        let Some((left, right)) = parts else {
            return Err(vocabulary.malformed(format!("the merge {line:?} is not of tokens into a token")));
        };
        merges.push((left.to_owned(), right.to_owned()));
    }
    BPE::builder()
        .vocab_and_merges(ids, merges)
        .ignore_merges(whole_words_first)
        .build()
        .map_err(|error| vocabulary.malformed(error.to_string()))
}
