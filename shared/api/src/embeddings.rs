//! `/v1/embeddings`: read as OpenAI's API has it, though no engine makes embeddings yet.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use emberline_protocol::error::{ApiError, ErrorCode};

use crate::schema::{BodySchema, Components};

/// A request for the embeddings of texts.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "EmbeddingRequest", deny_unknown_fields)]
#[allow(dead_code)] // only the model is of use
struct EmbeddingBody {
    /// A model or an alias; `GET /v1/models` lists them.
    #[schemars(length(min = 1, max = 256), extend("x-hint" = "GET /v1/models lists the names."))]
    model: String,
    /// Text or token ids, or several of either.
    input: Input,
    /// How numbers are written. Default `float`.
    encoding_format: Option<EncodingFormat>,
    /// How many numbers an embedding has.
    #[schemars(range(min = 1, max = u32::MAX))]
    dimensions: Option<u32>,
    /// Asks for nothing.
    #[schemars(length(max = 1024))]
    user: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
#[allow(dead_code)]
enum Input {
    /// Text.
    Text(#[schemars(length(min = 1))] String),
    /// Several texts.
    Texts(#[schemars(length(min = 1, max = 2048), inner(length(min = 1)))] Vec<String>),
    /// Token ids.
    Tokens(#[schemars(length(min = 1), inner(range(min = 0, max = u32::MAX)))] Vec<u32>),
    /// Several lists of token ids.
    TokenLists(#[schemars(length(min = 1, max = 2048))] Vec<TokenList>),
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
#[allow(dead_code)]
struct TokenList(#[schemars(length(min = 1), inner(range(min = 0, max = u32::MAX)))] Vec<u32>);

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
enum EncodingFormat {
    Float,
    Base64,
}

static BODY: BodySchema<EmbeddingBody> = BodySchema::new();

/// The schema of the body.
pub fn schema(components: &mut Components) -> Value {
    BODY.describe(components)
}

/// The model that a body asks for, by the client's name for it.
pub fn parse_model(body: &[u8]) -> Result<String, ApiError> {
    Ok(BODY.read(body)?.model)
}

/// The answer of a model that writes text.
pub fn not_an_embedding_model(model: &str) -> ApiError {
    let message = format!("The model '{model}' writes text and makes no embeddings. No model here does.");
    ApiError::field(ErrorCode::InvalidValue, "model", message)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::schema::assert_enforceable;

    #[test]
    fn nothing_is_declared_that_is_not_enforced() {
        assert_enforceable(BODY.schema());
    }

    #[test]
    fn bodies_are_read_before_they_are_refused() {
        for input in [json!("a"), json!(["a", "b"]), json!([1]), json!([[1], [2, 3]])] {
            let body = json!({"model": "m", "input": input, "encoding_format": "base64", "dimensions": 3});
            assert_eq!(parse_model(body.to_string().as_bytes()).unwrap(), "m");
        }
        for (name, value, param) in [
            ("input", json!(null), "input"),
            ("input", json!([""]), "input[0]"),
            ("encoding_format", json!("hex"), "encoding_format"),
            ("dimensions", json!(0), "dimensions"),
            ("task", json!("query"), "task"),
        ] {
            let mut body = json!({"model": "m", "input": "a"});
            body[name] = value;
            let error = parse_model(body.to_string().as_bytes()).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param));
        }
    }
}
