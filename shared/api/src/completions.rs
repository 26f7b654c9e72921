//! OpenAI's text completions: a raw prompt, to which no chat template is applied.

mod answer;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

pub use answer::{Completion, CompletionAnswer, Offsets};

use emberline_protocol::error::{ApiError, ErrorCode};
use emberline_protocol::job::{GenerationRequest, RawPrompt};
use emberline_protocol::relaxed::Relaxed;

use crate::chat::ResponseFormat;
use crate::neutral::{Neutral, Only};
use crate::numbers::{Seed, TokenLimit};
use crate::parameters::{MAX_CHOICES, MAX_SALT, Sampling, Stop, StreamOptions, StreamUsage};
use crate::paths::Paths;
use crate::schema::{BodySchema, Components};
use crate::structured::Structured;
use crate::token_details::{TokenDetails, TokenParameters};

/// Largest number of prompts of one request.
pub const MAX_PROMPTS: usize = 16;
/// Largest number of choices of one request, over all prompts.
pub const MAX_ALL_CHOICES: usize = 128;
/// Largest number of alternatives for each token's log-probability.
const MAX_LOGPROBS: u32 = 5;
/// Default of `max_tokens`, as in OpenAI's API.
const DEFAULT_MAX_TOKENS: u32 = 16;

/// A request to continue a prompt.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "CompletionRequest", deny_unknown_fields, extend("x-unsupported" = ["suffix"]))]
struct CompletionBody {
    /// Name of a model or an alias. `GET /v1/models` lists them.
    #[schemars(length(min = 1, max = 256), extend("x-hint" = "GET /v1/models lists the names."))]
    model: String,
    /// The prompt, as text or as an array of token ids, or an array of up to 16 prompts. Special tokens in
    /// text are recognised.
    prompt: Prompt,
    /// Maximum number of tokens to generate for each choice; -1 for as many as the model's context allows.
    /// Default: 16. 0 generates none, and requires `echo`, `prompt_logprobs` or `return_token_ids`.
    max_tokens: Option<TokenLimit<0>>,
    /// Number of choices to generate for each prompt. Default: 1.
    #[schemars(range(min = 1, max = MAX_CHOICES))]
    n: Option<u32>,
    /// Must equal `n`, which is the default: the server does not select the best of several choices.
    #[schemars(range(min = 1, max = 20))]
    best_of: Option<u32>,
    /// Whether each choice's text begins with the prompt, and its `logprobs` with the prompt's tokens.
    /// Default: false.
    echo: Option<bool>,
    /// Returns the log-probability of each token, and those of this many most probable tokens at each
    /// position. Default: no log-probabilities.
    #[schemars(range(min = 0, max = MAX_LOGPROBS))]
    logprobs: Option<u32>,
    /// Whether to stream the answer as server-sent events. Default: false.
    stream: Option<bool>,
    /// Options for streaming.
    stream_options: Option<StreamOptions>,
    /// Seed for sampling. On the same kind of device, a request with the same seed generates the same text.
    /// Default: random.
    seed: Option<Seed>,
    /// Up to 4 stop sequences. Each ends the choice in which it occurs, and is not part of the text.
    stop: Option<Stop>,
    #[serde(flatten)]
    tokens: TokenParameters,
    #[serde(flatten)]
    sampling: Sampling,
    /// Extension to OpenAI's API. Only requests with the same salt share entries of the prefix cache.
    /// Default: no salt; requests without one share entries with each other.
    #[schemars(length(min = 1, max = MAX_SALT))]
    cache_salt: Option<String>,
    /// Extension to OpenAI's API. The format that the text must have. Default: any text.
    response_format: Option<ResponseFormat>,
    #[serde(flatten)]
    structured: Structured,
    #[serde(flatten)]
    #[allow(dead_code)]
    no_effect: NoEffect,
}

/// Parameters that are accepted if their value has no effect.
#[derive(Debug, Deserialize, JsonSchema)]
#[allow(dead_code)]
struct NoEffect {
    /// Only `true` is accepted: a prompt given as text gets a beginning-of-sequence token if the model
    /// requires one.
    add_special_tokens: Option<Only<true>>,
    #[serde(flatten)]
    neutral: Neutral,
}

