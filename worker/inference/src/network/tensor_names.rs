//! The names of tensors in checkpoints.

/// The role of a tensor in a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TensorRole {
    Embedding,
    Head,
    Norm,
    AttentionNorm,
    Query,
    Key,
    Value,
    /// All three in one.
    Qkv,
    QueryBias,
    KeyBias,
    ValueBias,
    QueryNorm,
    KeyNorm,
    Output,
    OutputBias,
    PostAttentionNorm,
    MlpNorm,
    Gate,
    Up,
    /// Both in one.
    GateUp,
    Down,
    PostMlpNorm,
}

impl TensorRole {
    /// Those that each layer may have.
    pub(crate) const OF_LAYERS: [Self; 19] = [
        Self::AttentionNorm,
        Self::Query,
        Self::Key,
        Self::Value,
        Self::Qkv,
        Self::QueryBias,
        Self::KeyBias,
        Self::ValueBias,
        Self::QueryNorm,
        Self::KeyNorm,
        Self::Output,
        Self::OutputBias,
        Self::PostAttentionNorm,
        Self::MlpNorm,
        Self::Gate,
        Self::Up,
        Self::GateUp,
        Self::Down,
        Self::PostMlpNorm,
    ];
}

/// A naming scheme for tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TensorNames {
    /// llama.cpp's.
    Gguf,
    /// transformers'.
    Transformers {
        /// Prefix of all names but the head's.
        body: &'static str,
        /// The head's name.
        head: &'static str,
        /// Whether there are norms after attention and feed-forward; then others are called
        /// differently.
        post_norms: bool,
    },
}

impl TensorNames {
    /// The name of the tensor with this role in `layer`, which is ignored for tensors outside of layers.
    pub(crate) fn of(&self, part: TensorRole, layer: usize) -> String {
        match *self {
            Self::Gguf => gguf(part, layer),
            Self::Transformers { body, head, post_norms } => {
                transformers(part, layer, body, head, post_norms)
            }
        }
    }
}

fn gguf(part: TensorRole, layer: usize) -> String {
    let part = match part {
        TensorRole::Embedding => return "token_embd.weight".to_owned(),
        TensorRole::Head => return "output.weight".to_owned(),
        TensorRole::Norm => return "output_norm.weight".to_owned(),
        TensorRole::AttentionNorm => "attn_norm.weight",
        TensorRole::Query => "attn_q.weight",
        TensorRole::Key => "attn_k.weight",
        TensorRole::Value => "attn_v.weight",
        TensorRole::Qkv => "attn_qkv.weight",
        TensorRole::QueryBias => "attn_q.bias",
        TensorRole::KeyBias => "attn_k.bias",
        TensorRole::ValueBias => "attn_v.bias",
        TensorRole::QueryNorm => "attn_q_norm.weight",
        TensorRole::KeyNorm => "attn_k_norm.weight",
        TensorRole::Output => "attn_output.weight",
        TensorRole::OutputBias => "attn_output.bias",
        TensorRole::PostAttentionNorm => "post_attention_norm.weight",
        TensorRole::MlpNorm => "ffn_norm.weight",
        TensorRole::Gate => "ffn_gate.weight",
        TensorRole::Up | TensorRole::GateUp => "ffn_up.weight",
        TensorRole::Down => "ffn_down.weight",
        TensorRole::PostMlpNorm => "post_ffw_norm.weight",
    };
    format!("blk.{layer}.{part}")
}

fn transformers(part: TensorRole, layer: usize, body: &str, head: &str, post_norms: bool) -> String {
    let part = match part {
        TensorRole::Embedding => return format!("{body}embed_tokens.weight"),
        TensorRole::Head => return head.to_owned(),
        TensorRole::Norm => return format!("{body}norm.weight"),
        TensorRole::AttentionNorm => "input_layernorm.weight",
        TensorRole::Query => "self_attn.q_proj.weight",
        TensorRole::Key => "self_attn.k_proj.weight",
        TensorRole::Value => "self_attn.v_proj.weight",
        TensorRole::Qkv => "self_attn.qkv_proj.weight",
        TensorRole::QueryBias => "self_attn.q_proj.bias",
        TensorRole::KeyBias => "self_attn.k_proj.bias",
        TensorRole::ValueBias => "self_attn.v_proj.bias",
        TensorRole::QueryNorm => "self_attn.q_norm.weight",
        TensorRole::KeyNorm => "self_attn.k_norm.weight",
        TensorRole::Output => "self_attn.o_proj.weight",
        TensorRole::OutputBias => "self_attn.o_proj.bias",
        TensorRole::MlpNorm if post_norms => "pre_feedforward_layernorm.weight",
        TensorRole::PostAttentionNorm | TensorRole::MlpNorm => "post_attention_layernorm.weight",
        TensorRole::Gate => "mlp.gate_proj.weight",
        TensorRole::Up => "mlp.up_proj.weight",
        TensorRole::GateUp => "mlp.gate_up_proj.weight",
        TensorRole::Down => "mlp.down_proj.weight",
        TensorRole::PostMlpNorm => "post_feedforward_layernorm.weight",
    };
    format!("{body}layers.{layer}.{part}")
}
