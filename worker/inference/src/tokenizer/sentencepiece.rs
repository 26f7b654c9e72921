//! SentencePiece vocabularies from GGUF metadata: pieces with scores.
//!
//! Two ways to choose pieces: BPE joins the neighbours whose joint piece has the highest score
//! until none is left; unigram takes the pieces with the highest sum. A space is `▁`, one is
//! written before each text, and what no piece has is written byte by byte.

use std::cmp::Reverse;

use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::replace::{Replace, ReplacePattern};
use tokenizers::normalizers::{Precompiled, Prepend, Sequence};
use tokenizers::{NormalizerWrapper, Tokenizer};

use super::TokenizerError;
use super::bytes::{Notation, piece_of_byte};
use super::vocabulary::{TokenizerParts, Vocabulary, token_type};
use crate::checkpoint::gguf::{Array, Value};

const SPACE: &str = "▁";

/// SentencePiece's BPE.
pub(super) fn byte_pairs(vocabulary: &Vocabulary<'_>) -> Result<TokenizerParts, TokenizerError> {
    let scores = scores(vocabulary)?;
    let ids = vocabulary.ids();
    let is_complete = has_all_bytes(&ids);
    let merges = merges(vocabulary, scores, &ids);
    let mut model = BPE::builder().vocab_and_merges(ids, merges).byte_fallback(true).fuse_unk(true);
    if let Some(token) = unknown(vocabulary)?.and_then(|id| vocabulary.tokens.get(id)) {
        model = model.unk_token(token.clone());
    }
    let model = model.build().map_err(|error| vocabulary.malformed(error.to_string()))?;
    let prefix = vocabulary.metadata.opt_bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let mut inner = Tokenizer::new(model);
    normalize(vocabulary, &mut inner, spaces(vocabulary, prefix)?)?;
    Ok(TokenizerParts {
        inner,
        notation: Notation::sentence_piece(),
        bytes_per_byte: is_complete.then_some(1),
        space_before_text: prefix,
        adds_bos: true,
    })
}

/// SentencePiece's unigram. Text that reads like a byte's piece (`<0x41>`) is taken for it.
pub(super) fn unigram(vocabulary: &Vocabulary<'_>) -> Result<TokenizerParts, TokenizerError> {
    let metadata = vocabulary.metadata;
    let scores = scores(vocabulary)?.iter().map(|&score| f64::from(score));
    let pieces: Vec<_> = vocabulary.tokens.iter().cloned().zip(scores).collect();
    let has_bytes = has_all_bytes(&vocabulary.ids());
    let model = Unigram::from(pieces, unknown(vocabulary)?, has_bytes)
        .map_err(|error| vocabulary.malformed(error.to_string()))?;
    let mut steps: Vec<NormalizerWrapper> = Vec::new();
    if let Some(map) = character_map(vocabulary)? {
        let map = Precompiled::from(&map).map_err(|error| vocabulary.malformed(error.to_string()))?;
        steps.push(map.into());
    }
    if metadata.opt_bool("tokenizer.ggml.remove_extra_whitespaces")?.unwrap_or(false) {
        steps.push(replace(vocabulary, ReplacePattern::Regex("^ +|[ ▁]+$".to_owned()), "")?);
        steps.push(replace(vocabulary, ReplacePattern::Regex(" {2,}".to_owned()), " ")?);
    }
    let prefix = metadata.opt_bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(false);
    steps.extend(spaces(vocabulary, prefix)?);
    let mut inner = Tokenizer::new(model);
    normalize(vocabulary, &mut inner, steps)?;
    Ok(TokenizerParts {
        inner,
        notation: Notation::sentence_piece(),
        // Characters may be mapped to nothing, and all unknown ones in a row are one token.
        bytes_per_byte: None,
        space_before_text: prefix,
        adds_bos: false,
    })
}

