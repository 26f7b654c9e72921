//! Where a model's chat template is.

use std::path::Path;

use super::{ChatTemplate, TemplateError};
use crate::checkpoint::gguf::GgufFile;
use crate::checkpoint::hf::{ChatTemplates, TokenizerConfig, read, read_json};

/// The template that is meant where there are several.
const DEFAULT: &str = "default";

/// The roles of tokens that templates know, and the metadata that name them.
const NAMED_TOKENS: [(&str, &str); 2] =
    [("bos_token", "tokenizer.ggml.bos_token_id"), ("eos_token", "tokenizer.ggml.eos_token_id")];

pub(super) fn from_gguf(file: &GgufFile) -> Result<ChatTemplate, TemplateError> {
    let source = file.metadata().get_str("tokenizer.chat_template")?;
    let mut named = Vec::new();
    for (role, key) in NAMED_TOKENS {
        named.extend(token_text(file, key)?.map(|token| (role, token)));
    }
    ChatTemplate::new(source, named)
}

/// The text of the token that `key` names, if there is such a key.
fn token_text<'a>(file: &'a GgufFile, key: &'static str) -> Result<Option<&'a str>, TemplateError> {
    let Some(id) = file.metadata().opt_u32(key)? else { return Ok(None) };
    let tokens = file.metadata().get_str_array("tokenizer.ggml.tokens")?;
    let count = tokens.len();
    match tokens.get(id as usize) {
        Some(token) => Ok(Some(token)),
        None => Err(TemplateError::NoSuchToken { path: file.path().to_path_buf(), key, id, count }),
    }
}

/// A file of its own goes before the tokenizer's settings, as in transformers.
pub(super) fn from_hf_dir(folder: &Path) -> Result<ChatTemplate, TemplateError> {
    let config: TokenizerConfig = read_json(&folder.join(TokenizerConfig::FILE))?;
    let own = read(&folder.join("chat_template.jinja"))?;
    let source = match (own, &config.chat_template) {
        (Some(own), _) => String::from_utf8_lossy(&own).into_owned(),
        (None, Some(ChatTemplates::One(template))) => template.clone(),
        (None, Some(ChatTemplates::Named(templates))) => {
            let default = templates.iter().find(|template| template.name == DEFAULT);
            let missing = || TemplateError::Missing { path: folder.to_path_buf() };
            default.ok_or_else(missing)?.template.clone()
        }
        (None, None) => return Err(TemplateError::Missing { path: folder.to_path_buf() }),
    };
    ChatTemplate::new(&source, config.named_tokens())
}

/// The template with blocks that are always rendered in the place of `generation` blocks, which
/// mark for training what a model writes.
pub(super) fn without_generation_marks(source: &str) -> String {
    let mut rest = source;
    let mut out = String::with_capacity(source.len());
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + "{%".len());
        out.push_str(before);
        rest = tag;
        let Some(end) = tag.find("%}") else { continue };
        let inside = &tag[..end];
        let word = inside.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        let instead = match word {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => continue,
        };
        out.push_str(&inside.replacen(word, instead, 1));
        rest = &tag[end..];
    }
    out.push_str(rest);
    out
}
