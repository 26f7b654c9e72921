//! OpenAI's older text completions: a prompt as it is, without a chat template.

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

/// Most prompts of one request.
pub const MAX_PROMPTS: usize = 16;
/// Most choices of one request, over all prompts.
pub const MAX_ALL_CHOICES: usize = 128;
/// Most alternatives whose log-probabilities come with a token's own.
const MAX_LOGPROBS: u32 = 5;
/// What OpenAI's API takes where `max_tokens` is absent.
const DEFAULT_MAX_TOKENS: u32 = 16;

/// A request for text that continues a prompt.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "CompletionRequest", deny_unknown_fields, extend("x-unsupported" = ["suffix"]))]
struct CompletionBody {
    /// A model or an alias; `GET /v1/models` lists them.
    #[schemars(length(min = 1, max = 256), extend("x-hint" = "GET /v1/models lists the names."))]
    model: String,
    /// Text or token ids, or several of either. Special tokens in text are recognised.
    prompt: Prompt,
    /// Most tokens of an answer; -1 for what the context leaves. Default 16. 0 only where the prompt is told.
    max_tokens: Option<TokenLimit<0>>,
    /// Choices for each prompt. Default 1.
    #[schemars(range(min = 1, max = MAX_CHOICES))]
    n: Option<u32>,
    /// Only as many as `n`: choosing among more is not supported.
    #[schemars(range(min = 1, max = 20))]
    best_of: Option<u32>,
    /// The text begins with the prompt, and so does what `logprobs` asks for. Default false.
    echo: Option<bool>,
    /// The log-probability of each token, and of so many most probable ones in its place.
    #[schemars(range(min = 0, max = MAX_LOGPROBS))]
    logprobs: Option<u32>,
    /// Answer as server-sent events. Default false.
    stream: Option<bool>,
    /// What a stream carries beside the answer.
    stream_options: Option<StreamOptions>,
    /// The same seed gives the same text. Default: drawn.
    seed: Option<Seed>,
    /// Strings that end the answer and are not part of it.
    stop: Option<Stop>,
    #[serde(flatten)]
    tokens: TokenParameters,
    #[serde(flatten)]
    sampling: Sampling,
    /// Extension. Only requests with the same salt share the computation of a common beginning.
    #[schemars(length(min = 1, max = MAX_SALT))]
    cache_salt: Option<String>,
    /// Extension. What the answer has to obey.
    response_format: Option<ResponseFormat>,
    #[serde(flatten)]
    structured: Structured,
    #[serde(flatten)]
    #[allow(dead_code)]
    nothing: AsksNothing,
}

/// Parameters that are accepted because their values ask for nothing to be done.
#[derive(Debug, Deserialize, JsonSchema)]
#[allow(dead_code)]
struct AsksNothing {
    /// The token that begins a prompt is there if the model wants one.
    add_special_tokens: Option<Only<true>>,
    #[serde(flatten)]
    neutral: Neutral,
}

/// Prompts as they are.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
enum Prompt {
    /// Text.
    Text(#[schemars(length(min = 1))] String),
    /// Several texts.
    Texts(#[schemars(length(min = 1, max = MAX_PROMPTS), inner(length(min = 1)))] Vec<String>),
    /// Token ids.
    Tokens(#[schemars(length(min = 1), inner(range(min = 0, max = u32::MAX)))] Vec<u32>),
    /// Several lists of token ids.
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

/// A completions request, validated.
#[derive(Debug, Clone, PartialEq)]
pub struct CompletionRequest {
    /// As the client wrote it: a model or an alias.
    pub model: String,
    /// Answer as server-sent events.
    pub stream: bool,
    /// When a stream tells of usage.
    pub usage: StreamUsage,
    /// The client's seed, if it gave one.
    pub seed: Option<u64>,
    /// What the answer tells of tokens.
    pub details: TokenDetails,
    /// What the answer does without.
    pub relaxed: Relaxed,
    /// What the body calls the job's fields.
    pub paths: Paths,
    /// What to generate for each prompt, all alike otherwise; not empty.
    pub generations: Vec<GenerationRequest>,
}

static BODY: BodySchema<CompletionBody> = BodySchema::new();

impl CompletionRequest {
    /// The schema of its body.
    pub fn schema(components: &mut Components) -> Value {
        BODY.describe(components)
    }

    /// Reads a request body.
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

/// Without a token to come, only what is told of the prompt is an answer.
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
