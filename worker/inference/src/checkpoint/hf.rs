//! The small files of a model's folder as it lies on the Hugging Face hub.

use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

/// The file with a network's settings.
pub(crate) const CONFIG_FILE: &str = "config.json";

/// A file of a model's folder that can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HfFileError {
    /// It can't be read.
    #[error("can't read {}: {source}; check its permissions or fetch the model again", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not there.
    #[error("{} is missing; fetch the whole model: {what} is in that file", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// What it holds.
        what: &'static str,
    },
    /// It is not what it should be.
    #[error("{} is not valid: {source}; fetch the model again", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
}

/// A file's bytes; `None` if there is no such file.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>, HfFileError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(HfFileError::Read { path: path.to_path_buf(), source }),
    }
}

/// A file's JSON; the default if there is no such file.
pub(crate) fn read_json<T: DeserializeOwned + Default>(path: &Path) -> Result<T, HfFileError> {
    let Some(bytes) = read(path)? else { return Ok(T::default()) };
    serde_json::from_slice(&bytes).map_err(|source| HfFileError::Parse { path: path.to_path_buf(), source })
}

/// `tokenizer_config.json`.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct TokenizerConfig {
    pub(crate) add_bos_token: Option<bool>,
    pub(crate) chat_template: Option<ChatTemplates>,
    #[serde(flatten)]
    rest: HashMap<String, serde_json::Value>,
}

/// One template, or several by name.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum ChatTemplates {
    One(String),
    Named(Vec<NamedTemplate>),
}

/// A template that is one of several.
#[derive(Debug, Deserialize)]
pub(crate) struct NamedTemplate {
    pub(crate) name: String,
    pub(crate) template: String,
}

impl TokenizerConfig {
    pub(crate) const FILE: &str = "tokenizer_config.json";

    /// The tokens that have a role, by the names of the roles: `bos_token` and the like.
    pub(crate) fn named_tokens(&self) -> impl Iterator<Item = (&str, &str)> {
        let tokens = self.rest.iter().filter(|(key, _)| key.ends_with("_token"));
        tokens.filter_map(|(key, value)| {
            // A whole token may stand there instead of its text.
            let text = value.as_str().or_else(|| value.get("content")?.as_str())?;
            Some((key.as_str(), text))
        })
    }

    pub(crate) fn named_token(&self, role: &str) -> Option<&str> {
        self.named_tokens().find(|(key, _)| *key == role).map(|(_, text)| text)
    }
}

/// `eos_token_id`, which `config.json` and `generation_config.json` have.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct EndTokens {
    pub(crate) eos_token_id: Option<OneOrMany>,
}

/// A token or a list of them.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

impl OneOrMany {
    pub(crate) fn as_slice(&self) -> &[u32] {
        match self {
            Self::One(id) => std::slice::from_ref(id),
            Self::Many(ids) => ids,
        }
    }
}
