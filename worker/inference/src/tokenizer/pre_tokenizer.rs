//! How text is split into words before BPE sees them: `tokenizer.ggml.pre`.
//!
//! Wrong splits give wrong token ids without any other sign, so an unknown name is an error.

use std::path::Path;

use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior};

use super::TokenizerError;
use super::error::malformed;

/// GPT-2's words: contractions, then letters, numbers or other signs with at most one space before
/// them, then white space.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// Llama 3's words: as GPT-2's, but a sign may go before letters, line ends belong to the signs
/// before them, and numbers come in threes.
const LLAMA3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// Qwen 2's: Llama 3's with each digit on its own.
const QWEN2: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// Mistral Nemo's: letters are split where upper case follows lower case, slashes belong to the
/// signs before them, each digit is on its own.
const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// GPT-4o's and Phi-4-mini's: as Mistral Nemo's with contractions, and numbers in threes.
const GPT4O: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

struct KnownSplit {
    names: &'static [&'static str],
    /// Applied one after the other; what one leaves or finds, the next splits further.
    patterns: &'static [&'static str],
    compose: bool,
    whole_words_first: bool,
    adds_bos: bool,
}

const PLAIN: KnownSplit =
    KnownSplit { names: &[], patterns: &[GPT2], compose: false, whole_words_first: false, adds_bos: false };

/// Names are llama.cpp's; several stand for the same.
const KNOWN: [KnownSplit; 9] = [
    KnownSplit { names: &["gpt-2", "phi-2"], ..PLAIN },
    KnownSplit { names: &["smollm"], patterns: &[r"\p{N}", GPT2], ..PLAIN },
    KnownSplit {
        names: &["default"],
        patterns: &[r"[\p{P}$+<=>^~|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
        ..PLAIN
    },
    KnownSplit {
        names: &["llama-bpe", "llama3", "llama-v3"],
        patterns: &[LLAMA3],
        whole_words_first: true,
        adds_bos: true,
        ..PLAIN
    },
    // Phi 4 is among these.
    KnownSplit { names: &["dbrx", "smaug-bpe"], patterns: &[LLAMA3], ..PLAIN },
    KnownSplit { names: &["qwen2"], patterns: &[QWEN2], compose: true, ..PLAIN },
    KnownSplit { names: &["deepseek-r1-qwen"], patterns: &[QWEN2], ..PLAIN },
    KnownSplit { names: &["tekken"], patterns: &[TEKKEN], whole_words_first: true, adds_bos: true, ..PLAIN },
    KnownSplit { names: &["gpt-4o", "llama4"], patterns: &[GPT4O], ..PLAIN },
];

/// What happens to text before BPE.
pub(super) struct PreTokenizer {
    pub(super) splitter: Sequence,
    /// Composes characters (NFC) first.
    pub(super) normalizer: Option<NFC>,
    /// A word that is a token is that token, whatever the merges would make of it.
    pub(super) whole_words_first: bool,
    /// A text begins with a token of its own unless the file says otherwise.
    pub(super) adds_bos: bool,
}

impl PreTokenizer {
    /// The one that the file at `path` calls `name`.
    pub(super) fn named(path: &Path, name: &str) -> Result<Self, TokenizerError> {
        let Some(known) = KNOWN.iter().find(|known| known.names.contains(&name)) else {
            let names: Vec<&str> = KNOWN.iter().flat_map(|known| known.names).copied().collect();
            return Err(TokenizerError::Unsupported {
                path: path.to_path_buf(),
                key: "tokenizer.ggml.pre",
                value: format!("{name:?}"),
                supported: format!("one of {}", names.join(", ")),
            });
        };
        let mut steps = Vec::new();
        for &pattern in known.patterns {
            let pattern = SplitPattern::Regex(pattern.to_owned());
            let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
                .map_err(|error| malformed(path, error.to_string()))?;
            steps.push(PreTokenizerWrapper::from(split));
        }
        steps.push(ByteLevel::new(false, false, false).into());
        Ok(Self {
            splitter: Sequence::new(steps),
            normalizer: known.compose.then_some(NFC),
            whole_words_first: known.whole_words_first,
            adds_bos: known.adds_bos,
        })
    }
}
