//! `/tokenize` and `/detokenize`, as in vLLM.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use emberline_protocol::error::{ApiError, ErrorCode};
use emberline_protocol::job::ToolChoice;
use emberline_protocol::relaxed::Relaxed;
use emberline_protocol::tokens::{Tokenize, TokensInput, TokensReply, TokensRequest};

use crate::answer::to_json;
use crate::chat::begins_answer;
use crate::chat::message::{self, MessageBody};
use crate::chat::tool::{self, ToolBody};
use crate::offer::{Form, MAX_TOOLS};
use crate::paths::Paths;
use crate::schema::{BodySchema, Components};

/// A request to tokenize a prompt or a conversation.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "TokenizeRequest", deny_unknown_fields)]
struct TokenizeBody {
    /// Name of a model or an alias. `GET /v1/models` lists them.
    #[schemars(length(min = 1, max = 256), extend("x-hint" = "GET /v1/models lists the names."))]
    model: String,
    /// The text to tokenize, to which no chat template is applied. Either this or `messages` is required.
    prompt: Option<String>,
    /// The conversation to tokenize, rendered by the model's chat template. Either this or `prompt` is
    /// required.
    #[schemars(length(min = 1))]
    messages: Option<Vec<MessageBody>>,
    /// Functions that the model may call; only with `messages`. Default: none.
    #[schemars(length(max = MAX_TOOLS))]
    tools: Option<Vec<ToolBody>>,
    /// Variables for the model's chat template; only with `messages`. Default: none.
    chat_template_kwargs: Option<Map<String, Value>>,
    /// Whether the chat template adds the beginning of the assistant's turn; only with `messages`. Default:
    /// true, unless `continue_final_message` is true.
    add_generation_prompt: Option<bool>,
    /// Whether the text ends with the last message's content, so that a model continues it; only with
    /// `messages`, the last of which must be an assistant's message without function calls. Default: false.
    continue_final_message: Option<bool>,
    /// Whether to prepend a beginning-of-sequence token if the model requires one. Default: true with
    /// `prompt`, false with `messages`, because the chat template adds it.
    add_special_tokens: Option<bool>,
    /// Whether to return each token as it is written in the model's vocabulary. Default: false.
    return_token_strs: Option<bool>,
}

/// A request to convert tokens to text.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "DetokenizeRequest", deny_unknown_fields)]
struct DetokenizeBody {
    /// Name of a model or an alias. `GET /v1/models` lists them.
    #[schemars(length(min = 1, max = 256), extend("x-hint" = "GET /v1/models lists the names."))]
    model: String,
    /// The token ids to convert.
    #[schemars(inner(range(min = 0, max = u32::MAX)))]
    tokens: Vec<u32>,
}

/// The answer of `/tokenize`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct TokenizeAnswer {
    /// Number of tokens.
    count: usize,
    /// Length of the model's context, in tokens.
    max_model_len: u32,
    /// The token ids.
    tokens: Vec<u32>,
    /// The tokens as they are written in the model's vocabulary; null without `return_token_strs`.
    token_strs: Option<Vec<String>>,
}

/// The answer of `/detokenize`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct DetokenizeAnswer {
    /// The text.
    prompt: String,
}

/// A validated request to tokenize or to detokenize.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenRequest {
    /// The model's name or an alias, as the client wrote it.
    pub model: String,
    /// The request that a worker answers.
    pub request: TokensRequest,
    /// Fields of the body that the answer does not honour.
    pub relaxed: Relaxed,
    /// Maps paths of the request's fields to paths in the client's body.
    pub paths: Paths,
}

static TOKENIZE: BodySchema<TokenizeBody> = BodySchema::new();
static DETOKENIZE: BodySchema<DetokenizeBody> = BodySchema::new();

impl TokenRequest {
    /// The schema of the request body of `/tokenize`.
    pub fn tokenize_schema(components: &mut Components) -> Value {
        TOKENIZE.describe(components)
    }

    /// The schema of the request body of `/detokenize`.
    pub fn detokenize_schema(components: &mut Components) -> Value {
        DETOKENIZE.describe(components)
    }

    /// Parses and validates a request body of `/tokenize`.
    pub fn parse_tokenize(body: &[u8]) -> Result<Self, ApiError> {
        let body = TOKENIZE.read(body)?;
        let is_chat = body.messages.is_some();
        let (mut relaxed, mut paths) = (Relaxed::default(), Paths::default());
        let input = match (body.prompt, body.messages) {
            (Some(_), Some(_)) => {
                let message = "'prompt' and 'messages' exclude each other. Send one of them.";
                return Err(ApiError::field(ErrorCode::InvalidValue, "prompt", message));
            }
            (None, None) => {
                let message = "'prompt' or 'messages' is required. Add one.";
                return Err(ApiError::field(ErrorCode::MissingField, "prompt", message));
            }
            (Some(prompt), None) => {
                let given = [
                    ("tools", body.tools.is_some()),
                    ("chat_template_kwargs", body.chat_template_kwargs.is_some()),
                    ("add_generation_prompt", body.add_generation_prompt.is_some()),
                    ("continue_final_message", body.continue_final_message.is_some()),
                ];
                if let Some((name, _)) = given.iter().find(|(_, given)| *given) {
                    let message = format!("'{name}' needs 'messages'. Leave it out with 'prompt'.");
                    return Err(ApiError::field(ErrorCode::InvalidValue, *name, message));
                }
                TokensInput::Text(prompt)
            }
            (None, Some(messages)) => {
                let offer = tool::read(body.tools, None, &mut relaxed)?;
                offer.place(&Form::CHAT, &mut paths);
                let messages = message::read(messages)?;
                let continues = body.continue_final_message.unwrap_or(false);
                TokensInput::Chat {
                    tools: offer.tools,
                    tool_choice: ToolChoice::Auto,
                    single_tool_call: false,
                    template_variables: body.chat_template_kwargs.unwrap_or_default(),
                    add_generation_prompt: begins_answer(body.add_generation_prompt, continues, &messages)?,
                    continue_final_message: continues,
                    messages,
                }
            }
        };
        let request = TokensRequest::Tokenize(Tokenize {
            input,
            add_special_tokens: body.add_special_tokens.unwrap_or(!is_chat),
            return_token_strs: body.return_token_strs.unwrap_or(false),
        });
        Ok(Self { model: body.model, request, relaxed, paths })
    }

