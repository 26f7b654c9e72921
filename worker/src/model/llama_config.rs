//! The shape of a Llama model, as its file's metadata tells it.

use super::LoadError;
use crate::gguf::GgufFile;

/// The only architecture that is implemented.
const ARCHITECTURE: &str = "llama";
/// No real model comes near these; larger numbers mean a damaged file.
const MAX_LAYERS: usize = 1024;
const MAX_WIDTH: usize = 1 << 20;
const MAX_CONTEXT: usize = 1 << 20;

/// The dimensions of a Llama model.
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaConfig {
    /// Transformer blocks.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the gated feed-forward layer.
    pub feed_forward: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Most positions, prompt and completion together.
    pub context_length: usize,
    /// Base of the rotary frequencies.
    pub rope_base: f32,
    /// Added to the mean square before its root.
    pub norm_epsilon: f32,
}

impl LlamaConfig {
    /// Reads and checks the dimensions in a file's metadata.
    pub fn from_gguf(file: &GgufFile) -> Result<Self, LoadError> {
        let metadata = file.metadata();
        let invalid = |key: &'static str, found: String, wanted: &'static str| LoadError::Setting {
            path: file.path().to_owned(),
            key: key.to_owned(),
            found,
            wanted,
        };
        let architecture = metadata.get_str("general.architecture")?;
        if architecture != ARCHITECTURE {
            return Err(LoadError::Architecture {
                path: file.path().to_owned(),
                found: architecture.to_owned(),
            });
        }
        let size = |key: &'static str, max: usize| -> Result<usize, LoadError> {
            let found = metadata.get_u32(key)?;
            let value = usize::try_from(found).unwrap_or(usize::MAX);
            if value == 0 || value > max {
                return Err(invalid(key, found.to_string(), "a number above 0 that a model can have"));
            }
            Ok(value)
        };
        let hidden = size("llama.embedding_length", MAX_WIDTH)?;
        let heads = size("llama.attention.head_count", MAX_WIDTH)?;
        let kv_heads = match metadata.opt_u32("llama.attention.head_count_kv")? {
            Some(_) => size("llama.attention.head_count_kv", heads)?,
            None => heads,
        };
        if heads % kv_heads != 0 {
            let found = format!("{kv_heads} for {heads} query heads");
            return Err(invalid("llama.attention.head_count_kv", found, "a divisor of the number of heads"));
        }
        let head_dim = match metadata.opt_u32("llama.attention.key_length")? {
            Some(_) => size("llama.attention.key_length", MAX_WIDTH)?,
            None => hidden / heads,
        };
        let rotated = metadata.opt_u32("llama.rope.dimension_count")?;
        if head_dim == 0 || head_dim % 2 != 0 || rotated.is_some_and(|r| r as usize != head_dim) {
            let found = format!("{rotated:?} for heads of {head_dim}");
            return Err(invalid("llama.rope.dimension_count", found, "the even width of a head"));
        }
        if let Some(scaling) = metadata.opt_str("llama.rope.scaling.type")?
            && scaling != "none"
        {
            return Err(invalid("llama.rope.scaling.type", scaling.to_owned(), "\"none\" (no scaling)"));
        }
        let rope_base = metadata.opt_f32("llama.rope.freq_base")?.unwrap_or(10_000.0);
        if !(rope_base.is_finite() && rope_base > 0.0) {
            return Err(invalid("llama.rope.freq_base", rope_base.to_string(), "a number above 0"));
        }
        let norm_epsilon = metadata.get_f32("llama.attention.layer_norm_rms_epsilon")?;
        if !(norm_epsilon.is_finite() && norm_epsilon > 0.0) {
            let key = "llama.attention.layer_norm_rms_epsilon";
            return Err(invalid(key, norm_epsilon.to_string(), "a number above 0"));
        }
        Ok(Self {
            layers: size("llama.block_count", MAX_LAYERS)?,
            hidden,
            feed_forward: size("llama.feed_forward_length", MAX_WIDTH)?,
            heads,
            kv_heads,
            head_dim,
            context_length: size("llama.context_length", MAX_CONTEXT)?,
            rope_base,
            norm_epsilon,
        })
    }

    /// Width of all query heads together.
    pub fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key (or value) heads together.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}
