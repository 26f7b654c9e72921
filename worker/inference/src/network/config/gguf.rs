//! A network's shape from a GGUF file's metadata.

use super::{Family, LayerConfig, Layout, MAX_CONTEXT, MAX_LAYERS, MAX_WIDTH, ModelConfig};
use crate::checkpoint::gguf::GgufFile;
use crate::network::NetworkError;
use crate::network::rotary::{Rotary, Scaling, yarn_magnitude};
use crate::network::tensor_names::{TensorNames, TensorRole};

const EPSILON: &str = "attention.layer_norm_rms_epsilon";
/// Each pair's factor, where a model has one.
const ROPE_FACTORS: &str = "rope_freqs.weight";
const SHORT_FACTORS: &str = "rope_factors_short.weight";
const LONG_FACTORS: &str = "rope_factors_long.weight";
/// Layers in Gemma 3 up to and with one that sees everything; the others have a window.
const GEMMA_INTERVAL: usize = 6;
/// Base of the rotation in Gemma 3's layers with a window.
const GEMMA_LOCAL_BASE: f32 = 10_000.0;
/// Layers of the one Gemma 3 whose scores are scaled by other than the width of its heads.
const GEMMA_27B_LAYERS: usize = 62;

impl ModelConfig {
    /// Reads and checks the dimensions in a file's metadata.
    pub fn from_gguf(file: &GgufFile) -> Result<Self, NetworkError> {
        Ok(read(file)?.0)
    }
}

impl Layout {
    /// The network in a file, and how it is stored.
    pub(crate) fn from_gguf(file: &GgufFile) -> Result<(ModelConfig, Self), NetworkError> {
        read(file)
    }
}

fn read(file: &GgufFile) -> Result<(ModelConfig, Layout), NetworkError> {
    let architecture = file.metadata().get_str("general.architecture")?;
    let family = Family::from_architecture(architecture).ok_or_else(|| NetworkError::Architecture {
        path: file.path().to_owned(),
        found: architecture.to_owned(),
    })?;
    let keys = Keys { file, architecture };
    let hidden = keys.size("embedding_length", MAX_WIDTH)?;
    let heads = keys.size("attention.head_count", MAX_WIDTH)?;
    let head_dim = keys.opt_size("attention.key_length", MAX_WIDTH)?.unwrap_or(hidden / heads);
    let layers = keys.size("block_count", MAX_LAYERS)?;
    let context_length = keys.size("context_length", MAX_CONTEXT)?;
    keys.refuse_softcapping()?;
    let has = |part| file.tensor_info(&TensorNames::Gguf.of(part, 0)).is_ok();
    let embedding = file.tensor_info(&TensorNames::Gguf.of(TensorRole::Embedding, 0))?;
    let score_width = match family {
        Family::Gemma3 if layers == GEMMA_27B_LAYERS => hidden / heads,
        _ => head_dim,
    };
    let config = ModelConfig {
        vocabulary: embedding.shape.first().copied().unwrap_or_default(),
        hidden,
        feed_forward: keys.size("feed_forward_length", MAX_WIDTH)?,
        heads,
        kv_heads: keys.opt_size("attention.head_count_kv", MAX_WIDTH)?.unwrap_or(heads),
        head_dim,
        context_length,
        norm_epsilon: keys.number(EPSILON)?,
        activation: family.activation(),
        score_scale: 1.0 / (score_width as f32).sqrt(),
        embedding_scale: family.embedding_scale(hidden),
        tied_embedding: !has(TensorRole::Head),
        qkv_bias: has(TensorRole::QueryBias),
        output_bias: has(TensorRole::OutputBias),
        head_norm: family.head_norm(),
        post_norms: family.post_norms(),
        rotaries: rotaries(&keys, family, head_dim, context_length)?,
        layers: (0..layers).map(|index| keys.layer(family, index)).collect::<Result<_, _>>()?,
    };
    let layout = Layout {
        names: TensorNames::Gguf,
        interleaved: matches!(family, Family::Llama | Family::SmolLm3),
        fused: family.fused(),
        norm_offset: 0.0,
        unneeded: [ROPE_FACTORS, SHORT_FACTORS, LONG_FACTORS].map(String::from).to_vec(),
    };
    let config = config.checked(file.path())?;
    // With other than whole heads, interleaving would have to be undone for a part of each.
    if let Some(rotary) = config.rotaries.first()
        && layout.interleaved
        && rotary.dim() != head_dim
    {
        let found = format!("{} for heads of {head_dim}", rotary.dim());
        return Err(keys.invalid("rope.dimension_count", found, "the width of a head"));
    }
    Ok((config, layout))
}

