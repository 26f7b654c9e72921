//! Networks of random weights: as fast as real ones of the same shape, with nothing to download.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use emberline_kernels::Activation;
use emberline_kernels::ggml::GgmlType;
use half::f16;

use super::config::Layout;
use super::rotary::Scaling;
use super::tensor_names::{TensorNames, TensorRole};
use super::{LayerConfig, ModelConfig, Network, NetworkError, Rotary};
use crate::checkpoint::{CheckpointError, TensorSource};
use crate::device::ComputeDevice;

/// A well-known network shape, and the format of its matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RandomShape {
    shape: Shape,
    dtype: GgmlType,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    name: &'static str,
    hidden: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    feed_forward: usize,
    vocabulary: usize,
    context_length: usize,
}

const SHAPES: [Shape; 3] = [
    // For tests.
    Shape {
        name: "tiny",
        hidden: 256,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 64,
        feed_forward: 512,
        vocabulary: 1024,
        context_length: 4096,
    },
    // SmolLM2-135M.
    Shape {
        name: "smollm2-135m",
        hidden: 576,
        layers: 30,
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        feed_forward: 1536,
        vocabulary: 49_152,
        context_length: 8192,
    },
    // Llama 3.2 1B.
    Shape {
        name: "llama-1b",
        hidden: 2048,
        layers: 16,
        heads: 32,
        kv_heads: 8,
        head_dim: 64,
        feed_forward: 8192,
        vocabulary: 128_256,
        context_length: 8192,
    },
];

/// The formats of matrices; the first is the default.
const TYPES: [(&str, GgmlType); 5] = [
    ("q8_0", GgmlType::Q8_0),
    ("q4_0", GgmlType::Q4_0),
    ("q4_1", GgmlType::Q4_1),
    ("q4_k", GgmlType::Q4_K),
    ("f16", GgmlType::F16),
];

/// There is no such shape.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is no shape; there are llama-1b, smollm2-135m and tiny, each with -q8_0, -q4_0, -q4_1, -q4_k or -f16"
)]
pub struct UnknownShape(String);

impl FromStr for RandomShape {
    type Err = UnknownShape;

    fn from_str(text: &str) -> Result<Self, UnknownShape> {
        let lower = text.to_lowercase();
        let shape = SHAPES.into_iter().find(|shape| lower.starts_with(shape.name));
        let shape = shape.ok_or_else(|| UnknownShape(text.to_owned()))?;
        let rest = lower.strip_prefix(shape.name).unwrap_or_default();
        let wanted = rest.strip_prefix('-').unwrap_or("q8_0");
        let found =
            TYPES.into_iter().find(|(name, _)| *name == wanted && (rest.is_empty() || rest.starts_with('-')));
        match found {
            Some((_, dtype)) => Ok(Self { shape, dtype }),
            None => Err(UnknownShape(text.to_owned())),
        }
    }
}

impl fmt::Display for RandomShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dtype = TYPES.iter().find(|(_, dtype)| *dtype == self.dtype).map_or("", |(name, _)| name);
        write!(f, "random-{}-{dtype}", self.shape.name)
    }
}

impl Network {
    /// A network of random weights.
    pub fn random(shape: RandomShape, target: &ComputeDevice) -> Result<Self, NetworkError> {
        let layout =
            Layout { names: NAMES, interleaved: false, fused: false, norm_offset: 0.0, unneeded: Vec::new() };
        Self::load(shape.config(), &layout, &RandomWeights::new(shape), target, None, &|_| {})
    }
}

const NAMES: TensorNames = TensorNames::Gguf;

impl RandomShape {
    fn config(self) -> ModelConfig {
        let Shape { hidden, layers, heads, kv_heads, head_dim, .. } = self.shape;
        let Shape { feed_forward, vocabulary, context_length, .. } = self.shape;
        ModelConfig {
            vocabulary,
            hidden,
            feed_forward,
            heads,
            kv_heads,
            head_dim,
            context_length,
            norm_epsilon: 1e-5,
            activation: Activation::Silu,
            score_scale: (head_dim as f32).powf(-0.5),
            embedding_scale: 1.0,
            tied_embedding: true,
            qkv_bias: false,
            output_bias: false,
            head_norm: false,
            post_norms: false,
            rotaries: vec![Rotary::new(500_000.0, head_dim, Scaling::None)],
            layers: vec![LayerConfig { rotary: Some(0), window: None }; layers],
        }
    }
}

/// Tensors of any length, made by repeating one tile of random blocks.
struct RandomWeights {
    shape: RandomShape,
    tensors: Vec<(String, Vec<usize>, GgmlType)>,
}

