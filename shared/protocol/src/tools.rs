//! How models write calls of functions into their text, and how they are read from it.

mod call;
mod reader;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::subject::JobId;
pub use reader::{Piece, ToolCallReader};

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

/// Which text an answer may have that is none of its calls. The worker sees to that, too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TextBesideCalls {
    /// None: a call is required.
    None,
    /// Any; once a call's opening mark is complete, that call follows.
    Free,
    /// What a response format allows, which may have the marks of calls in it.
    #[default]
    Formatted,
}

/// The id of a call: the same wherever and whenever a job's log is read.
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
