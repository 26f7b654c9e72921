//! A network's shape from the `config.json` of a folder as on the Hugging Face hub.

use std::path::Path;

use emberline_kernels::Activation;
use serde::Deserialize;

use super::hf_rope::{RopeSettings, Surroundings, Wrong};
use super::{Family, LayerConfig, Layout, MAX_CONTEXT, MAX_LAYERS, MAX_VOCABULARY, MAX_WIDTH, ModelConfig};
use crate::checkpoint::CheckpointError;
use crate::network::NetworkError;
use crate::network::tensor_names::TensorNames;

/// How the names of vision models' other tensors begin.
const VISION: [&str; 4] =
    ["vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector."];
/// Tables that old checkpoints contain, and that are computed.
const COMPUTED: &str = ".rotary_emb.inv_freq";

/// What is read of the file. Names are transformers'.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Settings {
    model_type: Option<String>,
    text_config: Option<Box<Settings>>,
    quantization_config: Option<serde_json::Value>,
    vocab_size: Option<usize>,
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    max_position_embeddings: Option<usize>,
    original_max_position_embeddings: Option<f64>,
    rms_norm_eps: Option<f32>,
    hidden_act: Option<String>,
    hidden_activation: Option<String>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    query_pre_attn_scalar: Option<f32>,
    final_logit_softcapping: Option<f32>,
    attn_logit_softcapping: Option<f32>,
    use_bidirectional_attention: Option<bool>,
    rope_theta: Option<f64>,
    rope_local_base_freq: Option<f64>,
    partial_rotary_factor: Option<f64>,
    rope_scaling: Option<RopeSettings>,
    rope_parameters: Option<RopeSettings>,
    layer_types: Option<Vec<String>>,
    sliding_window: Option<usize>,
    sliding_window_pattern: Option<usize>,
    use_sliding_window: Option<bool>,
    max_window_layers: Option<usize>,
    no_rope_layers: Option<Vec<u8>>,
    no_rope_layer_interval: Option<usize>,
}

impl Layout {
    /// The network that a `config.json` describes, and how `tensors` store it.
    pub(crate) fn from_config(
        path: &Path,
        text: &[u8],
        tensors: &[&str],
    ) -> Result<(ModelConfig, Self), NetworkError> {
        let settings: Settings = serde_json::from_slice(text)
            .map_err(|source| CheckpointError::Config { path: path.to_owned(), source })?;
        let model_type = settings.model_type.clone().unwrap_or_default();
        let has_vision = model_type == "gemma3" && settings.text_config.is_some();
        let settings = match settings.text_config {
            Some(text) if has_vision => *text,
            _ => settings,
        };
        let text_type = if has_vision { "gemma3_text" } else { model_type.as_str() };
        let Some(family) = Family::from_model_type(text_type) else {
            return Err(NetworkError::Architecture { path: path.to_owned(), found: model_type });
        };
        let settings = settings.completed(family);
        let wrong = |(key, found, wanted): Wrong| NetworkError::Setting {
            path: path.to_owned(),
            key: key.to_owned(),
            found,
            wanted,
        };
        settings.refuse_unsupported().map_err(wrong)?;
        let config = settings.network(family).map_err(wrong)?.checked(path)?;
        let layout = layout(&config, family, has_vision, tensors);
        Ok((config, layout))
    }
}

fn layout(config: &ModelConfig, family: Family, has_vision: bool, tensors: &[&str]) -> Layout {
    let bodies = ["model.", "language_model.model.", "model.language_model."];
    let holds = |body: &&str| tensors.contains(&format!("{body}embed_tokens.weight").as_str());
    let body = bodies.into_iter().find(holds).unwrap_or("model.");
    let head =
        if body == "language_model.model." { "language_model.lm_head.weight" } else { "lm_head.weight" };
    let mut unneeded = vec![COMPUTED.to_owned()];
    if config.tied_embedding {
        unneeded.push(head.to_owned());
    }
    if has_vision {
        unneeded.extend(VISION.map(String::from));
    }
    Layout {
        names: TensorNames::Transformers { body, head, post_norms: config.post_norms },
        interleaved: false,
        fused: family.fused(),
        norm_offset: if family == Family::Gemma3 { 1.0 } else { 0.0 },
        unneeded,
    }
}

