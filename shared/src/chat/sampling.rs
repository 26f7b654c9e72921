//! Reads the parameters that say how tokens are picked: OpenAI's and vLLM's.
//!
//! Whether a token id is one of the model's is for the worker to say.

use serde_json::Value;

use crate::error::{ApiError, ErrorCode};
use crate::fields::{Fields, integer_at};
use crate::job::SamplingOptions;

/// Most entries of `logit_bias`.
pub const MAX_LOGIT_BIASES: usize = 300;
/// Most entries of `stop_token_ids`.
pub const MAX_STOP_TOKEN_IDS: usize = 128;

/// Any number that can be a token's.
const TOKEN_IDS: std::ops::RangeInclusive<i64> = 0..=u32::MAX as i64;

/// Takes the parameters out; `max_tokens` is what the client gave.
pub(super) fn read(fields: &mut Fields, max_tokens: Option<u32>) -> Result<SamplingOptions, ApiError> {
    let default = SamplingOptions::default();
    let mut number = |name: &str, low: f64, high: f64, default: f32| -> Result<f32, ApiError> {
        Ok(fields.number(name, low..=high)?.map_or(default, |number| number as f32))
    };
    Ok(SamplingOptions {
        temperature: number("temperature", 0.0, 2.0, default.temperature)?,
        top_p: number("top_p", 0.0, 1.0, default.top_p)?,
        min_p: number("min_p", 0.0, 1.0, default.min_p)?,
        presence_penalty: number("presence_penalty", -2.0, 2.0, default.presence_penalty)?,
        frequency_penalty: number("frequency_penalty", -2.0, 2.0, default.frequency_penalty)?,
        repetition_penalty: read_repetition_penalty(fields)?.unwrap_or(default.repetition_penalty),
        top_k: read_top_k(fields)?.unwrap_or(default.top_k),
        logit_bias: read_logit_bias(fields)?,
        min_tokens: read_min_tokens(fields, max_tokens)?.unwrap_or(default.min_tokens),
        ignore_eos: fields.boolean("ignore_eos")?.unwrap_or(default.ignore_eos),
        stop_token_ids: read_stop_token_ids(fields)?,
    })
}

/// Without an upper end, but it must stay a number in the arithmetic that it is used in.
fn read_repetition_penalty(fields: &mut Fields) -> Result<Option<f32>, ApiError> {
    let Some(wide) = fields.number("repetition_penalty", f64::MIN..=f64::MAX)? else { return Ok(None) };
    let penalty = wide as f32;
    if penalty > 0.0 && penalty.is_finite() {
        return Ok(Some(penalty));
    }
    let message = format!(
        "'repetition_penalty' must be greater than 0 and fit a 32-bit float, got {wide}. 1 is neutral, 1.1 is usual."
    );
    Err(fields.error(ErrorCode::InvalidValue, "repetition_penalty", message))
}

/// As vLLM, where -1 and 0 are both no limit.
fn read_top_k(fields: &mut Fields) -> Result<Option<u32>, ApiError> {
    let top_k = fields.integer("top_k", -1..=i64::from(u32::MAX))?;
    Ok(top_k.map(|k| u32::try_from(k).unwrap_or(0)))
}

fn read_min_tokens(fields: &mut Fields, max_tokens: Option<u32>) -> Result<Option<u32>, ApiError> {
    let min_tokens = fields.integer("min_tokens", 0..=i64::from(u32::MAX))?;
    let min_tokens = min_tokens.and_then(|n| u32::try_from(n).ok());
    if let (Some(least), Some(most)) = (min_tokens, max_tokens)
        && least > most
    {
        let message = format!("'min_tokens' ({least}) is more than 'max_tokens' ({most}). Lower it.");
        return Err(fields.error(ErrorCode::InvalidValue, "min_tokens", message));
    }
    Ok(min_tokens)
}

fn read_logit_bias(fields: &mut Fields) -> Result<Vec<(u32, f32)>, ApiError> {
    let Some(mut entries) = fields.object("logit_bias")? else { return Ok(Vec::new()) };
    let keys: Vec<String> = entries.remaining().map(|(key, _)| key.to_owned()).collect();
    if keys.len() > MAX_LOGIT_BIASES {
        let message =
            format!("'logit_bias' has {} entries; at most {MAX_LOGIT_BIASES} are allowed.", keys.len());
        return Err(fields.error(ErrorCode::InvalidValue, "logit_bias", message));
    }
    let mut biases = Vec::with_capacity(keys.len());
    for key in keys {
        let Some(id) = token_id(&key) else {
            let message = format!(
                "'{}' does not name a token. Keys of 'logit_bias' are token ids, such as \"1234\".",
                entries.path_of(&key)
            );
            return Err(entries.error(ErrorCode::InvalidValue, &key, message));
        };
        if let Some(bias) = entries.number(&key, -100.0..=100.0)? {
            biases.push((id, bias as f32));
        }
    }
    biases.sort_unstable_by_key(|&(id, _)| id);
    Ok(biases)
}

/// Reads a key in its one spelling, so that no two keys name the same token.
fn token_id(key: &str) -> Option<u32> {
    key.parse().ok().filter(|id: &u32| id.to_string() == key)
}

fn read_stop_token_ids(fields: &mut Fields) -> Result<Vec<u32>, ApiError> {
    let items = fields.array("stop_token_ids")?.unwrap_or_default();
    if items.len() > MAX_STOP_TOKEN_IDS {
        let message = format!(
            "'stop_token_ids' has {} entries; at most {MAX_STOP_TOKEN_IDS} are allowed.",
            items.len()
        );
        return Err(fields.error(ErrorCode::InvalidValue, "stop_token_ids", message));
    }
    let read = |(i, item): (usize, &Value)| {
        let id = integer_at(&format!("stop_token_ids[{i}]"), item, TOKEN_IDS)?;
        Ok(u32::try_from(id).unwrap_or(u32::MAX))
    };
    items.iter().enumerate().map(read).collect()
}
