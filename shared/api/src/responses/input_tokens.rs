//! How many tokens the input of a response has: `POST /v1/responses/input_tokens`.

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

/// A request to count the tokens of what a request for a response has.
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
    /// A model or an alias; `GET /v1/models` lists them.
    #[schemars(length(min = 1, max = 256), extend("x-hint" = "GET /v1/models lists the names."))]
    model: String,
    /// What is said: the user's text, or all items of the conversation so far.
    input: Input,
    /// What the model is to be: a system message before all others.
    instructions: Option<String>,
    /// Functions that the model may call.
    #[schemars(length(max = MAX_TOOLS))]
    tools: Option<Vec<Tool>>,
    /// Functions that it must not call are no part of the input; models whose chat template knows no functions
    /// are told in words whether to call one.
    tool_choice: Option<Choice>,
    /// For models whose chat template knows it.
    reasoning: Option<Reasoning>,
    /// The output's form is no part of the input.
    text: Option<Text>,
    /// Extension. Variables for the model's chat template.
    chat_template_kwargs: Option<Map<String, Value>>,
    /// Models whose chat template knows no functions are told in words that they may call several.
    parallel_tool_calls: Option<bool>,
    /// Asks for nothing: an input that does not fit is refused.
    #[allow(dead_code)]
    truncation: Option<Truncation>,
}

/// How many tokens there are.
#[derive(Debug, Serialize, JsonSchema)]
pub struct InputTokens {
    object: &'static str,
    input_tokens: usize,
}

/// A request to count the tokens of an input.
pub struct InputTokensRequest;

static BODY: BodySchema<InputTokensBody> = BodySchema::new();

impl InputTokensRequest {
    /// The schema of its body.
    pub fn schema(components: &mut Components) -> Value {
        BODY.describe(components)
    }

    /// Reads a request body.
    pub fn parse(body: &[u8]) -> Result<TokenRequest, ApiError> {
        Self::read(BODY.read(body)?).map_err(|error| paths().error(error))
    }

    fn read(body: InputTokensBody) -> Result<TokenRequest, ApiError> {
        let (mut relaxed, mut paths) = (Relaxed::default(), paths());
        let offer = tool::read(body.tools, body.tool_choice, &mut relaxed)?;
        offer.place(&Form::RESPONSES, &mut paths);
        let verbosity = body.text.and_then(|text| text.verbosity);
        // What a job of this request has, so that its prompt is counted.
        let asked = GenerationRequest {
            messages: conversation(body.instructions, body.input, &mut relaxed)?,
            tools: offer.tools,
            tool_choice: offer.choice,
            parallel_tool_calls: body.parallel_tool_calls.unwrap_or(true),
            ..GenerationRequest::default()
        };
        let single_tool_call = !asked.allows_several_calls();
        let input = TokensInput::Chat {
            messages: asked.messages,
            tools: asked.tools,
            tool_choice: asked.tool_choice,
            single_tool_call,
            template_variables: variables(body.chat_template_kwargs, body.reasoning, verbosity, &mut paths)?,
            add_generation_prompt: true,
            continue_final_message: false,
        };
        let tokenize = Tokenize { input, add_special_tokens: true, return_token_strs: false };
        Ok(TokenRequest { model: body.model, request: TokensRequest::Tokenize(tokenize), relaxed, paths })
    }

    /// Body of the answer, or the worker's error.
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
            "the prompt does not tell of tools that are not to be called"
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
