//! A tokenizer from a GGUF file's metadata.

use std::collections::HashSet;
use std::path::Path;

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::{AddedToken, Tokenizer};

use super::bytes::{Notation, TokenBytes, all_bytes};
use super::error::malformed;
use super::pre::PreTokenizer;
use super::{Bound, END_TOKENS, ModelTokenizer, TOOL_MARKS, TokenizerError, pieces};
use crate::checkpoint::gguf::{GgufFile, Metadata};

/// The kinds of tokenizers by `tokenizer.ggml.model`.
const BYTE_LEVEL: &str = "gpt2";
const SENTENCE_PIECE: &str = "llama";
const UNIGRAM: &str = "t5";

/// ggml's kinds of tokens.
pub(super) mod token_type {
    pub(crate) const NORMAL: i32 = 1;
    pub(crate) const UNKNOWN: i32 = 2;
    pub(crate) const CONTROL: i32 = 3;
    pub(crate) const USER_DEFINED: i32 = 4;
    pub(crate) const BYTE: i32 = 6;
}

/// A file's tokens; the lists have one entry each.
#[derive(Clone, Copy)]
pub(super) struct Vocabulary<'a> {
    pub(super) path: &'a Path,
    pub(super) metadata: &'a Metadata,
    pub(super) tokens: &'a [String],
    pub(super) types: &'a [i32],
}

/// A tokenizer without its special tokens, and what it does beside encoding.
pub(super) struct Parts {
    pub(super) inner: Tokenizer,
    pub(super) notation: Notation,
    /// As [`Bound::longest`] for tokens of one byte; `None` if there is no limit.
    pub(super) bytes_per_byte: Option<usize>,
    pub(super) space_before_text: bool,
    pub(super) adds_bos: bool,
}

impl ModelTokenizer {
    /// Builds it from a model file's metadata.
    pub fn from_gguf(file: &GgufFile) -> Result<Self, TokenizerError> {
        let vocabulary = Vocabulary::read(file)?;
        let mut parts = match vocabulary.metadata.get_str("tokenizer.ggml.model")? {
            BYTE_LEVEL => byte_level(&vocabulary)?,
            SENTENCE_PIECE => pieces::byte_pairs(&vocabulary)?,
            UNIGRAM => pieces::unigram(&vocabulary)?,
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

impl<'a> Vocabulary<'a> {
    fn read(file: &'a GgufFile) -> Result<Self, TokenizerError> {
        let (path, metadata) = (file.path(), file.metadata());
        // Asked for first: a file that lacks it has no tokenizer at all.
        metadata.get_str("tokenizer.ggml.model")?;
        let tokens = metadata.get_str_array("tokenizer.ggml.tokens")?;
        let types = metadata.get_i32_array("tokenizer.ggml.token_type")?;
        if types.len() != tokens.len() {
            return Err(malformed(path, format!("{} tokens but {} token types", tokens.len(), types.len())));
        }
        if u32::try_from(tokens.len()).is_err() {
            return Err(malformed(path, format!("{} tokens are too many", tokens.len())));
        }
        Ok(Self { path, metadata, tokens, types })
    }

    /// Ids, tokens and their types.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &'a str, i32)> + use<'a> {
        let tokens = self.tokens.iter().zip(self.types);
        (0..).zip(tokens).map(|(id, (token, &kind))| (id, token.as_str(), kind))
    }

    /// Where each token is; of equal ones the first counts.
    pub(super) fn ids(&self) -> Vocab {
        let mut ids = Vocab::with_capacity(self.tokens.len());
        for (id, token, _) in self.iter() {
            ids.entry(token.to_owned()).or_insert(id);
        }
        ids
    }

    pub(super) fn malformed(&self, what: impl Into<String>) -> TokenizerError {
        malformed(self.path, what)
    }

    /// The tokens that are found in the text before it is split.
    fn special(&self) -> impl Iterator<Item = (u32, &'a str, i32)> + use<'a> {
        self.iter().filter(|&(_, _, kind)| {
            matches!(kind, token_type::CONTROL | token_type::USER_DEFINED | token_type::UNKNOWN)
        })
    }

    fn special_tokens(&self, notation: &Notation) -> Result<Vec<AddedToken>, TokenizerError> {
        let strips = *notation != Notation::ByteLevel
            && self.metadata.opt_str("general.architecture")?.is_some_and(|name| name == "phi3");
        let added = |(_, token, kind): (u32, &str, i32)| {
            let control = kind != token_type::USER_DEFINED;
            // Phi 3's marks take the line end after them; a file has no place to say so.
            let mark = strips && control && !["<s>", "<unk>", "<|endoftext|>"].contains(&token);
            AddedToken::from(token, control).normalized(false).rstrip(mark)
        };
        Ok(self.special().map(added).collect())
    }

    fn bytes(&self, notation: &Notation) -> TokenBytes {
        let mut bytes = TokenBytes::default();
        for (_, token, kind) in self.iter() {
            bytes.push(|out| match kind {
                token_type::NORMAL | token_type::BYTE => notation.write(token, out),
                token_type::USER_DEFINED if *notation == Notation::ByteLevel => {
                    out.extend_from_slice(token.as_bytes());
                }
                token_type::USER_DEFINED => notation.write(token, out),
                token_type::CONTROL if TOOL_MARKS.contains(&token) => out.extend_from_slice(token.as_bytes()),
                // Control, unknown and unused tokens have no text.
                _ => {}
            });
        }
        bytes
    }

    /// The token that `key` names, if there is such a key.
    pub(super) fn named(&self, key: &'static str) -> Result<Option<u32>, TokenizerError> {
        match self.metadata.opt_u32(key)? {
            Some(id) if id as usize >= self.tokens.len() => {
                Err(self.malformed(format!("{key} is {id}, but there are {} tokens", self.tokens.len())))
            }
            id => Ok(id),
        }
    }

    fn end_of_generation(&self) -> Result<HashSet<u32>, TokenizerError> {
        let named = self.special().filter(|(_, token, _)| END_TOKENS.contains(token));
        let mut ids: HashSet<u32> = named.map(|(id, ..)| id).collect();
        for key in
            ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"]
        {
            ids.extend(self.named(key)?);
        }
        Ok(ids)
    }

    /// The token that begins every prompt; `default` is whether there is one if the file is silent.
    fn first_token(&self, default: bool) -> Result<Option<u32>, TokenizerError> {
        let bos = self.named("tokenizer.ggml.bos_token_id")?;
        let adds = self.metadata.opt_bool("tokenizer.ggml.add_bos_token")?.unwrap_or(default);
        Ok(bos.filter(|_| adds))
    }
}

fn byte_level(vocabulary: &Vocabulary<'_>) -> Result<Parts, TokenizerError> {
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
    Ok(Parts {
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
