//! What tensors are called.

/// A tensor of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
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

/// A way of naming tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Names {
    /// As llama.cpp's converters do.
    Gguf,
    /// As transformers does.
    Transformers {
        /// Before the names of the network without its head.
        body: &'static str,
        /// The head's name.
        head: &'static str,
        /// Whether there are norms behind attention and feed-forward; then others are called
        /// differently.
        post_norms: bool,
    },
}

impl Names {
    /// A part's name; `layer` counts for parts of a layer.
    pub(crate) fn of(&self, part: Part, layer: usize) -> String {
        match *self {
            Self::Gguf => gguf(part, layer),
            Self::Transformers { body, head, post_norms } => {
                transformers(part, layer, body, head, post_norms)
            }
        }
    }
}

fn gguf(part: Part, layer: usize) -> String {
    let part = match part {
        Part::Embedding => return "token_embd.weight".to_owned(),
        Part::Head => return "output.weight".to_owned(),
        Part::Norm => return "output_norm.weight".to_owned(),
        Part::AttentionNorm => "attn_norm.weight",
        Part::Query => "attn_q.weight",
        Part::Key => "attn_k.weight",
        Part::Value => "attn_v.weight",
        Part::Qkv => "attn_qkv.weight",
        Part::QueryBias => "attn_q.bias",
        Part::KeyBias => "attn_k.bias",
        Part::ValueBias => "attn_v.bias",
        Part::QueryNorm => "attn_q_norm.weight",
        Part::KeyNorm => "attn_k_norm.weight",
        Part::Output => "attn_output.weight",
        Part::OutputBias => "attn_output.bias",
        Part::PostAttentionNorm => "post_attention_norm.weight",
        Part::MlpNorm => "ffn_norm.weight",
        Part::Gate => "ffn_gate.weight",
        Part::Up | Part::GateUp => "ffn_up.weight",
        Part::Down => "ffn_down.weight",
        Part::PostMlpNorm => "post_ffw_norm.weight",
    };
    format!("blk.{layer}.{part}")
}

fn transformers(part: Part, layer: usize, body: &str, head: &str, post_norms: bool) -> String {
    let part = match part {
        Part::Embedding => return format!("{body}embed_tokens.weight"),
        Part::Head => return head.to_owned(),
        Part::Norm => return format!("{body}norm.weight"),
        Part::AttentionNorm => "input_layernorm.weight",
        Part::Query => "self_attn.q_proj.weight",
        Part::Key => "self_attn.k_proj.weight",
        Part::Value => "self_attn.v_proj.weight",
        Part::Qkv => "self_attn.qkv_proj.weight",
        Part::QueryBias => "self_attn.q_proj.bias",
        Part::KeyBias => "self_attn.k_proj.bias",
        Part::ValueBias => "self_attn.v_proj.bias",
        Part::QueryNorm => "self_attn.q_norm.weight",
        Part::KeyNorm => "self_attn.k_norm.weight",
        Part::Output => "self_attn.o_proj.weight",
        Part::OutputBias => "self_attn.o_proj.bias",
        Part::MlpNorm if post_norms => "pre_feedforward_layernorm.weight",
        Part::PostAttentionNorm | Part::MlpNorm => "post_attention_layernorm.weight",
        Part::Gate => "mlp.gate_proj.weight",
        Part::Up => "mlp.up_proj.weight",
        Part::GateUp => "mlp.gate_up_proj.weight",
        Part::Down => "mlp.down_proj.weight",
        Part::PostMlpNorm => "post_feedforward_layernorm.weight",
    };
    format!("{body}layers.{layer}.{part}")
}
