//! Application variables: their values, and templates such as `{{ nats_server }}` that use them.
//!
//! The value of a variable is the first of: `--variable NAME=VALUE`, the environment variable
//! `SPIN_VARIABLE_NAME`, and the default in the manifest.

use std::collections::BTreeMap;
use std::env::VarError;
use std::fmt;

/// Prefix of the environment variables that set variables.
pub const ENVIRONMENT_PREFIX: &str = "SPIN_VARIABLE_";

/// Why variables can't be resolved.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum VariableError {
    /// A name is not allowed for a variable.
    #[error(
        "'{name}' is not a variable name: {problem}. \
         Use lower-case letters, digits and single underscores, beginning with a letter"
    )]
    InvalidName {
        /// The name.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A template has `{{` without `}}`.
    #[error("the template '{0}' has '{{{{' without '}}}}'. Close it")]
    UnmatchedBraces(String),
    /// A template or `--variable` uses a variable that the manifest does not declare.
    #[error("the variable '{0}' is not declared. Add it to [variables] in the manifest")]
    Undeclared(String),
    /// The required variables that have no value.
    #[error("no value for {}", describe_missing(.0))]
    Missing(Vec<String>),
    /// An environment variable is not UTF-8.
    #[error("the environment variable {0} is not UTF-8. Set it to text")]
    NotText(String),
}

fn describe_missing(names: &[String]) -> String {
    let each = names.iter().map(|name| format!("'{name}' (set {})", environment_name(name)));
    each.collect::<Vec<_>>().join(" and ")
}

/// The name of the environment variable that sets a variable.
pub fn environment_name(name: &str) -> String {
    format!("{ENVIRONMENT_PREFIX}{}", name.to_ascii_uppercase())
}

/// Checks a name that a component asks for, by Spin's rule. It allows more than the rule for declarations
/// ([`crate::ids::LowerSnakeId`]) does.
pub fn check_name(name: &str) -> Result<(), VariableError> {
    let problem = if name.is_empty() {
        "it is empty"
    } else if !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_') {
        "it has other characters"
    } else if !name.starts_with(|c: char| c.is_ascii_lowercase()) {
        "it does not begin with a letter"
    } else if name.ends_with('_') {
        "it ends with an underscore"
    } else if name.contains("__") {
        "it has two underscores in a row"
    } else {
        return Ok(());
    };
    Err(VariableError::InvalidName { name: name.to_owned(), problem })
}

/// A text with placeholders for variables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(Vec<TemplatePart>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum TemplatePart {
    Literal(String),
    Variable(String),
}

impl Template {
    /// Parses `text {{ name }} text`.
    pub fn parse(text: &str) -> Result<Self, VariableError> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((literal, after)) = rest.split_once("{{") {
            if !literal.is_empty() {
                parts.push(TemplatePart::Literal(literal.to_owned()));
            }
            let Some((name, after)) = after.split_once("}}") else {
                return Err(VariableError::UnmatchedBraces(text.to_owned()));
            };
            parts.push(TemplatePart::Variable(name.trim().to_owned()));
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(TemplatePart::Literal(rest.to_owned()));
        }
        Ok(Self(parts))
    }

    /// Whether it has no placeholders.
    pub fn is_literal(&self) -> bool {
        self.variables().next().is_none()
    }

    /// The first variable in it that is not in `declared`.
    pub fn undeclared(&self, declared: &BTreeMap<String, Declaration>) -> Option<String> {
        self.variables().find(|name| !declared.contains_key(*name)).map(str::to_owned)
    }

    /// The names of the variables in it.
    fn variables(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|part| match part {
            TemplatePart::Literal(_) => None,
            TemplatePart::Variable(name) => Some(name.as_str()),
        })
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|part| match part {
            TemplatePart::Literal(literal) => f.write_str(literal),
            TemplatePart::Variable(name) => write!(f, "{{{{ {name} }}}}"),
        })
    }
}

/// A variable as the manifest declares it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Declaration {
    /// The default value; `None` if the variable is required.
    pub default: Option<String>,
}

/// The values of an application's variables.
///
/// Some of them are secrets, so this type has no `Debug`.
#[derive(Default)]
pub struct Variables(BTreeMap<String, String>);

impl Variables {
    /// Finds the value of each declared variable.
    ///
    /// `given` holds the values from the command line; `environment` is [`std::env::var`], or a fake in tests.
    pub fn resolve(
        declared: &BTreeMap<String, Declaration>,
        given: &BTreeMap<String, String>,
        environment: impl Fn(&str) -> Result<String, VarError>,
    ) -> Result<Self, VariableError> {
        if let Some(name) = given.keys().find(|name| !declared.contains_key(*name)) {
            return Err(VariableError::Undeclared(name.clone()));
        }
        let mut values = BTreeMap::new();
        let mut missing = Vec::new();
        for (name, declaration) in declared {
            let from_environment = match environment(&environment_name(name)) {
                Ok(value) => Some(value),
                Err(VarError::NotPresent) => None,
                Err(VarError::NotUnicode(_)) => return Err(VariableError::NotText(environment_name(name))),
            };
            match given.get(name).cloned().or(from_environment).or_else(|| declaration.default.clone()) {
                Some(value) => _ = values.insert(name.clone(), value),
                None => missing.push(name.clone()),
            }
        }
        if missing.is_empty() { Ok(Self(values)) } else { Err(VariableError::Missing(missing)) }
    }

    /// The default values of the variables that have one.
    pub fn defaults(declared: &BTreeMap<String, Declaration>) -> Self {
        let default =
            |(name, declaration): (&String, &Declaration)| Some((name.clone(), declaration.default.clone()?));
        Self(declared.iter().filter_map(default).collect())
    }

    /// Replaces the placeholders of a template by values.
    pub fn expand(&self, template: &Template) -> Result<String, VariableError> {
        let mut text = String::new();
        for part in &template.0 {
            match part {
                TemplatePart::Literal(literal) => text.push_str(literal),
                TemplatePart::Variable(name) => {
                    let value = self.0.get(name).ok_or_else(|| VariableError::Undeclared(name.clone()))?;
                    text.push_str(value);
                }
            }
        }
        Ok(text)
    }
}

#[cfg(test)]
#[path = "variables_tests.rs"]
mod tests;