    /// Parses and validates a request body of `/detokenize`.
    pub fn parse_detokenize(body: &[u8]) -> Result<Self, ApiError> {
        let DetokenizeBody { model, tokens } = DETOKENIZE.read(body)?;
        let (relaxed, paths) = (Relaxed::default(), Paths::default());
        Ok(Self { model, request: TokensRequest::Detokenize { tokens }, relaxed, paths })
    }
}

/// The answer's body for a worker's reply. Fails if the worker replied with an error.
pub fn answer(reply: TokensReply) -> Result<String, ApiError> {
    match reply {
        TokensReply::Tokenized { tokens, token_strs, max_model_len, .. } => {
            Ok(to_json(&TokenizeAnswer { count: tokens.len(), max_model_len, tokens, token_strs }))
        }
        TokensReply::Detokenized { text } => Ok(to_json(&DetokenizeAnswer { prompt: text })),
        TokensReply::Error(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::schema::assert_enforceable;
    use emberline_protocol::job::{Message, Role};
    use emberline_protocol::relaxed::Relaxed;

    fn tokenize(body: &Value) -> Result<Tokenize, ApiError> {
        let request = TokenRequest::parse_tokenize(body.to_string().as_bytes())?.request;
        let TokensRequest::Tokenize(request) = request else { panic!("{request:?}") };
        Ok(request)
    }

    #[test]
    fn nothing_is_declared_that_is_not_enforced() {
        assert_enforceable(TOKENIZE.schema());
        assert_enforceable(DETOKENIZE.schema());
    }

    #[test]
    fn text_and_conversations_are_read() {
        let request = tokenize(&json!({"model": "m", "prompt": "Hi", "return_token_strs": true})).unwrap();
        let input = TokensInput::Text("Hi".into());
        assert_eq!(request, Tokenize { input, add_special_tokens: true, return_token_strs: true });
        let messages = json!([{"role": "user", "content": "Hi"}]);
        let request = tokenize(&json!({"model": "m", "messages": messages})).unwrap();
        let input = TokensInput::Chat {
            messages: vec![Message::new(Role::User, "Hi")],
            tools: Vec::new(),
            tool_choice: ToolChoice::Auto,
            single_tool_call: false,
            template_variables: Map::new(),
            add_generation_prompt: true,
            continue_final_message: false,
        };
        assert_eq!(request, Tokenize { input, add_special_tokens: false, return_token_strs: false });
        let tokens = TokenRequest::parse_detokenize(br#"{"model": "m", "tokens": [0, 4294967295]}"#).unwrap();
        assert_eq!(tokens.request, TokensRequest::Detokenize { tokens: vec![0, u32::MAX] });
    }

    #[test]
    fn each_bad_field_is_named() {
        use ErrorCode::*;
        let messages = json!([{"role": "user", "content": "Hi"}]);
        for (body, code, param) in [
            (json!({"model": "m"}), MissingField, "prompt"),
            (json!({"model": "m", "prompt": "a", "messages": messages}), InvalidValue, "prompt"),
            (json!({"model": "m", "prompt": "a", "tools": []}), InvalidValue, "tools"),
            (
                json!({"model": "m", "prompt": "a", "add_generation_prompt": true}),
                InvalidValue,
                "add_generation_prompt",
            ),
            (json!({"model": "m", "prompt": ["a"]}), InvalidType, "prompt"),
            (json!({"model": "m", "prompt": "a", "n": 1}), UnknownParameter, "n"),
            (json!({"model": "m", "messages": [{"role": "tool"}]}), MissingField, "messages[0].content"),
        ] {
            let error = tokenize(&body).unwrap_err();
            assert_eq!((error.code, error.param.as_deref()), (code, Some(param)), "{body}");
        }
        let error = TokenRequest::parse_detokenize(br#"{"model": "m", "tokens": [-1]}"#).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("tokens[0]"));
    }

    #[test]
    fn answers_are_those_of_vllm() {
        let reply = TokensReply::Tokenized {
            tokens: vec![7, 8],
            token_strs: None,
            max_model_len: 64,
            relaxed: Relaxed::default(),
        };
        let body: Value = serde_json::from_str(&answer(reply).unwrap()).unwrap();
        assert_eq!(body, json!({"count": 2, "max_model_len": 64, "tokens": [7, 8], "token_strs": null}));
        let body = answer(TokensReply::Detokenized { text: "é".into() }).unwrap();
        assert_eq!(body, r#"{"prompt":"é"}"#);
    }
}
