//! Which model a request means: configured names and aliases.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;

use emberline_protocol::error::{ApiError, ErrorCode};

/// The operator's names: models that are expected to be served, and aliases for them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModelNames {
    models: Vec<String>,
    aliases: BTreeMap<String, String>,
}

/// A part of the configuration that is not `alias=model`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not of the form alias=model")]
pub struct InvalidAlias(String);

impl ModelNames {
    /// Reads a comma-separated list of models and one of `alias=model` pairs.
    pub fn parse(models: &str, aliases: &str) -> Result<Self, InvalidAlias> {
        let parts = |text: &str| -> Vec<String> {
            text.split(',').map(str::trim).filter(|p| !p.is_empty()).map(str::to_owned).collect()
        };
        let mut names = Self { models: parts(models), aliases: BTreeMap::new() };
        for pair in parts(aliases) {
            match pair.split_once('=').map(|(a, m)| (a.trim(), m.trim())) {
                Some((alias, model)) if !alias.is_empty() && !model.is_empty() => {
                    names.aliases.insert(alias.to_owned(), model.to_owned());
                }
                _ => return Err(InvalidAlias(pair)),
            }
        }
        Ok(names)
    }

    /// The model that `name` stands for.
    pub fn resolve<'a>(&'a self, name: &'a str) -> &'a str {
        self.aliases.get(name).map_or(name, String::as_str)
    }

    /// Alias and model, in the aliases' order.
    pub fn aliases(&self) -> impl Iterator<Item = (&str, &str)> {
        self.aliases.iter().map(|(a, m)| (a.as_str(), m.as_str()))
    }

    /// Decides whether a job for `requested` can be queued, given the models that are served now.
    ///
    /// Returns the model's own name, or 503 for a configured model without a worker, or 404.
    pub fn admit(&self, requested: &str, served: &[String]) -> Result<String, ApiError> {
        let model = self.resolve(requested);
        if served.iter().any(|s| s == model) {
            return Ok(model.to_owned());
        }
        let configured = self.models.iter().chain(self.aliases.values()).any(|m| m == model);
        if configured {
            return Err(ApiError::field(
                ErrorCode::NoWorker,
                "model",
                format!("No worker serves '{requested}' at the moment. Try again shortly."),
            ));
        }
        Err(self.not_found(requested, served))
    }

    /// The 404 for a model nobody knows; its message lists what is available.
    pub fn not_found(&self, requested: &str, served: &[String]) -> ApiError {
        let mut available: Vec<&str> = served.iter().map(String::as_str).collect();
        available.extend(self.aliases().filter(|(_, m)| served.iter().any(|s| s == m)).map(|(a, _)| a));
        available.sort_unstable();
        available.dedup();
        let list = if available.is_empty() { "none at the moment".to_owned() } else { available.join(", ") };
        ApiError::field(
            ErrorCode::ModelNotFound,
            "model",
            format!("The model '{requested}' does not exist. Available: {list}."),
        )
    }
}

/// A model in the answers of `/v1/models`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Model {
    /// The model's name, or an alias.
    pub id: String,
    /// Always `model`.
    pub object: &'static str,
    /// When a worker loaded it, unix seconds.
    pub created: u64,
    /// Always `emberline`.
    pub owned_by: &'static str,
    /// The model's own name.
    pub root: String,
    /// Always null.
    pub parent: Option<()>,
    /// Always empty.
    pub permission: [(); 0],
    /// Prompt and completion together, in tokens.
    pub max_model_len: u32,
    /// The same.
    pub context_length: u32,
}

/// The answer of `GET /v1/models`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ModelList {
    /// Always `list`.
    pub object: &'static str,
    /// Models, then aliases.
    pub data: Vec<Model>,
}

/// The answer of `GET /ready`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Readiness {
    /// Always `ready`.
    pub status: &'static str,
    /// Models that are served.
    pub models: Vec<String>,
}

/// The answer of `GET /health`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Health {
    /// Always `ok`.
    pub status: &'static str,
}

/// The answer of `GET /version`, as vLLM has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Version {
    /// Of the function.
    pub version: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_leads_to_its_model() {
        let names = ModelNames::parse("a, b", " primary = a ,").unwrap();
        let served = vec!["a".to_owned()];
        assert_eq!(names.admit("primary", &served).unwrap(), "a");
        assert_eq!(names.admit("a", &served).unwrap(), "a");
        assert_eq!(names.admit("b", &served).unwrap_err().code, ErrorCode::NoWorker);
        let unknown = names.admit("c", &served).unwrap_err();
        assert_eq!(unknown.code, ErrorCode::ModelNotFound);
        assert!(unknown.message.contains("a, primary"), "{}", unknown.message);
    }

    #[test]
    fn a_broken_alias_is_named() {
        assert_eq!(ModelNames::parse("", "x").unwrap_err(), InvalidAlias("x".into()));
    }
}
