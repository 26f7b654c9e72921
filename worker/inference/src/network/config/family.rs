//! The families of models: what sets each apart, and how it stores its tensors.
//! A new model family begins here.

use emberline_kernels::Activation;

use crate::network::tensor_names::TensorNames;

/// A family of models with the same architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
    SmolLm3,
    Phi3,
    Gemma3,
}

impl Family {
    /// The list in error messages.
    pub(crate) const NAMES: &str = "Llama, Mistral, Qwen 2, Qwen 3, SmolLM, Phi-3 and Gemma 3";

    pub(super) fn from_architecture(name: &str) -> Option<Self> {
        Some(match name {
            "llama" => Self::Llama,
            "qwen2" => Self::Qwen2,
            "qwen3" => Self::Qwen3,
            "smollm3" => Self::SmolLm3,
            "phi3" => Self::Phi3,
            "gemma3" => Self::Gemma3,
            _ => return None,
        })
    }

    pub(super) fn from_model_type(name: &str) -> Option<Self> {
        Some(match name {
            "mistral" => Self::Mistral,
            "gemma3_text" => Self::Gemma3,
            // Gemma 3 with images is read from its text model's own settings.
            "gemma3" => return None,
            _ => return Self::from_architecture(name),
        })
    }

    /// Whether each head's query and key are normalised.
    pub(super) fn head_norm(self) -> bool {
        matches!(self, Self::Qwen3 | Self::Gemma3)
    }

    /// Whether the outputs of attention and feed-forward are normalised.
    pub(super) fn post_norms(self) -> bool {
        self == Self::Gemma3
    }

    /// Whether queries, keys and values are one tensor, and gate and up another.
    pub(super) fn fused(self) -> bool {
        self == Self::Phi3
    }

    pub(super) fn activation(self) -> Activation {
        if self == Self::Gemma3 { Activation::GeluTanh } else { Activation::Silu }
    }

    pub(super) fn embedding_scale(self, hidden: usize) -> f32 {
        if self == Self::Gemma3 { (hidden as f32).sqrt() } else { 1.0 }
    }

    /// Interval at which layers have no rotary positions.
    pub(super) fn unrotated_interval(self) -> Option<usize> {
        (self == Self::SmolLm3).then_some(4)
    }
}

/// How a checkpoint stores a network's tensors.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Layout {
    pub(crate) names: TensorNames,
    /// Queries and keys have the two components of a rotated pair side by side, not in the two
    /// halves of what is rotated.
    pub(crate) interleaved: bool,
    /// See [`Family::fused`].
    pub(crate) fused: bool,
    /// Added to the weights of norms.
    pub(crate) norm_offset: f32,
    /// Prefixes and suffixes of tensors that the network does not need.
    pub(crate) unneeded: Vec<String>,
}

impl Layout {
    pub(crate) fn is_unneeded(&self, name: &str) -> bool {
        self.unneeded.iter().any(|part| name.starts_with(part) || name.ends_with(part))
    }
}
