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
    Output,
    MlpNorm,
    Gate,
    Up,
    Down,
}

/// A part's name in a GGUF file; `layer` counts for parts of a layer.
pub(crate) fn gguf(part: Part, layer: usize) -> String {
    let part = match part {
        Part::Embedding => return "token_embd.weight".to_owned(),
        Part::Head => return "output.weight".to_owned(),
        Part::Norm => return "output_norm.weight".to_owned(),
        Part::AttentionNorm => "attn_norm",
        Part::Query => "attn_q",
        Part::Key => "attn_k",
        Part::Value => "attn_v",
        Part::Output => "attn_output",
        Part::MlpNorm => "ffn_norm",
        Part::Gate => "ffn_gate",
        Part::Up => "ffn_up",
        Part::Down => "ffn_down",
    };
    format!("blk.{layer}.{part}.weight")
}