impl Settings {
    /// With what transformers takes where a family's files often say nothing.
    fn completed(mut self, family: Family) -> Self {
        let default = |value: &mut Option<usize>, default| {
            value.get_or_insert(default);
        };
        if family == Family::Gemma3 {
            default(&mut self.vocab_size, 262_208);
            default(&mut self.num_attention_heads, 8);
            default(&mut self.num_key_value_heads, 4);
            default(&mut self.head_dim, 256);
            default(&mut self.max_position_embeddings, 131_072);
            default(&mut self.sliding_window, 4096);
            self.rope_theta.get_or_insert(1_000_000.0);
            self.rms_norm_eps.get_or_insert(1e-6);
            self.query_pre_attn_scalar.get_or_insert(256.0);
        }
        if family == Family::SmolLm3 {
            self.rope_theta.get_or_insert(2_000_000.0);
        }
        self.tie_word_embeddings.get_or_insert(matches!(family, Family::Gemma3 | Family::SmolLm3));
        self
    }

    fn refuse_unsupported(&self) -> Result<(), Wrong> {
        let wanted = "absent: it is not implemented";
        let found = [
            ("quantization_config", self.quantization_config.as_ref().map(|_| "present".to_owned())),
            ("mlp_bias", self.mlp_bias.filter(|bias| *bias).map(|bias| bias.to_string())),
            ("final_logit_softcapping", self.final_logit_softcapping.map(|cap| cap.to_string())),
            ("attn_logit_softcapping", self.attn_logit_softcapping.map(|cap| cap.to_string())),
            (
                "use_bidirectional_attention",
                self.use_bidirectional_attention.filter(|both| *both).map(|both| both.to_string()),
            ),
        ];
        match found.into_iter().find_map(|(key, found)| Some((key, found?))) {
            Some((key, found)) => Err((key, found, wanted)),
            None => Ok(()),
        }
    }

    fn network(&self, family: Family) -> Result<ModelConfig, Wrong> {
        let hidden = size("hidden_size", self.hidden_size, MAX_WIDTH)?;
        let heads = size("num_attention_heads", self.num_attention_heads, MAX_WIDTH)?;
        let head_dim = size("head_dim", self.head_dim.or(Some(hidden / heads)), MAX_WIDTH)?;
        let layers = size("num_hidden_layers", self.num_hidden_layers, MAX_LAYERS)?;
        let kv_heads = self.num_key_value_heads.or(Some(heads));
        let around = self.around_rope(head_dim)?;
        let rope = self.rope_parameters.as_ref().or(self.rope_scaling.as_ref()).cloned().unwrap_or_default();
        let rope = rope.full_attention.as_deref().unwrap_or(&rope);
        let mut rotaries = vec![rope.rotary(around)?];
        if family == Family::Gemma3 {
            rotaries.push(self.local_rope().rotary(around)?);
        }
        let attention_bias = self.attention_bias.unwrap_or(false);
        if attention_bias && family == Family::Gemma3 {
            return Err(("attention_bias", "true".to_owned(), "false: it is not implemented"));
        }
        let score_width = self.query_pre_attn_scalar.unwrap_or(head_dim as f32);
        Ok(ModelConfig {
            vocabulary: size("vocab_size", self.vocab_size, MAX_VOCABULARY)?,
            hidden,
            feed_forward: size("intermediate_size", self.intermediate_size, MAX_WIDTH)?,
            heads,
            kv_heads: size("num_key_value_heads", kv_heads, MAX_WIDTH)?,
            head_dim,
            context_length: rope.context_length(around).unwrap_or(0).max(around.context_length),
            norm_epsilon: self.rms_norm_eps.unwrap_or(1e-6),
            activation: self.activation(family)?,
            score_scale: 1.0 / score_width.sqrt(),
            embedding_scale: family.embedding_scale(hidden),
            tied_embedding: self.tie_word_embeddings.unwrap_or(false),
            qkv_bias: attention_bias || family == Family::Qwen2,
            output_bias: attention_bias && family != Family::Qwen2,
            head_norm: family.head_norm(),
            post_norms: family.post_norms(),
            rotaries,
            layers: self.layers(family, layers)?,
        })
    }

