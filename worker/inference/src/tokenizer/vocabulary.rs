//! The tokens in a GGUF file's metadata, which every kind of tokenizer reads.

use std::collections::HashSet;
use std::path::Path;

use tokenizers::models::bpe::Vocab;
use tokenizers::{AddedToken, Tokenizer};

use super::bytes::{Notation, TokenBytes};
use super::error::malformed;
use super::{END_TOKENS, TOOL_MARKS, TokenizerError};
use crate::checkpoint::gguf::{GgufFile, Metadata};

/// ggml's types of tokens.
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
pub(super) struct TokenizerParts {
    pub(super) inner: Tokenizer,
    pub(super) notation: Notation,
    /// As [`Bound::longest`] for tokens of one byte; `None` if there is no limit.
    pub(super) bytes_per_byte: Option<usize>,
    pub(super) space_before_text: bool,
    pub(super) adds_bos: bool,
}

impl<'a> Vocabulary<'a> {
    pub(super) fn read(file: &'a GgufFile) -> Result<Self, TokenizerError> {
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
    pub(super) fn special(&self) -> impl Iterator<Item = (u32, &'a str, i32)> + use<'a> {
        self.iter().filter(|&(_, _, kind)| {
            matches!(kind, token_type::CONTROL | token_type::USER_DEFINED | token_type::UNKNOWN)
        })
    }

    pub(super) fn special_tokens(&self, notation: &Notation) -> Result<Vec<AddedToken>, TokenizerError> {
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

    pub(super) fn bytes(&self, notation: &Notation) -> TokenBytes {
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

    pub(super) fn end_of_generation(&self) -> Result<HashSet<u32>, TokenizerError> {
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
    pub(super) fn first_token(&self, default: bool) -> Result<Option<u32>, TokenizerError> {
        let bos = self.named("tokenizer.ggml.bos_token_id")?;
        let adds = self.metadata.opt_bool("tokenizer.ggml.add_bos_token")?.unwrap_or(default);
        Ok(bos.filter(|_| adds))
    }
}
