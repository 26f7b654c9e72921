//! Parameters that are accepted if their value has no effect, mostly those of other servers.
//!
//! Clients and benchmarks send the defaults of the servers for which they are written. A value that does not
//! change this server's answer is accepted; any other is refused by name.

mod only;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

pub(crate) use only::{Only, OnlyAbsent, OnlyEmptyList, OnlyEmptyObject, OnlyNumber};

/// Parameters that every generation endpoint accepts.
#[derive(Debug, Deserialize, JsonSchema)]
#[allow(dead_code)] // most have no effect
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

/// Largest number of characters of a label.
const MAX_LABEL: usize = 1024;

/// OpenAI's parameters that label requests and users, and hints that have no effect here.
#[derive(Debug, Deserialize, JsonSchema)]
#[allow(dead_code)] // responses return some
pub(crate) struct Labels {
    /// Accepted for compatibility; has no effect, because the server does not store it.
    client_metadata: Option<Map<String, Value>>,
    /// Accepted for compatibility; has no effect, because the prefix cache is always on. Responses return it.
    #[schemars(length(max = MAX_LABEL))]
    pub(crate) prompt_cache_key: Option<String>,
    /// Accepted for compatibility; has no effect, because the prefix cache is always on.
    prompt_cache_options: Option<Map<String, Value>>,
    /// Accepted for compatibility; has no effect, because the prefix cache keeps entries as long as there is
    /// room.
    #[schemars(length(max = MAX_LABEL))]
    prompt_cache_retention: Option<String>,
    /// Accepted for compatibility; has no effect, because the server does not track end users. Responses
    /// return it.
    #[schemars(length(max = MAX_LABEL))]
    pub(crate) safety_identifier: Option<String>,
    /// Accepted for compatibility; `auto` and `default` have no effect, because there is only one tier.
    service_tier: Option<ServiceTier>,
    /// Accepted for compatibility; has no effect, because the server does not track end users. Responses
    /// return it.
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

/// vLLM's parameters. Each accepts only the value that has no effect, usually vLLM's default.
#[derive(Debug, Deserialize, JsonSchema)]
#[allow(dead_code)]
struct Vllm {
    /// Only `true` is accepted, because the generated text never contains special tokens.
    skip_special_tokens: Option<Only<true>>,
    /// Only `true` is accepted, because the generated text never contains special tokens.
    spaces_between_special_tokens: Option<Only<true>>,
    /// Only `false` is accepted, because the generated text never contains the stop sequence.
    include_stop_str_in_output: Option<Only<false>>,
    /// Only `false` is accepted, because beam search is not supported.
    use_beam_search: Option<Only<false>>,
    /// Only 1 is accepted, because beam search is not supported.
    length_penalty: Option<OnlyNumber<1>>,
    /// Only `false` is accepted, because beam search is not supported.
    early_stopping: Option<Only<false>>,
    /// Only `true` is accepted, because answers always contain text.
    detokenize: Option<Only<true>>,
    /// Only 0 is accepted, because all requests of a key have the same priority.
    priority: Option<OnlyNumber<0>>,
    /// Only null is accepted, because a prompt that exceeds the model's context is refused, not truncated.
    truncate_prompt_tokens: Option<OnlyAbsent>,
    /// Accepted for compatibility; has no effect, because prompts are never truncated.
    truncation_side: Option<Side>,
    /// Only null is accepted, because tokens can't be restricted to a list.
    allowed_token_ids: Option<OnlyAbsent>,
    /// Only `false` is accepted, because answers have no watermark.
    watermarking: Option<Only<false>>,
    /// Only `true` is accepted, because the answer's text includes the model's reasoning, if there is any.
    include_reasoning: Option<Only<true>>,
    /// Only -1 (unlimited) is accepted, because reasoning tokens have no separate limit.
    thinking_token_budget: Option<OnlyNumber<{ -1 }>>,
    /// Only 1 is accepted, because every token is sent as soon as it is generated.
    stream_interval: Option<OnlyNumber<1>>,
    /// Only `{}` is accepted, because prompts contain only text.
    mm_processor_kwargs: Option<OnlyEmptyObject>,
    /// Only `{}` is accepted, because prompts contain only text.
    media_io_kwargs: Option<OnlyEmptyObject>,
    /// Only `{}` is accepted, because the engine has no extensions.
    vllm_xargs: Option<OnlyEmptyObject>,
    /// Only `[]` is accepted, because custom logits processors are not supported.
    logits_processors: Option<OnlyEmptyList>,
    /// Accepted for compatibility; has no effect, because any worker can serve any request.
    #[schemars(length(max = MAX_LABEL))]
    session_id: Option<String>,
    /// Only null is accepted, because the server chooses the answer's id.
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

/// SGLang's parameters. Each accepts only the value that has no effect.
#[derive(Debug, Deserialize, JsonSchema)]
#[allow(dead_code)]
struct Sglang {
    /// Only `false` is accepted, because the generated text never contains the stop sequence.
    no_stop_trim: Option<Only<false>>,
    /// Only `false` is accepted, because answers can't contain hidden states.
    return_hidden_states: Option<Only<false>>,
    /// Only `false` is accepted, because answers can't contain routed experts.
    return_routed_experts: Option<Only<false>>,
    /// Only `false` is accepted; `usage` contains the number of cached tokens in any case.
    return_cached_tokens_details: Option<Only<false>>,
    /// Only `false` is accepted, because answers contain only OpenAI's fields.
    return_meta_info: Option<Only<false>>,
}

/// Parameters of llama.cpp's server. Each accepts only the value that has no effect.
#[derive(Debug, Deserialize, JsonSchema)]
#[allow(dead_code)]
struct LlamaCpp {
    /// Only `true` is accepted, because the prefix cache is always on.
    cache_prompt: Option<Only<true>>,
    /// Only -1 (any slot) is accepted, because requests can't choose where they run.
    id_slot: Option<OnlyNumber<{ -1 }>>,
    /// Only 1 (off) is accepted, because locally typical sampling is not supported.
    typical_p: Option<OnlyNumber<1>>,
    /// Only -1 (off) is accepted, because top-nσ sampling is not supported.
    top_n_sigma: Option<OnlyNumber<{ -1 }>>,
    /// Only 0 (off) is accepted, because XTC sampling is not supported.
    xtc_probability: Option<OnlyNumber<0>>,
    /// Only 0 (off) is accepted, because the DRY penalty is not supported.
    dry_multiplier: Option<OnlyNumber<0>>,
    /// Only 0 (off) is accepted, because dynamic temperature is not supported.
    dynatemp_range: Option<OnlyNumber<0>>,
    /// Only 0 (off) is accepted, because Mirostat sampling is not supported.
    mirostat: Option<OnlyNumber<0>>,
    /// Only 1 (off) is accepted; use `repetition_penalty` instead.
    #[schemars(extend("x-hint" = "Send 'repetition_penalty'."))]
    repeat_penalty: Option<OnlyNumber<1>>,
    /// Only 0 (off) is accepted; use `logprobs` instead.
    #[schemars(extend("x-hint" = "Send 'logprobs'."))]
    n_probs: Option<OnlyNumber<0>>,
    /// Only 0 is accepted, because a prompt that exceeds the model's context is refused, not truncated.
    n_keep: Option<OnlyNumber<0>>,
    /// Only 0 (off) is accepted; use the request header `x-request-timeout` instead.
    #[schemars(extend("x-hint" = "Send the header 'x-request-timeout'."))]
    t_max_predict_ms: Option<OnlyNumber<0>>,
    /// Only `false` is accepted, because answers contain only OpenAI's fields.
    timings_per_token: Option<Only<false>>,
    /// Only `false` is accepted, because answers contain only OpenAI's fields.
    return_progress: Option<Only<false>>,
    /// Only `false` is accepted, because log-probabilities are always those before sampling.
    post_sampling_probs: Option<Only<false>>,
    /// Only `[]` is accepted, because LoRA adapters are not supported.
    lora: Option<OnlyEmptyList>,
}
