//! Log-probabilities of tokens, as a job's log has them.

use serde::{Deserialize, Serialize};

/// A token's log-probability with its alternatives: the most probable tokens at its position, or the tokens
/// that the job names. All are computed before temperature, filters and penalties.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprobs {
    /// The token.
    #[serde(flatten)]
    pub token: TokenLogprob,
    /// The most probable tokens in descending order, as many as the job asks for; or the tokens that the job
    /// names, in its order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub top: Vec<TokenLogprob>,
}

/// A token, its bytes and its natural log-probability.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    /// Its id.
    #[serde(default)]
    pub id: u32,
    /// The bytes that the token stands for, possibly part of a character; empty for a control token.
    pub bytes: Vec<u8>,
    /// Always finite; [`IMPOSSIBLE_LOGPROB`] for a token of probability 0.
    pub logprob: f32,
}

/// The log-probability of a token of probability 0, as in OpenAI's API.
pub const IMPOSSIBLE_LOGPROB: f32 = -9999.0;