impl RandomWeights {
    fn new(shape: RandomShape) -> Self {
        let Shape { hidden, layers, heads, kv_heads, head_dim, feed_forward, vocabulary, .. } = shape.shape;
        let (queries, keys) = (heads * head_dim, kv_heads * head_dim);
        let matrix = |name: String, rows, columns| (name, vec![rows, columns], shape.dtype);
        let vector = |name: String| (name, vec![hidden], GgmlType::F32);
        let mut tensors = vec![
            matrix(NAMES.of(TensorRole::Embedding, 0), vocabulary, hidden),
            vector(NAMES.of(TensorRole::Norm, 0)),
        ];
        for layer in 0..layers {
            let name = |part| NAMES.of(part, layer);
            tensors.extend([
                vector(name(TensorRole::AttentionNorm)),
                matrix(name(TensorRole::Query), queries, hidden),
                matrix(name(TensorRole::Key), keys, hidden),
                matrix(name(TensorRole::Value), keys, hidden),
                matrix(name(TensorRole::Output), hidden, queries),
                vector(name(TensorRole::MlpNorm)),
                matrix(name(TensorRole::Gate), feed_forward, hidden),
                matrix(name(TensorRole::Up), feed_forward, hidden),
                matrix(name(TensorRole::Down), hidden, feed_forward),
            ]);
        }
        Self { shape, tensors }
    }
}

impl TensorSource for RandomWeights {
    fn path(&self) -> &Path {
        Path::new(self.shape.shape.name)
    }

    fn names(&self) -> Vec<&str> {
        self.tensors.iter().map(|(name, ..)| name.as_str()).collect()
    }

    fn describe(&self, name: &str) -> Result<(&[usize], GgmlType), CheckpointError> {
        let found = self.tensors.iter().find(|(found, ..)| found == name);
        let missing =
            || CheckpointError::MissingTensor { path: self.path().to_owned(), tensor: name.to_owned() };
        found.map(|(_, shape, dtype)| (shape.as_slice(), *dtype)).ok_or_else(missing)
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, CheckpointError> {
        let (shape, dtype) = self.describe(name)?;
        let blocks = shape.iter().product::<usize>() / dtype.block_len();
        // Norms: products of ones neither vanish nor grow.
        if dtype == GgmlType::F32 {
            return Ok(1.0_f32.to_le_bytes().repeat(blocks));
        }
        let tile = tile(dtype, TILE_BLOCKS.min(blocks));
        Ok(tile.iter().copied().cycle().take(blocks * dtype.block_bytes()).collect())
    }
}

/// Blocks in the tile: enough that no device benefits from the repetition.
const TILE_BLOCKS: usize = 1 << 15;
/// Scale of a block's quantised numbers; small, so that activations stay finite.
const SCALE: f32 = 1.0 / 512.0;

/// Blocks of random numbers around 0.
fn tile(dtype: GgmlType, blocks: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut random = move || {
        // Knuth's MMIX generator; the high bits are good enough for weights.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    let half = |number: f32| f16::from_f32(number).to_le_bytes();
    let mut tile = Vec::with_capacity(blocks * dtype.block_bytes());
    for _ in 0..blocks {
        // The scales at the beginning of each block; see ggml's block structures.
        match dtype {
            GgmlType::F16 => {
                tile.extend(half((f32::from(random()) - 127.5) * SCALE / 16.0));
                continue;
            }
            GgmlType::Q8_0 => tile.extend(half(SCALE / 16.0)),
            GgmlType::Q4_1 => tile.extend([half(SCALE), half(-8.0 * SCALE)].concat()),
            GgmlType::Q4_K => tile.extend([half(SCALE / 32.0), half(SCALE / 4.0)].concat()),
            _ => tile.extend(half(SCALE)),
        }
        while tile.len() % dtype.block_bytes() != 0 {
            tile.push(random());
        }
    }
    tile
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::StepSpan;
    use emberline_kernels::ggml::extend_f32;

    #[test]
    fn shapes_are_named() {
        let parsed = |text: &str| text.parse::<RandomShape>().map(|shape| shape.to_string());
        assert_eq!(parsed("llama-1b").as_deref(), Ok("random-llama-1b-q8_0"));
        assert_eq!(parsed("Llama-1B-Q4_K").as_deref(), Ok("random-llama-1b-q4_k"));
        for bad in ["", "llama", "llama-1b-q9", "llama-1bq8_0", "llama-1b-"] {
            assert!(parsed(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn blocks_hold_numbers_around_zero() {
        for (name, dtype) in TYPES {
            let tile = tile(dtype, 512);
            assert_eq!(tile.len(), 512 * dtype.block_bytes());
            let mut numbers = Vec::new();
            extend_f32(dtype, &tile, &mut numbers);
            assert!(numbers.iter().all(|number| number.is_finite() && number.abs() < 1.0), "{name}");
            let mean = numbers.iter().sum::<f32>() / numbers.len() as f32;
            let spread = (numbers.iter().map(|n| n * n).sum::<f32>() / numbers.len() as f32).sqrt();
            assert!(mean.abs() < spread && spread > 1e-4, "{name}: {mean} {spread}");
        }
    }

    #[test]
    fn a_random_network_computes() {
        for (name, _) in TYPES {
            let shape: RandomShape = format!("tiny-{name}").parse().unwrap();
            let mut network = Network::random(shape, &ComputeDevice::cpu()).unwrap();
            network.allocate_cache(1, emberline_kernels::KvType::F16).unwrap();
            let span = StepSpan { tokens: &[1, 2, 3], start: 0, blocks: &[0], logit_rows: 1 };
            let logits = network.forward(&[span]).unwrap().unwrap().into_host().unwrap();
            assert_eq!(logits.len(), 1024);
            assert!(logits.iter().all(|logit| logit.is_finite()), "{name}");
            assert!(logits.iter().any(|logit| *logit != logits[0]), "{name}: all alike");
        }
    }
}
