//! Tool calls in a model's text: the formats in which models write them, and the reader that extracts them.

mod call;
mod reader;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::subject::JobId;
pub use reader::{AnswerPart, ToolCallReader};

/// The format in which a model writes tool calls. The worker's grammar enforces it, so that readers of the
/// text can rely on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToolFormat {
    /// `<tool_call>\n{"name": "f", "arguments": {…}}\n</tool_call>`, repeated for each call, after any text:
    /// Hermes, Qwen, SmolLM, and models whose template does not support tools.
    Hermes,
    /// `{"name": "f", "parameters": {…}}`, calls separated by `; `, without other text: Llama 3.
    Llama,
    /// `[TOOL_CALLS][{"name": "f", "arguments": {…}}, …]`, after any text: Mistral.
    Mistral,
}

/// Which text an answer may contain beside its tool calls. The worker's grammar enforces this, too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TextBesideCalls {
    /// No text: a call is required.
    None,
    /// Any text. A call follows each complete opening mark.
    Free,
    /// Text in a response format, which may contain the marks of calls.
    #[default]
    Formatted,
}

/// The id of a call; the same for every reader of a job's log.
pub fn call_id(job: &JobId, choice: u32, index: u32) -> String {
    let digest = Sha256::digest(format!("{job}/{choice}/{index}"));
    let (first, _) = digest.split_at(12);
    format!("call_{}", HEXLOWER.encode(first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_keeps_its_id_and_no_two_share_one() {
        let (job, other) = (JobId::from_random(1), JobId::from_random(2));
        let ids = [call_id(&job, 0, 0), call_id(&job, 0, 1), call_id(&job, 1, 0), call_id(&other, 0, 0)];
        let distinct: std::collections::HashSet<_> = ids.iter().collect();
        assert_eq!(distinct.len(), ids.len());
        for id in &ids {
            let digits = id.strip_prefix("call_").unwrap();
            assert!(digits.len() == 24 && digits.bytes().all(|b| b.is_ascii_hexdigit()), "{id}");
        }
        assert_eq!(ids[0], call_id(&JobId::from_random(1), 0, 0));
    }
}
