//! Answers requests to convert text to tokens and back.

use emberline_protocol::error::ApiError;
use emberline_protocol::relaxed::Relaxed;
use emberline_protocol::tokens::{Tokenize, TokensInput, TokensReply};

use super::prompt_renderer::{PromptRenderer, internal};
use crate::clock;
use crate::template::Conversation;

impl PromptRenderer {
    pub(super) fn tokenize(&self, request: Tokenize) -> Result<TokensReply, ApiError> {
        let mut relaxed = Relaxed::default();
        let text = match request.input {
            TokensInput::Text(text) => text,
            TokensInput::Chat {
                messages,
                tools,
                tool_choice,
                single_tool_call,
                template_variables: mut variables,
                add_generation_prompt,
                continue_final_message,
            } => {
                relaxed = self.drop_unread(&mut variables);
                self.render(&Conversation {
                    tools: &tools,
                    tool_choice,
                    parallel_tool_calls: !single_tool_call,
                    variables,
                    add_generation_prompt,
                    continue_final_message,
                    ..Conversation::new(&messages, clock::unix_ms())
                })?
            }
        };
        let tokens = match request.add_special_tokens {
            true => self.tokenizer.encode_prompt(&text),
            false => self.tokenizer.encode(&text),
        };
        let tokens = tokens.map_err(|error| internal(&error))?;
        let written = || tokens.iter().map(|&id| self.tokenizer.written(id)).collect();
        let token_strs = request.return_token_strs.then(written);
        Ok(TokensReply::Tokenized { tokens, token_strs, max_model_len: self.context_length, relaxed })
    }

    pub(super) fn detokenize(&self, tokens: &[u32]) -> Result<TokensReply, ApiError> {
        self.check_ids(tokens, "tokens")?;
        Ok(TokensReply::Detokenized { text: self.tokenizer.decode(tokens) })
    }
}
