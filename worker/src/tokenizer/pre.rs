//! How text is split into words before BPE sees them: `tokenizer.ggml.pre`.
//!
//! Wrong splits give wrong token ids without any other sign, so an unknown name is an error.

use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior};

use super::TokenizerError;
use crate::gguf::GgufFile;

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

struct Known {
    name: &'static str,
    /// Applied one after the other; what one leaves or finds, the next splits further.
    patterns: &'static [&'static str],
    compose: bool,
    whole_words_first: bool,
}

const KNOWN: [Known; 5] = [
    Known { name: "gpt-2", patterns: &[GPT2], compose: false, whole_words_first: false },
    Known { name: "smollm", patterns: &[r"\p{N}", GPT2], compose: false, whole_words_first: false },
    Known {
        name: "default",
        patterns: &[r"[\p{P}$+<=>^~|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
        compose: false,
        whole_words_first: false,
    },
    Known { name: "llama-bpe", patterns: &[LLAMA3], compose: false, whole_words_first: true },
    Known { name: "qwen2", patterns: &[QWEN2], compose: true, whole_words_first: false },
];

/// What happens to text before BPE.
pub(super) struct PreTokenizer {
    pub(super) splitter: Sequence,
    /// Composes characters (NFC) first.
    pub(super) normalizer: Option<NFC>,
    /// A word that is a token is that token, whatever the merges would make of it.
    pub(super) whole_words_first: bool,
}

impl PreTokenizer {
    pub(super) fn from_gguf(file: &GgufFile) -> Result<Self, TokenizerError> {
        const KEY: &str = "tokenizer.ggml.pre";
        let name = file.metadata().get_str(KEY)?;
        let Some(known) = KNOWN.iter().find(|known| known.name == name) else {
            return Err(TokenizerError::Unsupported {
                path: file.path().to_path_buf(),
                key: KEY,
                value: name.to_owned(),
                supported: format!("one of {}", KNOWN.map(|known| known.name).join(", ")),
            });
        };
        let mut steps = Vec::new();
        for &pattern in known.patterns {
            let pattern = SplitPattern::Regex(pattern.to_owned());
            let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
                .map_err(|error| super::malformed(file.path(), error.to_string()))?;
            steps.push(PreTokenizerWrapper::from(split));
        }
        steps.push(ByteLevel::new(false, false, false).into());
        Ok(Self {
            splitter: Sequence::new(steps),
            normalizer: known.compose.then_some(NFC),
            whole_words_first: known.whole_words_first,
        })
    }
}
