//! Models and their aliases: which model a request refers to, and the answers that list models.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;

use emberline_protocol::error::{ApiError, ErrorCode};

/// The models and aliases that the operator has configured.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModelNames {
    models: Vec<String>,
    aliases: BTreeMap<String, String>,
}

/// An entry of the configured aliases that does not have the form `alias=model`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not of the form alias=model")]
pub struct InvalidAlias(String);

impl ModelNames {
    /// Parses a comma-separated list of models and a comma-separated list of `alias=model` pairs.
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

    /// The model that `name` refers to: the alias's model, or `name` itself.
    pub fn resolve<'a>(&'a self, name: &'a str) -> &'a str {
        self.aliases.get(name).map_or(name, String::as_str)
    }

    /// Pairs of alias and model, sorted by alias.
    pub fn aliases(&self) -> impl Iterator<Item = (&str, &str)> {
        self.aliases.iter().map(|(a, m)| (a.as_str(), m.as_str()))
    }

    /// Decides whether a job for `requested` can be queued, given the models that workers serve now.
    ///
    /// Returns the name of the model with aliases resolved. Fails with 503 if the model is configured but no
    /// worker serves it, and with 404 if it is unknown.
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

    /// The 404 error for an unknown model. Its message lists the models and aliases that are available.
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

/// A model or an alias, as `/v1/models` returns it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Model {
    /// The model's name, or an alias.
    pub id: String,
    /// Always `model`.
    pub object: &'static str,
    /// When a worker loaded the model, in Unix seconds.
    pub created: u64,
    /// Always `emberline`.
    pub owned_by: &'static str,
    /// The model's name; for an alias, the name of the model that it refers to.
    pub root: String,
    /// Always null.
    pub parent: Option<()>,
    /// Always empty.
    pub permission: [(); 0],
    /// Length of the model's context in tokens: prompt and generated tokens together.
    pub max_model_len: u32,
    /// The same as `max_model_len`.
    pub context_length: u32,
}

/// The answer of `GET /v1/models`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ModelList {
    /// Always `list`.
    pub object: &'static str,
    /// The models, followed by the aliases.
    pub data: Vec<Model>,
}

/// The answer of `GET /ready`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Readiness {
    /// Always `ready`.
    pub status: &'static str,
    /// Names of the models that workers serve.
    pub models: Vec<String>,
}

/// The answer of `GET /health`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Health {
    /// Always `ok`.
    pub status: &'static str,
}

/// The answer of `GET /version`, in the same form as vLLM's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Version {
    /// Version of the function that answered.
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