    fn around_rope(&self, head_dim: usize) -> Result<Surroundings, Wrong> {
        Ok(Surroundings {
            theta: self.rope_theta.unwrap_or(10_000.0),
            partial: self.partial_rotary_factor.unwrap_or(1.0),
            head_dim,
            context_length: size("max_position_embeddings", self.max_position_embeddings, MAX_CONTEXT)?,
            original: self.original_max_position_embeddings,
        })
    }

    /// The rotation of layers with a window, where they have one of their own.
    fn local_rope(&self) -> RopeSettings {
        let own = self.rope_parameters.as_ref().and_then(|rope| rope.sliding_attention.as_deref());
        own.cloned().unwrap_or_else(|| RopeSettings::plain(self.rope_local_base_freq.unwrap_or(10_000.0)))
    }

    fn activation(&self, family: Family) -> Result<Activation, Wrong> {
        let name = match family {
            Family::Gemma3 => self.hidden_activation.as_deref().or(Some("gelu_pytorch_tanh")),
            _ => self.hidden_act.as_deref(),
        };
        match name {
            None | Some("silu" | "swish") => Ok(Activation::Silu),
            Some("gelu_pytorch_tanh") => Ok(Activation::GeluTanh),
            Some(other) => Err(("hidden_act", format!("{other:?}"), "silu or gelu_pytorch_tanh")),
        }
    }

    fn layers(&self, family: Family, count: usize) -> Result<Vec<LayerConfig>, Wrong> {
        let zero = |key| (key, "0".to_owned(), "a number above 0");
        if self.sliding_window == Some(0) {
            return Err(zero("sliding_window"));
        }
        let listed = self.layer_types.as_deref().filter(|_| family != Family::Mistral);
        let pattern = self.sliding_window_pattern.unwrap_or(6);
        let interval = self.no_rope_layer_interval.or(family.unrotated_interval()).unwrap_or(usize::MAX);
        if pattern == 0 || interval == 0 {
            return Err(zero("sliding_window_pattern or no_rope_layer_interval"));
        }
        let asks = self.use_sliding_window.unwrap_or(false);
        let layer = |index: usize| {
            let rotated = match &self.no_rope_layers {
                _ if family != Family::SmolLm3 => true,
                Some(listed) => listed.get(index) != Some(&0),
                None => !(index + 1).is_multiple_of(interval),
            };
            let windowed = match (listed, family) {
                (Some(listed), _) => match listed.get(index).map(String::as_str) {
                    Some("full_attention") => false,
                    Some("sliding_attention") => true,
                    other => {
                        let wanted = "full_attention or sliding_attention for each layer";
                        return Err(("layer_types", format!("{other:?} for layer {index}"), wanted));
                    }
                },
                (None, Family::Llama) => false,
                (None, Family::Mistral | Family::Phi3) => true,
                (None, Family::Qwen2 | Family::Qwen3) => {
                    asks && index >= self.max_window_layers.unwrap_or(28)
                }
                (None, Family::SmolLm3) => asks && !rotated,
                (None, Family::Gemma3) => !(index + 1).is_multiple_of(pattern),
            };
            let rotary = usize::from(windowed && family == Family::Gemma3);
            Ok(LayerConfig {
                rotary: rotated.then_some(rotary),
                window: self.sliding_window.filter(|_| windowed),
            })
        };
        (0..count).map(layer).collect()
    }
}

fn size(key: &'static str, found: Option<usize>, max: usize) -> Result<usize, Wrong> {
    match found {
        Some(value) if (1..=max).contains(&value) => Ok(value),
        Some(value) => Err((key, value.to_string(), "a number above 0 that a model can have")),
        None => Err((key, "missing".to_owned(), "a number above 0")),
    }
}

#[cfg(test)]
#[path = "hf_tests.rs"]
mod tests;
