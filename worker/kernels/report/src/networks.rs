//! The networks and steps that are reported.

use crate::ggml::GgmlType;
use crate::step::{NetworkShape, Step};
use crate::types::SamplingStages;

pub(crate) const NETWORKS: [(&str, NetworkShape); 3] = [
    (
        "SmolLM2-135M",
        NetworkShape {
            hidden: 576,
            layers: 30,
            heads: 9,
            kv_heads: 3,
            head_dim: 64,
            feed_forward: 1536,
            vocabulary: 49_152,
        },
    ),
    (
        "Llama-3.2-1B",
        NetworkShape {
            hidden: 2048,
            layers: 16,
            heads: 32,
            kv_heads: 8,
            head_dim: 64,
            feed_forward: 8192,
            vocabulary: 128_256,
        },
    ),
    (
        "Llama-3.1-8B",
        NetworkShape {
            hidden: 4096,
            layers: 32,
            heads: 32,
            kv_heads: 8,
            head_dim: 128,
            feed_forward: 14_336,
            vocabulary: 128_256,
        },
    ),
];

pub(crate) const TYPES: [GgmlType; 4] = [GgmlType::Q4_0, GgmlType::Q4_K, GgmlType::Q8_0, GgmlType::F16];

const GREEDY: SamplingStages = SamplingStages { draw: false, top_k: false, top_p: false };
const FILTERED: SamplingStages = SamplingStages { draw: true, top_k: true, top_p: true };

/// Steps, and how many positions each sequence has before them.
pub(crate) const STEPS: [(&str, Step, usize); 7] = [
    ("decode 1", Step::Decode { rows: 1, stages: GREEDY }, 500),
    ("decode 1 after 16000", Step::Decode { rows: 1, stages: GREEDY }, 16_000),
    ("decode 8", Step::Decode { rows: 8, stages: GREEDY }, 500),
    ("decode 32", Step::Decode { rows: 32, stages: GREEDY }, 500),
    ("decode 32, top-k and top-p", Step::Decode { rows: 32, stages: FILTERED }, 500),
    ("decode 128", Step::Decode { rows: 128, stages: GREEDY }, 500),
    ("prefill 512", Step::Prefill { rows: 512 }, 500),
];
