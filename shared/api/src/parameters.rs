//! Parameters that several endpoints have: how tokens are picked, and how an answer is delivered.
//!
//! Whether a token id is one of the model's is for the worker to say.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use emberline_protocol::error::{ApiError, ErrorCode};
pub use emberline_protocol::job::MAX_CHOICES;
use emberline_protocol::job::SamplingOptions;

use crate::neutral::Only;

/// Most stop strings.
pub const MAX_STOPS: usize = 4;
/// Most alternatives whose log-probabilities come with a token's own.
pub const MAX_TOP_LOGPROBS: u32 = 20;
/// Most entries of `logit_bias`.
pub const MAX_LOGIT_BIASES: usize = 300;
/// Most entries of `stop_token_ids`.
pub const MAX_STOP_TOKEN_IDS: usize = 128;
/// Most entries of `bad_words`, each of which is looked for with and without a space before it.
pub const MAX_BAD_WORDS: usize = 512;
/// Most characters of a bad word.
const MAX_BAD_WORD: usize = 256;
/// Most characters of a salt.
pub const MAX_SALT: usize = 1024;
/// Most pairs in `metadata`.
pub const MAX_METADATA: usize = 16;

/// What functions, schemas and speakers may be called.
pub const NAME_PATTERN: &str = "^[a-zA-Z0-9_-]+$";

/// How tokens are picked: OpenAI's parameters and vLLM's.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
pub struct Sampling {
    /// Flattens (above 1) or sharpens the probabilities; 0 always takes the most probable token. Default 1.
    #[schemars(range(min = 0, max = 2))]
    temperature: Option<f32>,
    /// Only the most probable tokens that together have this probability count. Default 1.
    #[schemars(range(min = 0, max = 1))]
    top_p: Option<f32>,
    /// Weakens tokens that the answer has. Default 0.
    #[schemars(range(min = -2, max = 2))]
    presence_penalty: Option<f32>,
    /// Weakens tokens for each time that the answer has them. Default 0.
    #[schemars(range(min = -2, max = 2))]
    frequency_penalty: Option<f32>,
    /// By token id (as a string): what is added to its logit, -100 to 100.
    #[schemars(extend(
        "maxProperties" = MAX_LOGIT_BIASES,
        "propertyNames" = {"pattern": "^[0-9]+$", "maxLength": 10, "x-hint": TOKEN_HINT},
    ))]
    logit_bias: Option<BTreeMap<String, Option<Bias>>>,
    /// Extension. Only so many most probable tokens count; 0 or -1 for all. Default 0.
    #[schemars(range(min = -1, max = u32::MAX))]
    top_k: Option<i64>,
    /// Extension. Tokens below this share of the most probable one's probability don't count. Default 0.
    #[schemars(range(min = 0, max = 1))]
    min_p: Option<f32>,
    /// Extension. Above 1 it weakens, below 1 it strengthens tokens that prompt or answer have. Default 1.
    #[schemars(extend("exclusiveMinimum" = 0, "x-hint" = "1 is neutral, 1.1 is usual."))]
    repetition_penalty: Option<f64>,
    /// Extension. Before the answer has so many tokens, none may end it. Default 0.
    #[schemars(range(min = 0, max = u32::MAX))]
    min_tokens: Option<u32>,
    /// Extension. The model's own end does not end the answer. Default false.
    ignore_eos: Option<bool>,
    /// Extension. Tokens that end the answer and are not part of it.
    #[schemars(length(max = MAX_STOP_TOKEN_IDS), inner(range(min = 0, max = u32::MAX)))]
    stop_token_ids: Option<Vec<u32>>,
    /// Extension. Words that the answer does not have: the last of their tokens never follows the others.
    #[schemars(length(max = MAX_BAD_WORDS), inner(length(min = 1, max = MAX_BAD_WORD)))]
    bad_words: Option<Vec<String>>,
}

const TOKEN_HINT: &str = "Keys of 'logit_bias' are token ids, such as \"1234\".";

#[derive(Debug, Clone, Copy, PartialEq, Deserialize, JsonSchema)]
#[schemars(inline)]
struct Bias(#[schemars(range(min = -100, max = 100))] f32);

impl Sampling {
    /// The job's options; `max_tokens` is what the client gave.
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
            // As vLLM, where -1 and 0 are both no limit.
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

/// It must stay a positive number in the arithmetic that it is used in.
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
        // One spelling only, so that no two keys name the same token.
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

/// One string or several that end the text and are not part of it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
pub enum Stop {
    /// One.
    One(#[schemars(length(min = 1), extend("x-hint" = EMPTY_STOP))] String),
    /// Up to 4.
    Several(#[schemars(length(max = MAX_STOPS), inner(length(min = 1)))] Vec<String>),
}

const EMPTY_STOP: &str = "It would stop before the first token: leave it out.";

impl Stop {
    /// All of them.
    pub fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(stop) => vec![stop],
            Self::Several(stops) => stops,
        }
    }
}

/// What a stream carries beside the answer.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(crate) struct StreamOptions {
    /// A last chunk without choices has the usage; all others have `usage: null`.
    include_usage: Option<bool>,
    /// Extension. Every chunk has the usage so far, and there is a last one as with `include_usage`.
    continuous_usage_stats: Option<bool>,
    /// Obfuscation of chunks is not supported.
    #[allow(dead_code)]
    include_obfuscation: Option<Only<false>>,
}

/// Whether and when a stream tells what was used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum StreamUsage {
    /// Not at all.
    #[default]
    Never,
    /// In a chunk of its own, the last one.
    Last,
    /// In every chunk, as far as it is known, and in the last one.
    Always,
}

impl StreamOptions {
    /// What is wanted of a stream; where there is none, wishes are refused.
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
