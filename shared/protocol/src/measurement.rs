//! Benchmark results: `emberline-worker bench` prints them in JSON, `emberline bench engine` displays them.

use serde::{Deserialize, Serialize};

/// The benchmark of one engine on one device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EngineMeasurement {
    /// The device.
    pub device: DeviceFacts,
    /// The model.
    pub model: ModelFacts,
    /// Whether it ran with fewer repetitions and sizes than usual, too few for publication.
    pub quick: bool,
    /// Bytes read and written per second while the device copies a large buffer; `None` if that could not be
    /// measured.
    pub copy_bytes_per_s: Option<f64>,
    /// Prefill of single prompts, and of several at once.
    pub prefill: Vec<Throughput>,
    /// Decode steps, with one token for each sequence of the batch.
    pub decode: Vec<Throughput>,
    /// Kernels launched in a decode step of one sequence; `None` if the device does not count them.
    pub dispatches_per_step: Option<f64>,
    /// Time by operation in a decode step of one sequence; empty if the device does not report it.
    #[serde(default)]
    pub decode_profile: Vec<OpTime>,
    /// Decoding one sequence with each data type of the key-value cache that the device supports; empty if it
    /// supports only one.
    #[serde(default)]
    pub cache: Vec<CacheThroughput>,
    /// The whole engine, scheduler included; `None` for a model without a tokenizer.
    pub serving: Option<ServingMeasurement>,
    /// Memory use.
    pub memory: MemoryUse,
}

/// The device and the machine around it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceFacts {
    /// The device in words, as in the heartbeat.
    pub description: String,
    /// Whether it is a GPU, not a driver that computes on the CPU.
    pub gpu: bool,
    /// The CPU's name, as the operating system reports it.
    pub cpu: String,
    /// Number of compute threads on the CPU.
    pub threads: usize,
    /// The worker's version.
    pub version: String,
    /// What was asked for of its arithmetic, such as `fast`; empty for what is usual.
    #[serde(default)]
    pub arithmetic: String,
}

/// The model that was measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelFacts {
    /// The file's name without its extension, or the name of a model with random weights.
    pub name: String,
    /// Whether the weights are random.
    pub random: bool,
    /// Size of the weights on the device, in bytes.
    pub weight_bytes: u64,
    /// Bytes of the weights that a decode step of one sequence reads.
    pub step_bytes: u64,
    /// Size of one token in the key-value cache, in bytes.
    pub cache_bytes_per_token: u64,
}

/// The throughput of a batch. Times are in seconds, for all tokens of one repetition together.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Throughput {
    /// Number of sequences in the batch.
    pub batch: usize,
    /// Length of each sequence's prompt, in tokens. When decoding, the tokens in the cache at the start.
    pub prompt_tokens: usize,
    /// Tokens per second, all sequences together, by the median time.
    pub tokens_per_s: f64,
    /// Median time.
    pub seconds: f64,
    /// The shortest time.
    pub fastest_s: f64,
    /// The longest time.
    pub slowest_s: f64,
}

/// Decoding with one data type of the key-value cache.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CacheThroughput {
    /// Data type of keys and values: `f32` or `f16`.
    pub dtype: String,
    /// Decode steps of one sequence.
    pub rate: Throughput,
}

/// Time in one operation of a decode step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OpTime {
    /// The operation's name in the kernels.
    pub op: String,
    /// Calls per step.
    pub calls: f64,
    /// Milliseconds per step, all calls together.
    pub ms: f64,
}

/// The engine's latency and throughput, from submitting a job to receiving tokens.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ServingMeasurement {
    /// Largest number of prompt tokens in a single step, unless a row has its own.
    pub prefill_budget: usize,
    /// Capacity of the key-value cache, in tokens.
    pub cache_tokens: usize,
    /// Time to the first token.
    pub first_token: Vec<FirstTokenLatency>,
    /// Time between tokens of running streams while a long prompt is prefilled.
    pub gaps: Vec<InterTokenLatency>,
    /// Reuse of a repeated system prompt.
    pub prefix: Option<PrefixReuse>,
    /// Throughput of several streams at once.
    pub streams: Vec<StreamThroughput>,
    /// Throughput beside streams that are constrained by a schema.
    #[serde(default)]
    pub constrained: Option<ConstrainedThroughput>,
    /// Answers with speculation and without; empty if it was not measured.
    #[serde(default)]
    pub speculation: Vec<SpeculationGain>,
}

