//! Parameters that several endpoints share: sampling, stop sequences and streaming.
//!
//! Token ids are checked against the model's vocabulary by the worker, not here.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use emberline_protocol::error::{ApiError, ErrorCode};
pub use emberline_protocol::job::MAX_CHOICES;
use emberline_protocol::job::SamplingOptions;

use crate::neutral::Only;

/// Largest number of stop sequences.
pub const MAX_STOPS: usize = 4;
/// Largest number of alternatives for each token's log-probability.
pub const MAX_TOP_LOGPROBS: u32 = 20;
/// Largest number of entries in `logit_bias`.
pub const MAX_LOGIT_BIASES: usize = 300;
/// Largest number of entries in `stop_token_ids`.
pub const MAX_STOP_TOKEN_IDS: usize = 128;
/// Largest number of entries in `bad_words`, each of which is matched with and without a space before it.
pub const MAX_BAD_WORDS: usize = 512;
/// Largest number of characters of a bad word.
const MAX_BAD_WORD: usize = 256;
/// Largest number of characters of `cache_salt`.
pub const MAX_SALT: usize = 1024;
/// Largest number of pairs in `metadata`.
pub const MAX_METADATA: usize = 16;

/// Pattern for the names of functions and schemas.
pub const NAME_PATTERN: &str = "^[a-zA-Z0-9_-]+$";

/// OpenAI's and vLLM's sampling parameters.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
pub struct Sampling {
    /// Sampling temperature. Higher values make the text more random; 0 always selects the most probable
    /// token. Default: 1.
    #[schemars(range(min = 0, max = 2))]
    temperature: Option<f32>,
    /// Nucleus sampling: samples only from the most probable tokens whose probabilities add up to this value.
    /// Default: 1.
    #[schemars(range(min = 0, max = 1))]
    top_p: Option<f32>,
    /// Subtracted from the logit of each token that already occurs in the generated text. Default: 0.
    #[schemars(range(min = -2, max = 2))]
    presence_penalty: Option<f32>,
    /// Subtracted from a token's logit once for each time that it occurs in the generated text. Default: 0.
    #[schemars(range(min = -2, max = 2))]
    frequency_penalty: Option<f32>,
    /// Maps token ids (as strings) to values from -100 to 100, which are added to the tokens' logits.
    /// Default: no bias.
    #[schemars(extend(
        "maxProperties" = MAX_LOGIT_BIASES,
        "propertyNames" = {"pattern": "^[0-9]+$", "maxLength": 10, "x-hint": TOKEN_HINT},
    ))]
    logit_bias: Option<BTreeMap<String, Option<Bias>>>,
    /// Extension to OpenAI's API. Samples only from this many most probable tokens; 0 or -1 for all tokens.
    /// Default: 0.
    #[schemars(range(min = -1, max = u32::MAX))]
    top_k: Option<i64>,
    /// Extension to OpenAI's API. Drops tokens less probable than `min_p` times the most probable token.
    /// Default: 0.
    #[schemars(range(min = 0, max = 1))]
    min_p: Option<f32>,
    /// Extension to OpenAI's API. Values above 1 make tokens that occur in the prompt or in the generated
    /// text less probable, values below 1 more probable. Default: 1.
    #[schemars(extend("exclusiveMinimum" = 0, "x-hint" = "1 is neutral, 1.1 is usual."))]
    repetition_penalty: Option<f64>,
    /// Extension to OpenAI's API. Minimum number of tokens before a token may end the choice; a stop sequence
    /// in `stop` still ends it. Default: 0.
    #[schemars(range(min = 0, max = u32::MAX))]
    min_tokens: Option<u32>,
    /// Extension to OpenAI's API. Whether generation continues after the model's end-of-sequence token.
    /// Default: false.
    ignore_eos: Option<bool>,
    /// Extension to OpenAI's API. Up to 128 ids of tokens that end the choice and are not part of its text.
    /// Default: none.
    #[schemars(length(max = MAX_STOP_TOKEN_IDS), inner(range(min = 0, max = u32::MAX)))]
    stop_token_ids: Option<Vec<u32>>,
    /// Extension to OpenAI's API. Up to 512 words that are never generated, with or without a space before
    /// them: the last token of a word is never sampled after its other tokens. Default: none.
    #[schemars(length(max = MAX_BAD_WORDS), inner(length(min = 1, max = MAX_BAD_WORD)))]
    bad_words: Option<Vec<String>>,
}

const TOKEN_HINT: &str = "Keys of 'logit_bias' are token ids, such as \"1234\".";

