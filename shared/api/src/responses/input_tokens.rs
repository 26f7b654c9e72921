//! `POST /v1/responses/input_tokens`: counts the tokens in the input of a response.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use emberline_protocol::error::ApiError;
use emberline_protocol::job::GenerationRequest;
use emberline_protocol::relaxed::Relaxed;
use emberline_protocol::tokens::{Tokenize, TokensInput, TokensReply, TokensRequest};

use super::body::{NOT_STORED, Reasoning, Text, Truncation};
use super::input::Input;
use super::tool::{Choice, Tool};
use super::{conversation, paths, tool, variables};
use crate::answer::to_json;
use crate::offer::{Form, MAX_TOOLS};
use crate::schema::{BodySchema, Components};
use crate::tokenize::TokenRequest;

/// A request to count the tokens in the prompt of a response.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(
    rename = "InputTokensRequest",
    deny_unknown_fields,
    extend(
        "x-unsupported" = ["conversation", "personality", "previous_response_id"],
        "x-instead" = {"conversation": NOT_STORED, "previous_response_id": NOT_STORED},
    ),
)]
struct InputTokensBody {
    /// Name of a model or an alias. `GET /v1/models` lists them.
    #[schemars(length(min = 1, max = 256), extend("x-hint" = "GET /v1/models lists the names."))]
    model: String,
    /// The user's message as text, or all items of the conversation so far.
    input: Input,
    /// Instructions for the model, inserted as a system message before the input. Default: none.
    instructions: Option<String>,
    /// Functions that the model may call. Default: none.
    #[schemars(length(max = MAX_TOOLS))]
    tools: Option<Vec<Tool>>,
    /// Whether the model calls functions, and which. Functions that it must not call are not part of the
    /// prompt. For a model whose chat template does not support functions, the prompt also describes the
    /// choice. Default: `auto`.
    tool_choice: Option<Choice>,
    /// Options for models that reason before they answer.
    reasoning: Option<Reasoning>,
    /// Format and verbosity of the generated text. The format is not part of the prompt.
    text: Option<Text>,
    /// Extension to OpenAI's API. Variables for the model's chat template, such as `enable_thinking`.
    /// Default: none.
    chat_template_kwargs: Option<Map<String, Value>>,
    /// Whether the output may contain more than one function call. For a model whose chat template does not
    /// support functions, the prompt describes this. Default: true.
    parallel_tool_calls: Option<bool>,
    /// Accepted for compatibility; `disabled` has no effect, because the input is never truncated.
    #[allow(dead_code)]
    truncation: Option<Truncation>,
}

/// The number of tokens in the prompt.
#[derive(Debug, Serialize, JsonSchema)]
pub struct InputTokens {
    /// Always `response.input_tokens`.
    object: &'static str,
    /// Number of tokens.
    input_tokens: usize,
}

/// Parses requests to count the tokens of an input.
pub struct InputTokensRequest;

static BODY: BodySchema<InputTokensBody> = BodySchema::new();

impl InputTokensRequest {
    /// The schema of the request body.
    pub fn schema(components: &mut Components) -> Value {
        BODY.describe(components)
    }

    /// Parses and validates a request body.
    pub fn parse(body: &[u8]) -> Result<TokenRequest, ApiError> {
        Self::read(BODY.read(body)?).map_err(|error| paths().error(error))
    }

    fn read(body: InputTokensBody) -> Result<TokenRequest, ApiError> {
        let (mut relaxed, mut paths) = (Relaxed::default(), paths());
        let offer = tool::read(body.tools, body.tool_choice, &mut relaxed)?;
        offer.place(&Form::RESPONSES, &mut paths);
        let verbosity = body.text.and_then(|text| text.verbosity);
        // The same fields as in the job of a response, so that the same prompt is counted.
        let generation = GenerationRequest {
            messages: conversation(body.instructions, body.input, &mut relaxed)?,
            tools: offer.tools,
            tool_choice: offer.choice,
            parallel_tool_calls: body.parallel_tool_calls.unwrap_or(true),
            ..GenerationRequest::default()
        };
        let single_tool_call = !generation.allows_several_calls();
        let input = TokensInput::Chat {
            messages: generation.messages,
            tools: generation.tools,
            tool_choice: generation.tool_choice,
            single_tool_call,
            template_variables: variables(body.chat_template_kwargs, body.reasoning, verbosity, &mut paths)?,
            add_generation_prompt: true,
            continue_final_message: false,
        };
        let tokenize = Tokenize { input, add_special_tokens: true, return_token_strs: false };
        Ok(TokenRequest { model: body.model, request: TokensRequest::Tokenize(tokenize), relaxed, paths })
    }

    /// The answer's body for a worker's reply. Fails if the worker replied with an error.
    pub fn answer(reply: TokensReply) -> Result<String, ApiError> {
        let input_tokens = match reply {
            TokensReply::Tokenized { tokens, .. } => tokens.len(),
            TokensReply::Detokenized { .. } => 0,
            TokensReply::Error(error) => return Err(error.into()),
        };
        Ok(to_json(&InputTokens { object: "response.input_tokens", input_tokens }))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::schema::assert_enforceable;
    use emberline_protocol::job::{Message, Role, ToolChoice};

    #[test]
    fn nothing_is_declared_that_is_not_enforced() {
        assert_enforceable(BODY.schema());
    }

    #[test]
    fn what_is_counted_is_the_prompt_of_the_response() {
        let tool = json!({"type": "function", "name": "f"});
        let body = json!({
            "model": "m", "input": "Hi", "instructions": "Be brief.", "tools": [{"type": "web_search"}, tool],
            "text": {"format": {"type": "text"}, "verbosity": "medium"}, "reasoning": {"effort": null},
            "truncation": "disabled", "parallel_tool_calls": true, "previous_response_id": null,
        });
        let request = InputTokensRequest::parse(body.to_string().as_bytes()).unwrap();
        let TokensRequest::Tokenize(Tokenize { input, add_special_tokens, .. }) = request.request else {
            panic!("{:?}", request.request)
        };
        let TokensInput::Chat { messages, tools, template_variables, .. } = input else {
            panic!("{input:?}")
        };
        assert_eq!(messages, [Message::new(Role::System, "Be brief."), Message::new(Role::User, "Hi")]);
        assert_eq!((tools.len(), template_variables.len(), add_special_tokens), (1, 0, true));
        assert_eq!(request.relaxed.paths(), ["tools[0]"]);
        let mut none = body;
        none["tool_choice"] = json!("none");
        let request = InputTokensRequest::parse(none.to_string().as_bytes()).unwrap().request;
        let TokensRequest::Tokenize(Tokenize { input: TokensInput::Chat { tool_choice, .. }, .. }) = request
        else {
            panic!("{request:?}")
        };
        assert_eq!(
            tool_choice,
            ToolChoice::None,
            "functions that the model must not call are not part of the prompt"
        );
    }

    #[test]
    fn the_answer_is_openais() {
        let reply = TokensReply::Tokenized {
            tokens: vec![7, 8],
            token_strs: None,
            max_model_len: 64,
            relaxed: Relaxed::default(),
        };
        let body: Value = serde_json::from_str(&InputTokensRequest::answer(reply).unwrap()).unwrap();
        assert_eq!(body, json!({"object": "response.input_tokens", "input_tokens": 2}));
    }
}
