//! Tokenization requests: text to tokens and back, answered by a worker at once, without a queue.
//!
//! The function sends a request to [`crate::subject::tokens`] of a model, where one of the workers that serve
//! the model receives it. The answer goes to the request's reply subject. If no worker is subscribed,
//! nats-server reports "no responders" at once. [`DEADLINE_HEADER`] says until when the function waits; a worker
//! that comes to a request later drops it. One that has too many of them waiting answers with
//! [`ErrorCode::Overloaded`].

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{ApiError, ErrorCode};
use crate::event::ErrorEvent;
use crate::job::{Message, Tool, ToolChoice};
use crate::relaxed::Relaxed;
use crate::size::max_message;

/// Header of a request: when nobody waits for the answer any more, in Unix milliseconds.
pub const DEADLINE_HEADER: &str = "Emberline-Deadline";

/// A request to tokenize or to detokenize.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokensRequest {
    /// Turns text into tokens.
    Tokenize(Tokenize),
    /// Turns tokens into text.
    Detokenize {
        /// Token ids.
        tokens: Vec<u32>,
    },
}

/// Text to tokenize, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tokenize {
    /// The text.
    pub input: TokensInput,
    /// Whether to prepend the token that begins a prompt, if the model has one.
    pub add_special_tokens: bool,
    /// Whether the answer contains the tokens as the vocabulary writes them.
    pub return_token_strs: bool,
}

/// Where the text comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokensInput {
    /// Plain text; special tokens in it are recognised.
    Text(String),
    /// A conversation, rendered by the model's chat template.
    Chat {
        /// The conversation.
        messages: Vec<Message>,
        /// Functions that the model may call.
        #[serde(default)]
        tools: Vec<Tool>,
        /// Whether the model calls them.
        #[serde(default)]
        tool_choice: ToolChoice,
        /// Whether the model may call at most one of them in an answer.
        #[serde(default)]
        single_tool_call: bool,
        /// Variables of the chat template.
        #[serde(default)]
        template_variables: Map<String, Value>,
        /// Whether the prompt ends where the assistant's answer begins.
        add_generation_prompt: bool,
        /// Whether the prompt ends with the last message, which is the assistant's.
        #[serde(default)]
        continue_final_message: bool,
    },
}

/// The answer to a [`TokensRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokensReply {
    /// To [`TokensRequest::Tokenize`].
    Tokenized {
        /// Token ids.
        tokens: Vec<u32>,
        /// The same tokens as the vocabulary writes them, if the request asks for them.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        token_strs: Option<Vec<String>>,
        /// The model's context length, in tokens.
        max_model_len: u32,
        /// Fields of the request that the worker does not honour.
        #[serde(default, skip_serializing_if = "Relaxed::is_empty")]
        relaxed: Relaxed,
    },
    /// To [`TokensRequest::Detokenize`].
    Detokenized {
        /// The text, special tokens included.
        text: String,
    },
    /// To either.
    Error(ErrorEvent),
}

impl TokensReply {
    /// The answer in JSON, as a message to a server with this `max_payload`. One that is larger than its reader
    /// takes ([`max_message`]) is replaced by the error [`ErrorCode::RequestTooLarge`].
    pub fn encode(&self, max_payload: usize) -> Vec<u8> {
        let json = serde_json::to_vec(self).unwrap_or_default();
        if !json.is_empty() && json.len() <= max_message(max_payload) {
            return json;
        }
        let message = "The tokens do not fit into one message. Ask for parts of the text.";
        let error = Self::Error(ApiError::new(ErrorCode::RequestTooLarge, message).into());
        serde_json::to_vec(&error).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::size::MAX_MESSAGE;

    #[test]
    fn an_answer_that_is_too_large_says_so() {
        let reply = TokensReply::Tokenized {
            tokens: vec![1; 100],
            token_strs: None,
            max_model_len: 8,
            relaxed: Relaxed::default(),
        };
        let whole = reply.encode(4096);
        assert_eq!(serde_json::from_slice::<TokensReply>(&whole).unwrap(), reply);
        assert_eq!(reply.encode(whole.len()), whole);
        let refused = reply.encode(whole.len() - 1);
        let Ok(TokensReply::Error(error)) = serde_json::from_slice(&refused) else { panic!("no error") };
        assert_eq!((error.status, error.code), (413, ErrorCode::RequestTooLarge));
        // A server may take more than the function reads.
        let text = TokensReply::Detokenized { text: "x".repeat(MAX_MESSAGE) };
        assert!(matches!(serde_json::from_slice(&text.encode(usize::MAX)), Ok(TokensReply::Error(_))));
    }

    #[test]
    fn requests_survive_the_way() {
        let chat = TokensInput::Chat {
            messages: Vec::new(),
            tools: Vec::new(),
            tool_choice: ToolChoice::Auto,
            single_tool_call: false,
            template_variables: Map::new(),
            add_generation_prompt: true,
            continue_final_message: false,
        };
        for input in [TokensInput::Text("x".to_owned()), chat] {
            let request = Tokenize { input, add_special_tokens: true, return_token_strs: false };
            for request in [TokensRequest::Tokenize(request), TokensRequest::Detokenize { tokens: vec![7] }] {
                let json = serde_json::to_vec(&request).unwrap();
                assert_eq!(serde_json::from_slice::<TokensRequest>(&json).unwrap(), request);
            }
        }
    }
}