/// One or several raw prompts.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
enum Prompt {
    /// One prompt as text.
    Text(#[schemars(length(min = 1))] String),
    /// Several prompts as text.
    Texts(#[schemars(length(min = 1, max = MAX_PROMPTS), inner(length(min = 1)))] Vec<String>),
    /// One prompt as token ids.
    Tokens(#[schemars(length(min = 1), inner(range(min = 0, max = u32::MAX)))] Vec<u32>),
    /// Several prompts as token ids.
    TokenLists(#[schemars(length(min = 1, max = MAX_PROMPTS))] Vec<TokenList>),
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
struct TokenList(#[schemars(length(min = 1), inner(range(min = 0, max = u32::MAX)))] Vec<u32>);

impl Prompt {
    fn into_vec(self) -> Vec<RawPrompt> {
        match self {
            Self::Text(text) => vec![RawPrompt::Text(text)],
            Self::Texts(texts) => texts.into_iter().map(RawPrompt::Text).collect(),
            Self::Tokens(tokens) => vec![RawPrompt::Tokens(tokens)],
            Self::TokenLists(lists) => {
                lists.into_iter().map(|TokenList(tokens)| RawPrompt::Tokens(tokens)).collect()
            }
        }
    }
}

/// A text-completions request, validated.
#[derive(Debug, Clone, PartialEq)]
pub struct CompletionRequest {
    /// The model's name or an alias, as the client wrote it.
    pub model: String,
    /// Whether the answer is streamed as server-sent events.
    pub stream: bool,
    /// Which chunks of a stream contain token counts.
    pub usage: StreamUsage,
    /// The client's seed, if it gave one.
    pub seed: Option<u64>,
    /// Which details of tokens the answer contains.
    pub details: TokenDetails,
    /// Fields of the body that the answer does not honour.
    pub relaxed: Relaxed,
    /// Maps paths of the job's fields to paths in the client's body.
    pub paths: Paths,
    /// One generation for each prompt; they differ only in the prompt. Not empty.
    pub generations: Vec<GenerationRequest>,
}

static BODY: BodySchema<CompletionBody> = BodySchema::new();

impl CompletionRequest {
    /// The schema of the request body.
    pub fn schema(components: &mut Components) -> Value {
        BODY.describe(components)
    }

    /// Parses and validates a request body.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let body = BODY.read(body)?;
        let stream = body.stream.unwrap_or(false);
        let usage = StreamOptions::usage(body.stream_options, stream)?;
        let (mut relaxed, mut paths) = (Relaxed::default(), Paths::default());
        paths.rename("max_completion_tokens", "max_tokens");
        let format = body.response_format.and_then(ResponseFormat::into_constraint);
        let constraint = body.structured.constraint(format, "response_format", &mut relaxed, &mut paths)?;
        let n = body.n.unwrap_or(1);
        check_best_of(n, body.best_of)?;
        let prompts = body.prompt.into_vec();
        check_choices(prompts.len(), n)?;
        let max_tokens = body.max_tokens.map_or(Some(DEFAULT_MAX_TOKENS), |TokenLimit(limit)| limit);
        let mut common = GenerationRequest {
            echo: body.echo.unwrap_or(false),
            cache_salt: body.cache_salt,
            constraint,
            max_tokens,
            stop: body.stop.map(Stop::into_vec).unwrap_or_default(),
            n,
            logprobs: body.logprobs,
            sampling: body.sampling.options(max_tokens)?,
            ..GenerationRequest::default()
        };
        let details = body.tokens.apply(&mut common)?;
        check_max_tokens(&common)?;
        let generation = |prompt| GenerationRequest { prompt: Some(prompt), ..common.clone() };
        Ok(Self {
            model: body.model,
            stream,
            usage,
            seed: body.seed.map(|Seed(seed)| seed),
            relaxed,
            paths,
            details,
            generations: prompts.into_iter().map(generation).collect(),
        })
    }
}

fn check_best_of(n: u32, best_of: Option<u32>) -> Result<(), ApiError> {
    match best_of {
        Some(best_of) if best_of < n => {
            let message = format!("'best_of' ({best_of}) is less than 'n' ({n}). Leave 'best_of' out.");
            Err(ApiError::field(ErrorCode::InvalidValue, "best_of", message))
        }
        Some(best_of) if best_of > n => {
            let message = format!(
                "'best_of' ({best_of}) above 'n' ({n}) is not supported. Ask for more choices by 'n' and choose yourself."
            );
            Err(ApiError::field(ErrorCode::UnsupportedParameter, "best_of", message))
        }
        _ => Ok(()),
    }
}

/// Refuses a request that neither generates tokens nor returns details of its prompt.
fn check_max_tokens(request: &GenerationRequest) -> Result<(), ApiError> {
    if request.max_tokens != Some(0) || request.echo || request.logs_prompt() {
        return Ok(());
    }
    let message = "'max_tokens' must be at least 1 without 'echo' or 'prompt_logprobs'.";
    Err(ApiError::field(ErrorCode::InvalidValue, "max_tokens", message))
}

fn check_choices(prompts: usize, n: u32) -> Result<(), ApiError> {
    let choices = usize::try_from(n).unwrap_or(usize::MAX).saturating_mul(prompts);
    if choices <= MAX_ALL_CHOICES {
        return Ok(());
    }
    let message = format!(
        "{prompts} prompts with 'n' {n} are {choices} choices; at most {MAX_ALL_CHOICES} are allowed. Send several requests."
    );
    Err(ApiError::field(ErrorCode::InvalidValue, "n", message))
}

#[cfg(test)]
#[path = "completions_tests.rs"]
mod tests;
