//! Parameters of other servers whose usual values ask for nothing.
//!
//! Clients and benchmarks send whole sets of defaults. A value that changes nothing here is accepted;
//! any other is refused by name.

mod only;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

pub(crate) use only::{Only, OnlyAbsent, OnlyEmptyList, OnlyEmptyObject, OnlyNumber};

/// Of every request that generates.
#[derive(Debug, Deserialize, JsonSchema)]
#[allow(dead_code)] // they ask for nothing
pub(crate) struct Neutral {
    #[serde(flatten)]
    pub(crate) labels: Labels,
    #[serde(flatten)]
    vllm: Vllm,
    #[serde(flatten)]
    sglang: Sglang,
    #[serde(flatten)]
    llama_cpp: LlamaCpp,
}

/// Most characters of a name for something that asks for nothing.
const MAX_LABEL: usize = 1024;

/// What OpenAI's clients note of themselves, and hints that nothing depends on here.
#[derive(Debug, Deserialize, JsonSchema)]
#[allow(dead_code)] // responses return some
pub(crate) struct Labels {
    /// Asks for nothing: what a client notes of itself.
    client_metadata: Option<Map<String, Value>>,
    /// Asks for nothing; responses return it.
    #[schemars(length(max = MAX_LABEL))]
    pub(crate) prompt_cache_key: Option<String>,
    /// Asks for nothing: what prompts begin with is shared.
    prompt_cache_options: Option<Map<String, Value>>,
    /// Asks for nothing: what prompts begin with is shared as long as there is room.
    #[schemars(length(max = MAX_LABEL))]
    prompt_cache_retention: Option<String>,
    /// Asks for nothing; responses return it.
    #[schemars(length(max = MAX_LABEL))]
    pub(crate) safety_identifier: Option<String>,
    /// Asks for nothing: there is one tier.
    service_tier: Option<ServiceTier>,
    /// Asks for nothing; responses return it.
    #[schemars(length(max = MAX_LABEL))]
    pub(crate) user: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline, extend("x-unsupported-values" = ["fast", "flex", "priority", "scale"]))]
enum ServiceTier {
    Auto,
    Default,
}

/// Defaults of vLLM.
#[derive(Debug, Deserialize, JsonSchema)]
#[allow(dead_code)]
struct Vllm {
    /// Special tokens are no part of the text.
    skip_special_tokens: Option<Only<true>>,
    /// There are none in the text.
    spaces_between_special_tokens: Option<Only<true>>,
    /// A stop string is no part of the text.
    include_stop_str_in_output: Option<Only<false>>,
    /// Tokens are sampled.
    use_beam_search: Option<Only<false>>,
    /// Of beam search.
    length_penalty: Option<OnlyNumber<1>>,
    /// Of beam search.
    early_stopping: Option<Only<false>>,
    /// Answers are text.
    detokenize: Option<Only<true>>,
    /// All requests of a key are equal.
    priority: Option<OnlyNumber<0>>,
    /// A prompt that does not fit is refused.
    truncate_prompt_tokens: Option<OnlyAbsent>,
    /// Asks for nothing: no prompt is cut.
    truncation_side: Option<Side>,
    /// Any token may be picked.
    allowed_token_ids: Option<OnlyAbsent>,
    /// Answers have no watermark.
    watermarking: Option<Only<false>>,
    /// Thinking, where there is any, is part of the answer.
    include_reasoning: Option<Only<true>>,
    /// Thinking has no budget of its own.
    thinking_token_budget: Option<OnlyNumber<{ -1 }>>,
    /// Every token is sent at once.
    stream_interval: Option<OnlyNumber<1>>,
    /// Prompts are text.
    mm_processor_kwargs: Option<OnlyEmptyObject>,
    /// Prompts are text.
    media_io_kwargs: Option<OnlyEmptyObject>,
    /// There are no extensions of the engine.
    vllm_xargs: Option<OnlyEmptyObject>,
    /// There are no processors of a client's own.
    logits_processors: Option<OnlyEmptyList>,
    /// Asks for nothing: any instance serves any request.
    #[schemars(length(max = MAX_LABEL))]
    session_id: Option<String>,
    /// The answer's id is the server's.
    #[schemars(extend("x-hint" = "Name the request by the header 'X-Request-Id'."))]
    request_id: Option<OnlyAbsent>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
enum Side {
    Left,
    Right,
}

/// Defaults of SGLang.
#[derive(Debug, Deserialize, JsonSchema)]
#[allow(dead_code)]
struct Sglang {
    /// A stop string is no part of the text.
    no_stop_trim: Option<Only<false>>,
    /// Answers have no hidden states.
    return_hidden_states: Option<Only<false>>,
    /// Answers do not tell of experts.
    return_routed_experts: Option<Only<false>>,
    /// `usage` has their count.
    return_cached_tokens_details: Option<Only<false>>,
    /// Answers have what OpenAI's have.
    return_meta_info: Option<Only<false>>,
}

/// Values that turn something off in llama.cpp's server.
#[derive(Debug, Deserialize, JsonSchema)]
#[allow(dead_code)]
struct LlamaCpp {
    /// Prompts share what they begin with.
    cache_prompt: Option<Only<true>>,
    /// Any slot may serve the request.
    id_slot: Option<OnlyNumber<{ -1 }>>,
    /// There is no such filter.
    typical_p: Option<OnlyNumber<1>>,
    /// There is no such filter.
    top_n_sigma: Option<OnlyNumber<{ -1 }>>,
    /// There is no such filter.
    xtc_probability: Option<OnlyNumber<0>>,
    /// There is no such penalty.
    dry_multiplier: Option<OnlyNumber<0>>,
    /// The temperature stays as it is.
    dynatemp_range: Option<OnlyNumber<0>>,
    /// There is no such sampler.
    mirostat: Option<OnlyNumber<0>>,
    /// Here it is `repetition_penalty`.
    #[schemars(extend("x-hint" = "Send 'repetition_penalty'."))]
    repeat_penalty: Option<OnlyNumber<1>>,
    /// Here it is `logprobs`.
    #[schemars(extend("x-hint" = "Send 'logprobs'."))]
    n_probs: Option<OnlyNumber<0>>,
    /// A prompt that does not fit is refused.
    n_keep: Option<OnlyNumber<0>>,
    /// Here it is the header `x-request-timeout`.
    #[schemars(extend("x-hint" = "Send the header 'x-request-timeout'."))]
    t_max_predict_ms: Option<OnlyNumber<0>>,
    /// Answers have what OpenAI's have.
    timings_per_token: Option<Only<false>>,
    /// Answers have what OpenAI's have.
    return_progress: Option<Only<false>>,
    /// Log-probabilities are those before sampling.
    post_sampling_probs: Option<Only<false>>,
    /// There are no adapters.
    lora: Option<OnlyEmptyList>,
}
