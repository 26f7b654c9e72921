//! A prompt's tokens and their log-probabilities: as a job's log has them, and as answers do.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Deserialize, Serialize, Serializer};

use crate::error::{ApiError, ErrorCode};
use crate::event::TokenLogprob;
use crate::job::GenerationRequest;

/// Most log-probabilities of a request's prompts: their tokens times the alternatives and one, times the
/// choices that repeat them. It keeps a log and an answer to some ten megabytes.
pub const MAX_PROMPT_LOGPROBS: u64 = 1 << 17;

/// How much a request is to be told of its prompts' log-probabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PromptScoring {
    /// The field that asks for it.
    field: &'static str,
    alternatives: u32,
    choices: u32,
}

impl PromptScoring {
    /// What `request` asks for.
    pub fn of(request: &GenerationRequest) -> Option<Self> {
        let alternatives = request.prompt_logprobs?;
        let is_echo = request.echo && request.logprobs == Some(alternatives);
        let field = if is_echo { "logprobs" } else { "prompt_logprobs" };
        Some(Self { field, alternatives, choices: request.n.max(1) })
    }

    /// Refuses more than a log and an answer are to hold; `tokens` are those of all its prompts.
    pub fn check(&self, tokens: u64) -> Result<(), ApiError> {
        let Self { field, alternatives, choices } = *self;
        let wanted = tokens.saturating_mul(u64::from(alternatives) + 1).saturating_mul(choices.into());
        if wanted <= MAX_PROMPT_LOGPROBS {
            return Ok(());
        }
        let message = format!(
            "The prompt's {tokens} tokens with {alternatives} alternatives each, told by {choices} choices, are {wanted} \
             log-probabilities; at most {MAX_PROMPT_LOGPROBS} are allowed. Lower '{field}' or shorten the prompt."
        );
        Err(ApiError::field(ErrorCode::InvalidValue, field, message))
    }
}

/// A token of a prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PromptToken {
    /// Its id.
    pub id: u32,
    /// What it stands for in the prompt, perhaps part of a character; a special token's name. Empty
    /// where only ids are asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bytes: Vec<u8>,
    /// `None` for the first token, which follows nothing, and where only ids are asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<PromptScore>,
}

/// How probable a prompt's token is after those before it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PromptScore {
    /// Its log-probability.
    pub logprob: f32,
    /// Its place among all tokens, the most probable one's being 1.
    pub rank: u32,
    /// The most probable tokens in its place, in order, as many as were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub top: Vec<TokenLogprob>,
}

/// vLLM's `prompt_logprobs`: null for the first token, then for each token an object that has its own
/// entry first and those of the `top` most probable ones then, by token id.
#[derive(Debug)]
pub(crate) struct PromptLogprobsBody<'a> {
    pub(crate) tokens: &'a [PromptToken],
    pub(crate) top: u32,
}

impl Serialize for PromptLogprobsBody<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let top = usize::try_from(self.top).unwrap_or(usize::MAX);
        let mut list = serializer.serialize_seq(Some(self.tokens.len()))?;
        for token in self.tokens {
            list.serialize_element(&token.score.as_ref().map(|score| Place { token, score, top }))?;
        }
        list.end()
    }
}

impl JsonSchema for PromptLogprobsBody<'_> {
    fn schema_name() -> Cow<'static, str> {
        "PromptLogprobs".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let entry = generator.subschema_for::<Entry<'_>>();
        json_schema!({
            "description": "Null for the first token, then by token id that of each token and of the most probable ones in its place.",
            "type": "array",
            "items": {"type": ["object", "null"], "additionalProperties": entry},
        })
    }
}

/// A token's own entry and those of the most probable ones.
struct Place<'a> {
    token: &'a PromptToken,
    score: &'a PromptScore,
    top: usize,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(inline)]
struct Entry<'a> {
    logprob: f32,
    /// The most probable token's is 1.
    rank: u32,
    decoded_token: Cow<'a, str>,
}

impl Serialize for Place<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { token, score, top } = *self;
        let mut map = serializer.serialize_map(None)?;
        let own = Entry {
            logprob: score.logprob,
            rank: score.rank,
            decoded_token: String::from_utf8_lossy(&token.bytes),
        };
        map.serialize_entry(&token.id, &own)?;
        for (other, rank) in score.top.iter().take(top).zip(1..) {
            if other.id != token.id {
                let decoded_token = String::from_utf8_lossy(&other.bytes);
                map.serialize_entry(&other.id, &Entry { logprob: other.logprob, rank, decoded_token })?;
            }
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn alternative(id: u32, text: &str, logprob: f32) -> TokenLogprob {
        TokenLogprob { id, bytes: text.into(), logprob }
    }

    #[test]
    fn each_token_has_its_own_entry_and_those_of_the_most_probable_ones() {
        let top = vec![alternative(8, " a", -0.5), alternative(7, "b", -1.0), alternative(6, "c", -2.0)];
        let scored = |id, rank| PromptToken {
            id,
            bytes: b"b".to_vec(),
            score: Some(PromptScore { logprob: -1.0, rank, top: top.clone() }),
        };
        let tokens =
            [PromptToken { id: 1, bytes: b"<s>".to_vec(), score: None }, scored(7, 2), scored(9, 40)];
        let json = |top| serde_json::to_value(PromptLogprobsBody { tokens: &tokens, top }).unwrap();
        let entry =
            |logprob: f32, rank, text| json!({"logprob": logprob, "rank": rank, "decoded_token": text});
        assert_eq!(
            json(2),
            json!([
                null,
                {"7": entry(-1.0, 2, "b"), "8": entry(-0.5, 1, " a")},
                {"9": entry(-1.0, 40, "b"), "8": entry(-0.5, 1, " a"), "7": entry(-1.0, 2, "b")},
            ])
        );
        assert_eq!(json(0), json!([null, {"7": entry(-1.0, 2, "b")}, {"9": entry(-1.0, 40, "b")}]));
    }

    #[test]
    fn ids_alone_are_short() {
        let token = PromptToken { id: 5, bytes: Vec::new(), score: None };
        assert_eq!(serde_json::to_string(&token).unwrap(), r#"{"id":5}"#);
        assert_eq!(serde_json::from_str::<PromptToken>(r#"{"id":5}"#).unwrap(), token);
    }
}
