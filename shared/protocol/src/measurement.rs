//! What `emberline-worker bench` prints and `emberline bench engine` shows.

use serde::{Deserialize, Serialize};

/// One engine on one device, measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EngineMeasurement {
    /// What computed.
    pub device: DeviceFacts,
    /// What was computed.
    pub model: ModelFacts,
    /// Fewer repetitions and sizes than usual: not for publication.
    pub quick: bool,
    /// Bytes that the device reads and writes in a second when it copies a large buffer; `None`
    /// where that could not be measured.
    pub copy_bytes_per_s: Option<f64>,
    /// Prompts, each alone, and several at once.
    pub prefill: Vec<Rate>,
    /// Steps of one token for each of several sequences.
    pub decode: Vec<Rate>,
    /// Kernels launched in a decode step of one sequence; `None` where nothing counts them.
    pub dispatches_per_step: Option<f64>,
    /// What a decode step of one sequence spends its time on; empty where nothing tells.
    #[serde(default)]
    pub decode_profile: Vec<OpTime>,
    /// Decoding one sequence with keys and values stored in each of the ways that the device knows;
    /// empty where there is only one.
    #[serde(default)]
    pub cache: Vec<CacheRate>,
    /// The whole engine, scheduler included; `None` for a network without a tokenizer.
    pub serving: Option<Serving>,
    /// Memory.
    pub memory: Memory,
}

/// The device and the machine around it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceFacts {
    /// In words, as in the heartbeat.
    pub description: String,
    /// Whether it is a GPU, and not something that computes on the CPU.
    pub gpu: bool,
    /// The CPU's name, as the system tells it.
    pub cpu: String,
    /// Threads that compute on the CPU.
    pub threads: usize,
    /// The worker's version.
    pub version: String,
}

/// The weights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelFacts {
    /// The file's name without extension, or that of a random network.
    pub name: String,
    /// Whether the weights are random numbers.
    pub random: bool,
    /// What the weights take on the device.
    pub weight_bytes: u64,
    /// What a decode step of one sequence reads of them.
    pub step_bytes: u64,
    /// What a token takes in the cache.
    pub cache_bytes_per_token: u64,
}

/// How many tokens in how much time; the times are of all of them together.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    /// Sequences at once.
    pub batch: usize,
    /// Tokens of each sequence's prompt. For decoding: those that are in the cache at the start.
    pub prompt_tokens: usize,
    /// By the median time.
    pub tokens_per_s: f64,
    /// Median.
    pub seconds: f64,
    /// The shortest time.
    pub fastest_s: f64,
    /// The longest time.
    pub slowest_s: f64,
}

/// Decoding with a cache of one kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CacheRate {
    /// How keys and values are stored: `f32` or `f16`.
    pub dtype: String,
    /// Steps of one sequence.
    pub rate: Rate,
}

/// Time spent in one kind of operation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OpTime {
    /// The operation, as the kernels name it.
    pub op: String,
    /// Calls in a step.
    pub calls: f64,
    /// Milliseconds in a step, all calls together.
    pub ms: f64,
}

/// The engine as a job's submitter sees it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Serving {
    /// Prompt tokens that a step takes at most, unless a row says otherwise.
    pub prefill_budget: usize,
    /// Tokens that the cache has room for.
    pub cache_tokens: usize,
    /// Time to the first token.
    pub first_token: Vec<FirstToken>,
    /// Running streams while a long prompt arrives.
    pub gaps: Vec<Gap>,
    /// A system prompt that comes again.
    pub prefix: Option<PrefixReuse>,
    /// Several streams at once.
    pub streams: Vec<Streams>,
    /// Streams that obey a schema beside others.
    #[serde(default)]
    pub constrained: Option<Constrained>,
}

/// From submitting a job to its first token.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct FirstToken {
    /// Tokens of its prompt.
    pub prompt_tokens: usize,
    /// Streams that were running meanwhile.
    pub load: usize,
    /// The shortest time.
    pub min_ms: f64,
    /// Median.
    pub median_ms: f64,
    /// The longest time.
    pub max_ms: f64,
}

