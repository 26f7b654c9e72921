//! How models write calls of functions into their text, and how they are read from it.

use serde::{Deserialize, Serialize};

/// How a model writes its calls. The worker sees to it that they are written so; whoever reads the
/// text only has to follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToolFormat {
    /// `<tool_call>\n{"name": "f", "arguments": {…}}\n</tool_call>`, one after the other, after any
    /// text: Hermes, Qwen, SmolLM, and models whose template knows no tools.
    Hermes,
    /// `{"name": "f", "parameters": {…}}`, nothing else, calls separated by `; `: Llama 3.
    Llama,
    /// `[TOOL_CALLS][{"name": "f", "arguments": {…}}, …]`, after any text: Mistral.
    Mistral,
}