/// Time from submitting a job to its first token, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct FirstTokenLatency {
    /// Length of its prompt, in tokens.
    pub prompt_tokens: usize,
    /// Number of streams that run at the same time.
    pub load: usize,
    /// The shortest time.
    pub min_ms: f64,
    /// Median.
    pub median_ms: f64,
    /// The longest time.
    pub max_ms: f64,
}

/// Time between two tokens of a running stream, in milliseconds, while another prompt arrives.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct InterTokenLatency {
    /// Largest number of prompt tokens in a single step.
    pub prefill_budget: usize,
    /// Number of running streams.
    pub streams: usize,
    /// Length of the prompt that arrives, in tokens.
    pub prompt_tokens: usize,
    /// Median before the prompt arrives.
    pub before_ms: f64,
    /// Median while the prompt is prefilled.
    pub median_ms: f64,
    /// 99th percentile while the prompt is prefilled.
    pub p99_ms: f64,
    /// Maximum while the prompt is prefilled.
    pub max_ms: f64,
    /// Time of a step with only the last, most expensive chunk of the prompt.
    pub chunk_ms: f64,
    /// Time to the first token of the prompt that arrives.
    pub first_token_ms: f64,
}

/// Prefill times, in milliseconds, with and without the beginning of the prompt in the prefix cache.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PrefixReuse {
    /// Approximate length of the system prompt, in tokens.
    pub system_tokens: usize,
    /// Prefill of the whole first request.
    pub first_ms: f64,
    /// Median prefill of requests that repeat the system prompt and continue differently.
    pub repeated_ms: f64,
    /// Median prefill of the same requests without the system prompt.
    pub own_ms: f64,
    /// Number of tokens of the repeated requests that came from the cache.
    pub cached_tokens: usize,
}

/// The throughput of several streams at once, each from a short prompt.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct StreamThroughput {
    /// Number of streams.
    pub streams: usize,
    /// Tokens per second of all streams together while all of them run: from the first token of the stream
    /// that starts last to the end of the stream that ends first.
    pub tokens_per_s: f64,
}

/// The throughput of unconstrained streams beside as many that are constrained by a JSON schema.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ConstrainedThroughput {
    /// Number of unconstrained streams, and of constrained ones.
    pub streams: usize,
    /// Share of the steps' time spent waiting for masks of allowed tokens, from 0 to 1.
    pub wait_share: f64,
    /// Time to compute one mask, on threads beside the engine's, in milliseconds.
    pub mask_ms: f64,
    /// Tokens per second of the unconstrained streams together.
    pub tokens_per_s: f64,
    /// The same beside as many other unconstrained streams.
    pub beside_plain_tokens_per_s: f64,
    /// The same without other streams.
    pub alone_tokens_per_s: f64,
}

/// The same answers with speculation (prompt look-up) and without it, from the first token of each on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SpeculationGain {
    /// What is asked.
    pub prompt: String,
    /// Number of streams that ask it at the same time.
    pub streams: usize,
    /// Tokens of all answers.
    pub tokens: u64,
    /// Steps with speculation.
    pub steps: u64,
    /// Steps without.
    pub plain_steps: u64,
    /// Tokens drafted.
    pub drafted: u64,
    /// Of these, the ones that were right.
    pub accepted: u64,
    /// Tokens per second of all streams together, median.
    pub tokens_per_s: f64,
    /// The same without speculation.
    pub plain_tokens_per_s: f64,
}

/// Memory use in bytes; `None` if the system does not report it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryUse {
    /// Of the process with the model loaded, before any computation.
    pub loaded: Option<u64>,
    /// Peak of the process.
    pub peak: Option<u64>,
    /// Peak on the GPU.
    pub gpu_peak: Option<u64>,
}

/// The benchmark of llama.cpp with the same weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LlamaCpp {
    /// The version of llama-cpp-python.
    pub version: String,
    /// The processor features that llama.cpp uses, as it reports them.
    pub system: String,
    /// Whether all layers were on a GPU.
    pub gpu: bool,
    /// Number of threads.
    pub threads: usize,
    /// Like [`EngineMeasurement::prefill`].
    pub prefill: Vec<Throughput>,
    /// Like [`EngineMeasurement::decode`], but without sampling.
    pub decode: Vec<Throughput>,
    /// Peak memory use of the process, in bytes.
    pub peak_memory: u64,
}

impl EngineMeasurement {
    /// Bandwidth at which decoding one sequence reads the weights, as a share of the copy bandwidth.
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
                arithmetic: String::new(),
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
            memory: MemoryUse { loaded: None, peak: Some(2), gpu_peak: None },
        }
    }

    #[test]
    fn the_share_of_the_bandwidth_is_that_of_one_sequence() {
        let rate = |batch, tokens_per_s| Throughput {
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