/// Time between two tokens of a running stream.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Gap {
    /// Prompt tokens that a step takes at most.
    pub prefill_budget: usize,
    /// Running streams.
    pub streams: usize,
    /// Tokens of the prompt that arrives.
    pub prompt_tokens: usize,
    /// Median while nothing else happens.
    pub before_ms: f64,
    /// Median while the prompt is prefilled.
    pub median_ms: f64,
    /// 99th percentile while the prompt is prefilled.
    pub p99_ms: f64,
    /// The longest while the prompt is prefilled.
    pub max_ms: f64,
    /// What the last chunk of the prompt takes in a step of its own, where chunks are dearest.
    pub chunk_ms: f64,
    /// Time to the first token of the prompt that arrives.
    pub first_token_ms: f64,
}

/// What a prompt's beginning costs when it is in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PrefixReuse {
    /// Tokens of the system prompt, about.
    pub system_tokens: usize,
    /// Prefill of the whole first request.
    pub first_ms: f64,
    /// Median prefill of the requests that repeat the system prompt and go on differently.
    pub repeated_ms: f64,
    /// Median prefill of the same requests' own messages, without that system prompt.
    pub own_ms: f64,
    /// Tokens of the repeated requests that came from the cache.
    pub cached_tokens: usize,
}

/// Several streams at once, from a short prompt each.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Streams {
    /// How many.
    pub streams: usize,
    /// Tokens of all streams together, from the first token of the last stream to the end of the
    /// first that ends: while all of them run.
    pub tokens_per_s: f64,
}

/// Plain streams beside as many that obey a JSON schema.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Constrained {
    /// Plain streams, and as many others.
    pub streams: usize,
    /// The share of the steps' time that goes by waiting for masks of allowed tokens.
    pub wait_share: f64,
    /// Milliseconds that a mask takes, on threads beside the engine's.
    pub mask_ms: f64,
    /// Tokens of the plain streams together.
    pub tokens_per_s: f64,
    /// The same beside others that obey nothing.
    pub beside_plain_tokens_per_s: f64,
    /// The same without others.
    pub alone_tokens_per_s: f64,
}

/// Bytes; `None` where the system doesn't tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// The process with the model loaded, before anything was computed.
    pub loaded: Option<u64>,
    /// The most that the process has had.
    pub peak: Option<u64>,
    /// The most on the GPU.
    pub gpu_peak: Option<u64>,
}

/// llama.cpp on the same weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LlamaCpp {
    /// The version of llama-cpp-python.
    pub version: String,
    /// What of the processor llama.cpp uses.
    pub system: String,
    /// Whether all layers were on a GPU.
    pub gpu: bool,
    /// Threads.
    pub threads: usize,
    /// As ours.
    pub prefill: Vec<Rate>,
    /// As ours, but for choosing tokens, which is left out.
    pub decode: Vec<Rate>,
    /// The most memory that the process has had, in bytes.
    pub peak_memory: u64,
}

impl EngineMeasurement {
    /// The share of the copying bandwidth at which decoding one sequence reads the weights.
    pub fn bandwidth_share(&self) -> Option<f64> {
        let alone = self.decode.iter().find(|rate| rate.batch == 1)?;
        let ceiling = self.copy_bytes_per_s.filter(|ceiling| *ceiling > 0.0)?;
        Some(self.model.step_bytes as f64 * alone.tokens_per_s / ceiling)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measurement() -> EngineMeasurement {
        EngineMeasurement {
            device: DeviceFacts {
                description: "CPU".into(),
                gpu: false,
                cpu: "x".into(),
                threads: 2,
                version: "0.1.0".into(),
            },
            model: ModelFacts {
                name: "m".into(),
                random: false,
                weight_bytes: 120,
                step_bytes: 100,
                cache_bytes_per_token: 1,
            },
            quick: true,
            copy_bytes_per_s: Some(10_000.0),
            prefill: Vec::new(),
            decode: Vec::new(),
            dispatches_per_step: None,
            decode_profile: Vec::new(),
            cache: Vec::new(),
            serving: None,
            memory: Memory { loaded: None, peak: Some(2), gpu_peak: None },
        }
    }

    #[test]
    fn the_share_of_the_bandwidth_is_that_of_one_sequence() {
        let rate = |batch, tokens_per_s| Rate {
            batch,
            prompt_tokens: 128,
            tokens_per_s,
            seconds: 1.0,
            fastest_s: 1.0,
            slowest_s: 1.0,
        };
        let mut measured = measurement();
        assert_eq!(measured.bandwidth_share(), None, "nothing was decoded");
        measured.decode = vec![rate(8, 400.0), rate(1, 50.0)];
        assert_eq!(measured.bandwidth_share(), Some(0.5));
        measured.copy_bytes_per_s = None;
        assert_eq!(measured.bandwidth_share(), None);
    }
}