fn rotaries(
    keys: &Keys<'_>,
    family: Family,
    head_dim: usize,
    context_length: usize,
) -> Result<Vec<Rotary>, NetworkError> {
    let dim = keys.opt_size("rope.dimension_count", head_dim)?.unwrap_or(head_dim);
    let base = f64::from(keys.opt_number("rope.freq_base")?.unwrap_or(10_000.0));
    let factor = keys.opt_number("rope.scaling.factor")?.map(f64::from);
    let original = keys.opt_size("rope.scaling.original_context_length", MAX_CONTEXT)?;
    let original = original.unwrap_or(context_length);
    let attention = f64::from(keys.opt_number("rope.scaling.attn_factor")?.unwrap_or(1.0));
    let kind = keys.file.metadata().opt_str(&keys.name("rope.scaling.type"))?.unwrap_or("none");
    let factors = keys.factors(ROPE_FACTORS, dim / 2)?;
    let long = (keys.factors(SHORT_FACTORS, dim / 2)?, keys.factors(LONG_FACTORS, dim / 2)?);
    let scaling = match (&factors, &long, kind, factor) {
        (Some(factors), ..) => Scaling::Each { factors },
        (None, (Some(short), Some(long)), ..) => {
            Scaling::Long { short, long, beyond: original, magnitude: attention }
        }
        (.., "none", _) | (.., "linear", None) => Scaling::None,
        (.., "linear", Some(factor)) => Scaling::Linear { factor },
        (.., "yarn", Some(factor)) => Scaling::Yarn {
            factor,
            fast: f64::from(keys.opt_number("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0)),
            slow: f64::from(keys.opt_number("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0)),
            original: original as f64,
            truncate: true,
            magnitude: attention * yarn_magnitude(factor, 1.0),
        },
        _ => {
            let wanted = "none, linear or yarn with a rope.scaling.factor, or longrope with its tensors";
            return Err(keys.invalid("rope.scaling.type", kind.to_owned(), wanted));
        }
    };
    let mut rotaries = vec![Rotary::new(base, dim, scaling)];
    if family == Family::Gemma3 {
        let base = keys.opt_number("rope.freq_base_swa")?.unwrap_or(GEMMA_LOCAL_BASE);
        rotaries.push(Rotary::new(f64::from(base), dim, Scaling::None));
    }
    Ok(rotaries)
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

    fn size(&self, key: &str, max: usize) -> Result<usize, NetworkError> {
        let found = self.file.metadata().get_u32(&self.name(key))?;
        match usize::try_from(found) {
            Ok(value) if (1..=max).contains(&value) => Ok(value),
            _ => Err(self.invalid(key, found.to_string(), "a number above 0 that a model can have")),
        }
    }

    /// `None` if there is no such key, or a zero.
    fn opt_size(&self, key: &str, max: usize) -> Result<Option<usize>, NetworkError> {
        match self.file.metadata().opt_u32(&self.name(key))? {
            Some(found) if found > 0 => self.size(key, max).map(Some),
            _ => Ok(None),
        }
    }

    fn number(&self, key: &str) -> Result<f32, NetworkError> {
        Ok(self.file.metadata().get_f32(&self.name(key))?)
    }

    fn opt_number(&self, key: &str) -> Result<Option<f32>, NetworkError> {
        match self.file.metadata().opt_f32(&self.name(key))? {
            Some(found) if !(found.is_finite() && found > 0.0) => {
                Err(self.invalid(key, found.to_string(), "a number above 0"))
            }
            found => Ok(found),
        }
    }

    fn layer(&self, family: Family, index: usize) -> Result<LayerConfig, NetworkError> {
        let last_of = |interval: usize| (index + 1).is_multiple_of(interval);
        let window = self.opt_size("attention.sliding_window", MAX_CONTEXT)?;
        if family == Family::Gemma3 {
            let interval = self.opt_size("attention.sliding_window_pattern", MAX_LAYERS)?;
            let global = last_of(interval.unwrap_or(GEMMA_INTERVAL));
            return Ok(match global {
                true => LayerConfig { rotary: Some(0), window: None },
                false => LayerConfig { rotary: Some(1), window },
            });
        }
        let rotated = !family.unrotated_interval().is_some_and(last_of);
        Ok(LayerConfig { rotary: rotated.then_some(0), window })
    }

    /// A tensor of rotary factors, if there is one.
    fn factors(&self, name: &str, count: usize) -> Result<Option<Vec<f64>>, NetworkError> {
        if self.file.tensor_info(name).is_err() {
            return Ok(None);
        }
        let (shape, factors) = self.file.read_f32(name)?;
        if shape != [count] {
            return Err(NetworkError::Shape {
                path: self.file.path().to_owned(),
                tensor: name.to_owned(),
                found: shape,
                expected: vec![count],
            });
        }
        Ok(Some(factors.into_iter().map(f64::from).collect()))
    }

    /// Some converters write a zero for none.
    fn refuse_softcapping(&self) -> Result<(), NetworkError> {
        for key in ["final_logit_softcapping", "attn_logit_softcapping"] {
            let found = self.file.metadata().opt_f32(&self.name(key))?;
            if let Some(found) = found.filter(|found| *found != 0.0) {
                return Err(self.invalid(key, found.to_string(), "absent: it is not implemented"));
            }
        }
        Ok(())
    }

    fn invalid(&self, key: &str, found: String, wanted: &'static str) -> NetworkError {
        NetworkError::Setting { path: self.file.path().to_owned(), key: self.name(key), found, wanted }
    }
}

#[cfg(test)]
#[path = "gguf_tests.rs"]
mod tests;
