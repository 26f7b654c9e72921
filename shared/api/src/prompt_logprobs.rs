//! The log-probabilities of a prompt's tokens, as answers contain them.

use std::borrow::Cow;

use emberline_protocol::prompt::{PromptScore, PromptToken};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Serialize, Serializer};

/// vLLM's `prompt_logprobs`: null for the prompt's first token, and for each other token an object with token
/// ids as keys, which contains that token and the `top` most probable tokens at its position.
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
            list.serialize_element(&token.score.as_ref().map(|score| Position { token, score, top }))?;
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
            "description": "The log-probabilities of the prompt's tokens: null for the first token, and for each other \
                            token an object with token ids as keys, which contains that token and the most \
                            probable tokens at its position.",
            "type": "array",
            "items": {"type": ["object", "null"], "additionalProperties": entry},
        })
    }
}

/// The entries at one position: the prompt's token, then the most probable tokens.
struct Position<'a> {
    token: &'a PromptToken,
    score: &'a PromptScore,
    top: usize,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(inline)]
struct Entry<'a> {
    /// Natural logarithm of the token's probability.
    logprob: f32,
    /// Rank of the token at its position, from 1 for the most probable token.
    rank: u32,
    /// The token's text.
    decoded_token: Cow<'a, str>,
}

impl Serialize for Position<'_> {
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

    use emberline_protocol::event::TokenLogprob;

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
}