fn scores<'a>(vocabulary: &Vocabulary<'a>) -> Result<&'a [f32], TokenizerError> {
    let scores = vocabulary.metadata.get_f32_array("tokenizer.ggml.scores")?;
    let (tokens, count) = (vocabulary.tokens.len(), scores.len());
    if count != tokens {
        return Err(vocabulary.malformed(format!("{tokens} tokens but {count} scores")));
    }
    if let Some(score) = scores.iter().find(|score| !score.is_finite()) {
        return Err(vocabulary.malformed(format!("a token's score is {score}")));
    }
    Ok(scores)
}

/// The token for what has no other.
fn unknown(vocabulary: &Vocabulary<'_>) -> Result<Option<usize>, TokenizerError> {
    let named = vocabulary.named("tokenizer.ggml.unknown_token_id")?;
    let by_type = || vocabulary.types.iter().position(|&kind| kind == token_type::UNKNOWN);
    Ok(named.map(|id| id as usize).or_else(by_type))
}

fn has_all_bytes(ids: &Vocab) -> bool {
    (0..=255).all(|byte| ids.contains_key(&piece_of_byte(byte)))
}

/// Which neighbours are joined, and which first: each way to cut a piece in two is one, and higher
/// scores come first. Of a piece's own ways the one with the longer left part does, as in Hugging
/// Face's conversion.
fn merges(vocabulary: &Vocabulary<'_>, scores: &[f32], ids: &Vocab) -> Merges {
    let mut merges: Vec<(f32, &str, &str)> = Vec::new();
    for ((_, piece, kind), &score) in vocabulary.iter().zip(scores) {
        if kind != token_type::NORMAL {
            continue;
        }
        let cuts = piece.char_indices().skip(1).map(|(at, _)| piece.split_at(at));
        let cuts = cuts.filter(|(left, right)| ids.contains_key(*left) && ids.contains_key(*right));
        merges.extend(cuts.map(|(left, right)| (score, left, right)));
    }
    merges.sort_by(|(a, left, _), (b, other, _)| {
        b.total_cmp(a).then(Reverse(left.len()).cmp(&Reverse(other.len())))
    });
    merges.into_iter().map(|(_, left, right)| (left.to_owned(), right.to_owned())).collect()
}

/// A space before the text, and ▁ for each.
fn spaces(vocabulary: &Vocabulary<'_>, prefix: bool) -> Result<Vec<NormalizerWrapper>, TokenizerError> {
    let mut steps: Vec<NormalizerWrapper> = Vec::new();
    if prefix {
        steps.push(Prepend::new(SPACE.to_owned()).into());
    }
    steps.push(replace(vocabulary, ReplacePattern::String(" ".to_owned()), SPACE)?);
    Ok(steps)
}

fn replace(
    vocabulary: &Vocabulary<'_>,
    pattern: ReplacePattern,
    content: &str,
) -> Result<NormalizerWrapper, TokenizerError> {
    let step = Replace::new(pattern, content).map_err(|error| vocabulary.malformed(error.to_string()))?;
    Ok(step.into())
}

fn normalize(
    vocabulary: &Vocabulary<'_>,
    inner: &mut Tokenizer,
    steps: Vec<NormalizerWrapper>,
) -> Result<(), TokenizerError> {
    let set = inner.with_normalizer(Some(Sequence::new(steps))).map(|_| ());
    set.map_err(|error| vocabulary.malformed(error.to_string()))
}

/// Which characters are replaced by which, in SentencePiece's own compiled form.
fn character_map(vocabulary: &Vocabulary<'_>) -> Result<Option<Vec<u8>>, TokenizerError> {
    const KEY: &str = "tokenizer.ggml.precompiled_charsmap";
    match vocabulary.metadata.get(KEY) {
        None => Ok(None),
        Some(Value::Array(Array::U8(bytes))) => Ok(Some(bytes.clone())),
        Some(Value::Array(Array::I8(bytes))) => {
            Ok(Some(bytes.iter().map(|byte| byte.cast_unsigned()).collect()))
        }
        Some(_) => Err(vocabulary.malformed(format!("{KEY} is not an array of bytes"))),
    }
}
