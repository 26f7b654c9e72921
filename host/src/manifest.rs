//! Reads `spin.toml`.
//!
//! A manifest that Spin refuses is refused. One that Spin runs but this host can't is refused by the name of the
//! feature. All other settings are used or make no difference here: an application that Spin would run
//! differently must not start. `tests/manifests.rs` compares the rules with the real Spin.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Value;

use crate::allowed_hosts::{AllowedHostError, AllowedHosts};
use crate::ids::{KebabId, LowerSnakeId};
use crate::routes::{RouteError, Router};
use crate::variables::{Declaration, Template, VariableError};

#[expect(dead_code, reason = "fields that this host does not use are parsed to check their types")]
mod schema;

use schema::{
    AppManifest, ComponentSection, ComponentSpec, Executor, HttpSettings, HttpTrigger, Route, Source,
    Trigger, VersionProbe,
};

/// Why a manifest can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct ManifestError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong.
    #[source]
    pub problem: Box<ManifestProblem>,
}

/// What is wrong with a manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestProblem {
    /// The file can't be read.
    #[error("can't be read ({0}). Name the manifest with --from")]
    Read(#[from] std::io::Error),
    /// The file is not TOML, or does not follow the schema of a manifest.
    #[error("is not a manifest:\n{0}")]
    Toml(#[from] toml::de::Error),
    /// A section does not follow the schema.
    #[error("'{path}': {problem}")]
    Section {
        /// Where it is: `trigger.http[0]`.
        path: String,
        /// What is wrong.
        problem: toml::de::Error,
    },
    /// The manifest has another version of the format.
    #[error("spin_manifest_version is {0}. Write spin_manifest_version = 2")]
    Version(String),
    /// A field has a wrong value.
    #[error("'{path}' {message}")]
    Field {
        /// Where it is: `trigger.http[0].route`.
        path: String,
        /// What is wrong with it, and what to do.
        message: &'static str,
    },
    /// A feature that Spin has and this host lacks.
    #[error("'{path}' {reason}. Remove it, or run the application with `spin up`")]
    Unsupported {
        /// Where it is: `component.function.files`.
        path: String,
        /// What it asks for, as the rest of a sentence.
        reason: &'static str,
    },
    /// A template is wrong.
    #[error("'{path}': {problem}")]
    Variable {
        /// The field's path.
        path: String,
        /// What is wrong.
        problem: VariableError,
    },
    /// An entry of `allowed_outbound_hosts` is wrong.
    #[error("component.{component}: {problem}")]
    AllowedHosts {
        /// The component's name.
        component: KebabId,
        /// What is wrong.
        problem: AllowedHostError,
    },
    /// A route can't be used.
    #[error("trigger.http: {0}")]
    Route(#[from] RouteError),
    /// A trigger names a component that does not exist.
    #[error("trigger.http: there is no component '{0}'. Add [component.{0}]")]
    NoSuchComponent(KebabId),
    /// There is nothing to serve.
    #[error("has no [[trigger.http]]. Add one with a route and a component")]
    NoTriggers,
}

impl ManifestProblem {
    fn field(path: impl Into<String>, message: &'static str) -> Self {
        Self::Field { path: path.into(), message }
    }

    fn unsupported(path: impl Into<String>, reason: &'static str) -> Self {
        Self::Unsupported { path: path.into(), reason }
    }

    /// Whether Spin would run the application.
    pub fn is_unsupported(&self) -> bool {
        match self {
            Self::Unsupported { .. } => true,
            Self::AllowedHosts { problem, .. } => problem.is_unsupported(),
            Self::Route(problem) => problem.is_unsupported(),
            _ => false,
        }
    }
}

/// An application.
#[derive(Debug)]
pub struct Manifest {
    /// `application.name`.
    pub name: String,
    /// `application.version`; may be empty.
    pub version: String,
    /// `[variables]`.
    pub variables: BTreeMap<String, Declaration>,
    /// The components that have a route, by name.
    pub components: BTreeMap<String, Component>,
    /// `[[trigger.http]]`.
    pub router: Router,
}

/// A component.
#[derive(Debug)]
pub struct Component {
    /// The WebAssembly file.
    pub source: PathBuf,
    /// The variables that `spin:variables` returns.
    pub variables: BTreeMap<String, Template>,
    /// The environment variables of the guest.
    pub environment: BTreeMap<String, String>,
    /// The addresses that it may connect to.
    pub allowed_outbound_hosts: Vec<Template>,
}

impl Manifest {
    /// Reads a manifest. `path` is the file, or the directory that holds `spin.toml`.
    pub fn load(path: &Path) -> Result<Self, ManifestError> {
        let path = if path.is_dir() { path.join("spin.toml") } else { path.to_owned() };
        let directory = path.parent().unwrap_or(Path::new("")).to_owned();
        let read = || Self::parse(&std::fs::read_to_string(&path)?, &directory);
        read().map_err(|problem| ManifestError { path: path.clone(), problem: problem.into() })
    }

    /// Parses the text of a manifest; component sources are relative to `directory`.
    pub fn parse(text: &str, directory: &Path) -> Result<Self, ManifestProblem> {
        match toml::from_str::<VersionProbe>(text)?.spin_manifest_version {
            Value::Integer(2) => {}
            Value::String(version) if version == "1" => {
                let reason = "is \"1\", and this host reads version 2";
                return Err(ManifestProblem::unsupported("spin_manifest_version", reason));
            }
            Value::Integer(other) => return Err(ManifestProblem::Version(other.to_string())),
            other => return Err(ManifestProblem::Version(format!("a {}", other.type_str()))),
        }
        let manifest: AppManifest = toml::from_str(text)?;
        check_settings(manifest.application.triggers)?;
        let variables = read_variables(manifest.variables)?;
        let mut components = BTreeMap::new();
        for (name, section) in manifest.components {
            let component = read_component(&name, section, &variables, directory)?;
            components.insert(name.into(), component);
        }
        let router = read_triggers(manifest.triggers, &components)?;
        components.retain(|name, _| router.routes().any(|(_, component)| component == name));
        let (name, version) = (manifest.application.name, manifest.application.version);
        Ok(Self { name, version, variables, components, router })
    }
}

/// Checks `application.trigger`; settings of other kinds of triggers make no difference to HTTP.
fn check_settings(mut settings: BTreeMap<String, toml::Table>) -> Result<(), ManifestProblem> {
    let Some(http) = settings.remove("http") else { return Ok(()) };
    let section = |problem| ManifestProblem::Section { path: "application.trigger.http".to_owned(), problem };
    match HttpSettings::deserialize(Value::Table(http)).map_err(section)?.base.as_deref() {
        None | Some("/") => Ok(()),
        Some(_) => {
            let message = "is no longer read by Spin. Write it in front of each trigger's route";
            Err(ManifestProblem::field("application.trigger.http.base", message))
        }
    }
}

fn read_variables(
    declared: BTreeMap<LowerSnakeId, schema::Variable>,
) -> Result<BTreeMap<String, Declaration>, ManifestProblem> {
    let mut variables = BTreeMap::new();
    for (name, variable) in declared {
        let path = format!("variables.{name}");
        match (variable.required, &variable.default) {
            (true, Some(_)) => {
                return Err(ManifestProblem::field(
                    path,
                    "has a default and required = true. Remove one of them",
                ));
            }
            (false, None) => {
                return Err(ManifestProblem::field(
                    path,
                    "has neither a default nor required = true. Add one",
                ));
            }
            _ => {}
        }
        variables.insert(name.into(), Declaration { default: variable.default });
    }
    Ok(variables)
}

fn read_component(
    name: &KebabId,
    section: ComponentSection,
    declared: &BTreeMap<String, Declaration>,
    directory: &Path,
) -> Result<Component, ManifestProblem> {
    let path = |field: &str| format!("component.{name}.{field}");
    check_support(&section, path)?;
    let source = match section.source {
        Source::Local(source) => source,
        Source::Remote { digest, .. } if !digest.starts_with("sha256:") => {
            return Err(ManifestProblem::field(
                path("source.digest"),
                "does not begin with sha256:. Correct it",
            ));
        }
        Source::Remote { .. } | Source::Registry { .. } => {
            let reason = "comes from a URL or a registry, and this host doesn't download";
            return Err(ManifestProblem::unsupported(path("source"), reason));
        }
    };
    let mut variables = BTreeMap::new();
    for (variable, text) in section.variables {
        let read = || {
            let template = Template::parse(&text)?;
            template.undeclared(declared).map_or(Ok(template), |name| Err(VariableError::Undeclared(name)))
        };
        let template = read().map_err(|problem| ManifestProblem::Variable {
            path: path(&format!("variables.{variable}")),
            problem,
        })?;
        variables.insert(variable.into(), template);
    }
    let allowed_outbound_hosts = AllowedHosts::check(&section.allowed_outbound_hosts, declared)
        .map_err(|problem| ManifestProblem::AllowedHosts { component: name.clone(), problem })?;
    Ok(Component {
        source: directory.join(source),
        variables,
        environment: section.environment,
        allowed_outbound_hosts,
    })
}

/// Refuses a component that asks for a feature that this host lacks.
fn check_support(section: &ComponentSection, path: impl Fn(&str) -> String) -> Result<(), ManifestProblem> {
    let composes = "composes components, which this host doesn't do";
    let in_profiles = section.profile.values().any(|profile| !profile.dependencies.is_empty());
    for (asked, field, reason) in [
        (!section.files.is_empty(), "files", "mounts files, which this host doesn't do"),
        (!section.exclude_files.is_empty(), "exclude_files", "mounts files, which this host doesn't do"),
        (
            !section.allowed_http_hosts.is_empty(),
            "allowed_http_hosts",
            "is for outbound HTTP, which this host lacks",
        ),
        (
            !section.key_value_stores.is_empty(),
            "key_value_stores",
            "asks for key-value stores, which this host lacks",
        ),
        (
            !section.sqlite_databases.is_empty(),
            "sqlite_databases",
            "asks for SQLite databases, which this host lacks",
        ),
        (!section.ai_models.is_empty(), "ai_models", "asks for language models, which this host lacks"),
        (!section.dependencies.is_empty(), "dependencies", composes),
        (
            section.dependencies_inherit_configuration == Some(true),
            "dependencies_inherit_configuration",
            composes,
        ),
        (in_profiles, "profile", composes),
    ] {
        if asked {
            return Err(ManifestProblem::unsupported(path(field), reason));
        }
    }
    Ok(())
}

fn read_triggers(
    mut triggers: BTreeMap<String, Vec<Trigger>>,
    components: &BTreeMap<String, Component>,
) -> Result<Router, ManifestProblem> {
    let mut router = Router::default();
    for (index, trigger) in triggers.remove("http").unwrap_or_default().into_iter().enumerate() {
        let (route, component) = read_trigger(&format!("trigger.http[{index}]"), trigger)?;
        if !components.contains_key(component.as_ref()) {
            return Err(ManifestProblem::NoSuchComponent(component));
        }
        router.add(&route, component.as_ref())?;
    }
    if let Some((kind, _)) = triggers.iter().find(|(_, triggers)| !triggers.is_empty()) {
        let reason = "is a kind of trigger that this host lacks; it has only http";
        return Err(ManifestProblem::unsupported(format!("trigger.{kind}"), reason));
    }
    if router.routes().next().is_none() {
        return Err(ManifestProblem::NoTriggers);
    }
    Ok(router)
}

/// Reads the route of a `[[trigger.http]]` and the name of its component.
fn read_trigger(path: &str, trigger: Trigger) -> Result<(String, KebabId), ManifestProblem> {
    let field = |name: &str| format!("{path}.{name}");
    let http = HttpTrigger::deserialize(Value::Table(trigger.config))
        .map_err(|problem| ManifestProblem::Section { path: path.to_owned(), problem })?;
    let route = match http.route {
        Route::Public(route) => Some(route),
        Route::Private(endpoint) if endpoint.private => None,
        Route::Private(_) => {
            return Err(ManifestProblem::field(field("route"), "has private = false. Write a path"));
        }
    };
    let component = match (trigger.component, http.static_response) {
        (Some(component), None) => Some(component),
        (None, Some(_)) => None,
        (Some(_), Some(_)) => {
            return Err(ManifestProblem::field(
                path,
                "has a component and a static_response. Remove one of them",
            ));
        }
        (None, None) => {
            return Err(ManifestProblem::field(path, "has no component. Add component = \"NAME\""));
        }
    };
    if let Some(Executor::Wagi(_)) = http.executor {
        let reason = "runs a component as a command, which this host doesn't do";
        return Err(ManifestProblem::unsupported(field("executor"), reason));
    }
    for (asked, name, reason) in [
        (!trigger.components.is_empty(), "components", "chains components, which this host doesn't do"),
        (!trigger.dependencies.is_empty(), "dependencies", "composes components, which this host doesn't do"),
    ] {
        if asked {
            return Err(ManifestProblem::unsupported(field(name), reason));
        }
    }
    let component = match component {
        Some(ComponentSpec::Reference(component)) => component,
        Some(ComponentSpec::Inline) => {
            let reason = "defines a component inline, which this host doesn't read";
            return Err(ManifestProblem::unsupported(field("component"), reason));
        }
        None => {
            let reason = "answers without a component, which this host doesn't do";
            return Err(ManifestProblem::unsupported(field("static_response"), reason));
        }
    };
    match route {
        Some(route) => Ok((route, component)),
        None => Err(ManifestProblem::unsupported(
            field("route"),
            "is private, and this host serves public routes",
        )),
    }
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
