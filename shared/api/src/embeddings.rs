//! `/v1/embeddings`: parses requests as OpenAI's API defines them, although no engine computes embeddings
//! yet.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use emberline_protocol::error::{ApiError, ErrorCode};

use crate::schema::{BodySchema, Components};

/// A request for embeddings of texts. No model computes embeddings yet, so every valid request is refused.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "EmbeddingRequest", deny_unknown_fields)]
#[allow(dead_code)] // only the model is read
struct EmbeddingBody {
    /// Name of a model or an alias. `GET /v1/models` lists them.
    #[schemars(length(min = 1, max = 256), extend("x-hint" = "GET /v1/models lists the names."))]
    model: String,
    /// The input, as text or as an array of token ids, or an array of up to 2048 inputs.
    input: Input,
    /// How the numbers of an embedding are encoded. Default: `float`.
    encoding_format: Option<EncodingFormat>,
    /// Number of dimensions of an embedding. Default: the model's own.
    #[schemars(range(min = 1, max = u32::MAX))]
    dimensions: Option<u32>,
    /// Accepted for compatibility; has no effect, because the server does not track end users.
    #[schemars(length(max = 1024))]
    user: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
#[allow(dead_code)]
enum Input {
    /// One input as text.
    Text(#[schemars(length(min = 1))] String),
    /// Several inputs as text.
    Texts(#[schemars(length(min = 1, max = 2048), inner(length(min = 1)))] Vec<String>),
    /// One input as token ids.
    Tokens(#[schemars(length(min = 1), inner(range(min = 0, max = u32::MAX)))] Vec<u32>),
    /// Several inputs as token ids.
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

/// The schema of the request body.
pub fn schema(components: &mut Components) -> Value {
    BODY.describe(components)
}

/// Parses a request body and returns the model's name or alias, as the client wrote it.
pub fn parse_model(body: &[u8]) -> Result<String, ApiError> {
    Ok(BODY.read(body)?.model)
}

/// The error for a model that generates text.
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
