//! A network's shape from a GGUF file's metadata.

use emberline_kernels::Activation;

use super::{LayerConfig, MAX_CONTEXT, MAX_LAYERS, MAX_WIDTH, ModelConfig};
use crate::gguf::GgufFile;
use crate::model::LoadError;
use crate::model::rotary::{Rotary, frequencies};

/// The only architecture that is implemented.
const ARCHITECTURE: &str = "llama";

impl ModelConfig {
    /// Reads and checks the dimensions in a file's metadata.
    pub fn from_gguf(file: &GgufFile) -> Result<Self, LoadError> {
        let architecture = file.metadata().get_str("general.architecture")?;
        if architecture != ARCHITECTURE {
            return Err(LoadError::Architecture {
                path: file.path().to_owned(),
                found: architecture.to_owned(),
            });
        }
        let keys = Keys { file, architecture };
        let hidden = keys.size("embedding_length", MAX_WIDTH)?;
        let heads = keys.size("attention.head_count", MAX_WIDTH)?;
        let kv_heads = keys.opt_size("attention.head_count_kv", heads)?.unwrap_or(heads);
        if heads % kv_heads != 0 {
            let found = format!("{kv_heads} for {heads} query heads");
            return Err(keys.invalid("attention.head_count_kv", found, "a divisor of the number of heads"));
        }
        let head_dim = keys.opt_size("attention.key_length", MAX_WIDTH)?.unwrap_or(hidden / heads);
        let rotated = keys.opt_size("rope.dimension_count", MAX_WIDTH)?.unwrap_or(head_dim);
        if head_dim == 0 || head_dim % 2 != 0 || rotated != head_dim {
            let found = format!("{rotated} for heads of {head_dim}");
            return Err(keys.invalid("rope.dimension_count", found, "the even width of a head"));
        }
        if let Some(scaling) = file.metadata().opt_str(&keys.name("rope.scaling.type"))?
            && scaling != "none"
        {
            return Err(keys.invalid("rope.scaling.type", scaling.to_owned(), "\"none\" (no scaling)"));
        }
        let base = keys.opt_positive("rope.freq_base")?.unwrap_or(10_000.0);
        let epsilon = "attention.layer_norm_rms_epsilon";
        let norm_epsilon = keys
            .opt_positive(epsilon)?
            .ok_or_else(|| keys.invalid(epsilon, "missing".to_owned(), "a number above 0"))?;
        let layers = keys.size("block_count", MAX_LAYERS)?;
        Ok(Self {
            hidden,
            feed_forward: keys.size("feed_forward_length", MAX_WIDTH)?,
            heads,
            kv_heads,
            head_dim,
            context_length: keys.size("context_length", MAX_CONTEXT)?,
            norm_epsilon,
            activation: Activation::Silu,
            score_scale: 1.0 / (head_dim as f32).sqrt(),
            embedding_scale: 1.0,
            qkv_bias: false,
            head_norm: false,
            post_norms: false,
            rotaries: vec![Rotary { frequencies: frequencies(f64::from(base), head_dim), magnitude: 1.0 }],
            layers: vec![LayerConfig { rotary: Some(0), window: None }; layers],
        })
    }
}

/// An architecture's own metadata keys.
struct Keys<'a> {
    file: &'a GgufFile,
    architecture: &'a str,
}

impl Keys<'_> {
    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn size(&self, key: &str, max: usize) -> Result<usize, LoadError> {
        let found = self.file.metadata().get_u32(&self.name(key))?;
        match usize::try_from(found) {
            Ok(value) if (1..=max).contains(&value) => Ok(value),
            _ => Err(self.invalid(key, found.to_string(), "a number above 0 that a model can have")),
        }
    }

    fn opt_size(&self, key: &str, max: usize) -> Result<Option<usize>, LoadError> {
        match self.file.metadata().opt_u32(&self.name(key))? {
            Some(_) => self.size(key, max).map(Some),
            None => Ok(None),
        }
    }

    fn opt_positive(&self, key: &str) -> Result<Option<f32>, LoadError> {
        match self.file.metadata().opt_f32(&self.name(key))? {
            Some(found) if !(found.is_finite() && found > 0.0) => {
                Err(self.invalid(key, found.to_string(), "a number above 0"))
            }
            found => Ok(found),
        }
    }

    fn invalid(&self, key: &str, found: String, wanted: &'static str) -> LoadError {
        LoadError::Metadata { path: self.file.path().to_owned(), key: self.name(key), found, wanted }
    }
}
