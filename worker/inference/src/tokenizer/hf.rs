//! A tokenizer from a folder as on the Hugging Face hub.
//!
//! `tokenizer.json` says how text becomes ids; which special tokens have which role is in
//! `tokenizer_config.json`, and which ones end an answer also in `generation_config.json` and
//! `config.json`.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tokenizers::normalizers::Replace;
use tokenizers::{ModelWrapper, NormalizerWrapper, Tokenizer};

use super::bytes::{Notation, TokenBytes, all_bytes, piece_of_byte};
use super::error::malformed;
use super::{Bound, END_TOKENS, ModelTokenizer, TOOL_MARKS, TokenizerError};
use crate::checkpoint::hf::{EndTokens, HfFileError, TokenizerConfig, read, read_json};

/// More tokens than any vocabulary has; ids above it mean a damaged file.
const MOST_TOKENS: u32 = 1 << 24;

impl ModelTokenizer {
    /// Builds it from the files in a model's folder.
    pub fn from_hf_dir(folder: &Path) -> Result<Self, TokenizerError> {
        let path = folder.join("tokenizer.json");
        let inner = open(&path)?;
        let config: TokenizerConfig = read_json(&folder.join(TokenizerConfig::FILE))?;
        let (notation, space_before_text) = reading(&path, &inner)?;
        let bytes = token_bytes(&path, &inner, &notation)?;
        Ok(Self {
            end_of_generation: end_of_generation(folder, &inner, &config, bytes.len())?,
            first: first_token(&inner, &config)?,
            bound: bound(&inner, &notation, &bytes),
            space_before_text,
            bytes,
            inner,
        })
    }
}

fn open(path: &Path) -> Result<Tokenizer, TokenizerError> {
    let Some(json) = read(path)? else {
        return Err(HfFileError::Missing { path: path.to_path_buf(), what: "the tokenizer" }.into());
    };
    // The library indexes with what a damaged file says.
    let parsed = catch_unwind(AssertUnwindSafe(|| Tokenizer::from_bytes(&json)));
    let mut inner = match parsed {
        Ok(Ok(inner)) => inner,
        Ok(Err(error)) => return Err(malformed(path, error.to_string())),
        Err(_) => return Err(malformed(path, "its merges make what is no token")),
    };
    check_added_tokens(path, &inner, &json)?;
    // Left over from training; a prompt is never cut.
    inner.with_truncation(None).map_err(|error| malformed(path, error.to_string()))?;
    inner.with_padding(None);
    Ok(inner)
}

/// The library gives tokens that the vocabulary lacks the ids after it, whatever the file says.
fn check_added_tokens(path: &Path, inner: &Tokenizer, json: &[u8]) -> Result<(), TokenizerError> {
    #[derive(Deserialize)]
    struct File {
        #[serde(default)]
        added_tokens: Vec<Added>,
    }
    #[derive(Deserialize)]
    struct Added {
        id: u32,
        content: String,
    }
    let parse = |source| HfFileError::Parse { path: path.to_path_buf(), source };
    let file: File = serde_json::from_slice(json).map_err(parse)?;
    for Added { id, content } in file.added_tokens {
        match inner.token_to_id(&content) {
            Some(own) if own != id => {
                let what = format!("the token {content} has the id {id} where {own} is the next");
                return Err(malformed(path, what));
            }
            _ => {}
        }
    }
    Ok(())
}

/// A step from tokens to text.
#[derive(Deserialize)]
#[serde(tag = "type")]
enum DecoderStep {
    ByteLevel,
    ByteFallback,
    Fuse,
    Metaspace { replacement: char, prepend_scheme: String },
    Replace { pattern: Pattern, content: String },
    Strip { content: char, start: usize, stop: usize },
    Sequence { decoders: Vec<DecoderStep> },
}

#[derive(Deserialize)]
enum Pattern {
    String(String),
}

/// How the vocabulary writes text, and whether a text's first space is not part of it: what the
/// decoder's steps say.
fn reading(path: &Path, inner: &Tokenizer) -> Result<(Notation, bool), TokenizerError> {
    let json = serde_json::to_value(inner.get_decoder()).unwrap_or_default();
    let unsupported = || TokenizerError::Unsupported {
        path: path.to_path_buf(),
        key: "decoder",
        value: json.to_string(),
        supported: "byte-level or SentencePiece's".to_owned(),
    };
    let steps = match DecoderStep::deserialize(&json).map_err(|_| unsupported())? {
        DecoderStep::Sequence { decoders } => decoders,
        step => vec![step],
    };
    let mut replaced = Vec::new();
    let (mut byte_fallback, mut fused) = (false, false);
    for (number, step) in steps.iter().enumerate() {
        let is_last = number + 1 == steps.len();
        match step {
            DecoderStep::ByteLevel if steps.len() == 1 => return Ok((Notation::ByteLevel, false)),
            DecoderStep::Replace { pattern: Pattern::String(pattern), content } if !byte_fallback => {
                replaced.push((pattern.clone(), content.clone()));
            }
            DecoderStep::ByteFallback => byte_fallback = true,
            DecoderStep::Fuse => fused = true,
            DecoderStep::Metaspace { replacement, prepend_scheme } if is_last => {
                replaced.push((replacement.to_string(), " ".to_owned()));
                return Ok((Notation::Pieces { replaced, byte_fallback }, prepend_scheme != "never"));
            }
            DecoderStep::Strip { content: ' ', start: 1, stop: 0 } if is_last && fused => {
                return Ok((Notation::Pieces { replaced, byte_fallback }, true));
            }
            _ => return Err(unsupported()),
        }
    }
    Ok((Notation::Pieces { replaced, byte_fallback }, false))
}