#[derive(Debug, Clone, Copy, PartialEq, Deserialize, JsonSchema)]
#[schemars(inline)]
struct Bias(#[schemars(range(min = -100, max = 100))] f32);

impl Sampling {
    /// Converts them to the job's options. Fails if `min_tokens` is greater than `max_tokens`.
    pub fn options(self, max_tokens: Option<u32>) -> Result<SamplingOptions, ApiError> {
        let default = SamplingOptions::default();
        if let (Some(least), Some(most)) = (self.min_tokens, max_tokens)
            && least > most
        {
            let message = format!("'min_tokens' ({least}) is more than 'max_tokens' ({most}). Lower it.");
            return Err(ApiError::field(ErrorCode::InvalidValue, "min_tokens", message));
        }
        Ok(SamplingOptions {
            temperature: self.temperature.unwrap_or(default.temperature),
            top_p: self.top_p.unwrap_or(default.top_p),
            // As in vLLM, both -1 and 0 mean no limit.
            top_k: self.top_k.map_or(default.top_k, |k| u32::try_from(k).unwrap_or(0)),
            min_p: self.min_p.unwrap_or(default.min_p),
            presence_penalty: self.presence_penalty.unwrap_or(default.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(default.frequency_penalty),
            repetition_penalty: match self.repetition_penalty {
                Some(penalty) => narrow_penalty(penalty)?,
                None => default.repetition_penalty,
            },
            logit_bias: read_logit_bias(self.logit_bias.unwrap_or_default())?,
            min_tokens: self.min_tokens.unwrap_or(default.min_tokens),
            ignore_eos: self.ignore_eos.unwrap_or(default.ignore_eos),
            stop_token_ids: self.stop_token_ids.unwrap_or_default(),
            bad_words: self.bad_words.unwrap_or_default(),
        })
    }
}

/// Converts the penalty to the engine's 32-bit floats, in which it must still be positive and finite.
fn narrow_penalty(wide: f64) -> Result<f32, ApiError> {
    let penalty = wide as f32;
    if penalty > 0.0 && penalty.is_finite() {
        return Ok(penalty);
    }
    let message =
        format!("'repetition_penalty' must fit a 32-bit float, got {wide}. 1 is neutral, 1.1 is usual.");
    Err(ApiError::field(ErrorCode::InvalidValue, "repetition_penalty", message))
}

fn read_logit_bias(entries: BTreeMap<String, Option<Bias>>) -> Result<Vec<(u32, f32)>, ApiError> {
    let mut biases = Vec::with_capacity(entries.len());
    for (key, bias) in entries {
        // Only one spelling of an id is accepted, so that no two keys refer to the same token.
        let Some(id) = key.parse().ok().filter(|id: &u32| id.to_string() == key) else {
            let path = format!("logit_bias.{key}");
            let message = format!("'{path}' does not name a token. {TOKEN_HINT}");
            return Err(ApiError::field(ErrorCode::InvalidValue, path, message));
        };
        biases.extend(bias.map(|Bias(bias)| (id, bias)));
    }
    biases.sort_unstable_by_key(|&(id, _)| id);
    Ok(biases)
}

/// One stop sequence or several. The generated text ends before the first of them that occurs.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
pub enum Stop {
    /// One stop sequence.
    One(#[schemars(length(min = 1), extend("x-hint" = EMPTY_STOP))] String),
    /// Up to 4 stop sequences.
    Several(#[schemars(length(max = MAX_STOPS), inner(length(min = 1)))] Vec<String>),
}

const EMPTY_STOP: &str = "It would stop before the first token: leave it out.";

impl Stop {
    /// All stop sequences.
    pub fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(stop) => vec![stop],
            Self::Several(stops) => stops,
        }
    }
}

/// Options for streaming; only with `stream`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(crate) struct StreamOptions {
    /// Whether the stream ends with an additional chunk whose `usage` contains the token counts and whose
    /// `choices` is empty. All other chunks then have `usage: null`. Default: false.
    include_usage: Option<bool>,
    /// Extension to OpenAI's API. Whether every chunk's `usage` contains the token counts so far, and the
    /// stream ends with an additional chunk as with `include_usage`. Default: false.
    continuous_usage_stats: Option<bool>,
    /// Only `false` is accepted, because obfuscation of chunks is not supported.
    #[allow(dead_code)]
    include_obfuscation: Option<Only<false>>,
}

/// Which chunks of a stream contain token counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum StreamUsage {
    /// No chunk.
    #[default]
    Never,
    /// Only an additional last chunk.
    Last,
    /// Every chunk, with the counts so far, and an additional last chunk.
    Always,
}

impl StreamOptions {
    /// Which chunks contain token counts. Fails if the options ask for counts and `stream` is false.
    pub(crate) fn usage(options: Option<Self>, stream: bool) -> Result<StreamUsage, ApiError> {
        let options = options.unwrap_or_default();
        let (last, always) = (options.include_usage, options.continuous_usage_stats);
        let usage = match (last.unwrap_or(false), always.unwrap_or(false)) {
            (_, true) => StreamUsage::Always,
            (true, false) => StreamUsage::Last,
            (false, false) => StreamUsage::Never,
        };
        if usage != StreamUsage::Never && !stream {
            let message = "'stream_options' is only allowed when 'stream' is true.";
            return Err(ApiError::field(ErrorCode::InvalidValue, "stream_options", message));
        }
        Ok(usage)
    }
}