fn token_bytes(path: &Path, inner: &Tokenizer, notation: &Notation) -> Result<TokenBytes, TokenizerError> {
    let vocabulary = inner.get_vocab(true);
    let last = vocabulary.values().copied().max().unwrap_or(0);
    if last >= MOST_TOKENS {
        return Err(malformed(path, format!("it has a token {last}")));
    }
    let mut tokens = vec![None; last as usize + 1];
    for (token, id) in &vocabulary {
        tokens[*id as usize] = Some(token.as_str());
    }
    let added = inner.get_added_tokens_decoder();
    let mut bytes = TokenBytes::default();
    for (id, token) in (0..).zip(tokens) {
        bytes.push(|out| match (added.get(&id), token) {
            (Some(added), _) if added.special && !TOOL_MARKS.contains(&added.content.as_str()) => {}
            (Some(added), _) if *notation == Notation::ByteLevel => {
                out.extend_from_slice(added.content.as_bytes());
            }
            (_, Some(token)) => notation.write(token, out),
            (_, None) => {}
        });
    }
    Ok(bytes)
}

/// The tokens that end an answer: those that the model's files name, and the well-known ones.
fn end_of_generation(
    folder: &Path,
    inner: &Tokenizer,
    config: &TokenizerConfig,
    count: usize,
) -> Result<HashSet<u32>, TokenizerError> {
    let added = inner.get_added_tokens_decoder();
    let known = added.iter().filter(|(_, token)| END_TOKENS.contains(&token.content.as_str()));
    let mut ids: HashSet<u32> = known.map(|(&id, _)| id).collect();
    ids.extend(config.named_token("eos_token").and_then(|token| inner.token_to_id(token)));
    for file in ["config.json", "generation_config.json"] {
        let path: PathBuf = folder.join(file);
        let ends: EndTokens = read_json(&path)?;
        for &id in ends.eos_token_id.iter().flat_map(|ids| ids.as_slice()) {
            if id as usize >= count {
                return Err(malformed(&path, format!("eos_token_id is {id}, but there are {count} tokens")));
            }
            ids.insert(id);
        }
    }
    Ok(ids)
}

/// The token that begins every text: `add_bos_token` decides, else what `tokenizer.json` does.
fn first_token(inner: &Tokenizer, config: &TokenizerConfig) -> Result<Option<u32>, TokenizerError> {
    let Some(bos) = config.named_token("bos_token").and_then(|token| inner.token_to_id(token)) else {
        return Ok(None);
    };
    let adds = match config.add_bos_token {
        Some(adds) => adds,
        None => inner.encode_fast("", true).map_err(TokenizerError::Encode)?.get_ids().first() == Some(&bos),
    };
    Ok(adds.then_some(bos))
}

fn bound(inner: &Tokenizer, notation: &Notation, bytes: &TokenBytes) -> Bound {
    let added = inner.get_added_tokens_decoder();
    let special = added.values().map(|token| token.content.len());
    let longest = special.chain([bytes.longest(), 1]).max().unwrap_or(1);
    let is_complete = match (inner.get_model(), notation) {
        (ModelWrapper::BPE(_), Notation::ByteLevel) => all_bytes(|token| inner.token_to_id(token).is_some()),
        (ModelWrapper::BPE(model), Notation::Pieces { .. }) => {
            model.byte_fallback && (0..=255).all(|byte| inner.token_to_id(&piece_of_byte(byte)).is_some())
        }
        _ => false,
    };
    Bound {
        longest: shrinking(inner).filter(|_| is_complete).map(|factor| factor * longest),
        // Special tokens may take them, and ways of splitting may leave them out.
        takes_spaces: true,
    }
}

/// By how much the normaliser may shorten a text; `None` if that is not known.
fn shrinking(inner: &Tokenizer) -> Option<usize> {
    let Some(normalizer) = inner.get_normalizer() else { return Some(1) };
    let steps = match normalizer {
        NormalizerWrapper::Sequence(steps) => steps.as_ref(),
        step => std::slice::from_ref(step),
    };
    steps.iter().try_fold(1, |factor, step| match step {
        NormalizerWrapper::NFC(_) => Some(3 * factor),
        NormalizerWrapper::Prepend(_) => Some(factor),
        NormalizerWrapper::Replace(replace) if writes_spaces(replace) => Some(factor),
        _ => None,
    })
}

/// Whether all it does is to write ▁ for a space.
fn writes_spaces(replace: &Replace) -> bool {
    let pattern = serde_json::to_value(replace).unwrap_or_default();
    replace.content == "▁" && pattern.pointer("/pattern/String").is_some_and(|pattern| pattern == " ")
}
