//! Reads `spin.toml`.
//!
//! Every field is used, known to make no difference here, or refused by name: an application
//! that Spin would run differently must not start.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::routes::{RouteError, Router};
use crate::variables::{Declaration, Template, VariableError, check_name};

mod section;

pub use section::FieldError;
use section::Section;

/// A manifest that can't be run.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct ManifestError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    #[source]
    pub problem: Problem,
}

/// What is wrong with a manifest.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The file can't be read.
    #[error("can't be read ({0}). Name the manifest with --from")]
    Read(#[from] std::io::Error),
    /// The file isn't TOML.
    #[error("is not TOML:\n{0}")]
    Toml(#[from] toml::de::Error),
    /// A field.
    #[error("{0}")]
    Field(#[from] FieldError),
    /// A variable's name or a template, and where it is.
    #[error("{field}: {problem}")]
    Variable {
        /// The field's path.
        field: String,
        /// What is wrong.
        problem: VariableError,
    },
    /// A route.
    #[error("trigger.http: {0}")]
    Route(#[from] RouteError),
    /// A trigger leads to a component that isn't there.
    #[error("trigger.http: the component '{0}' isn't there. Add [component.{0}]")]
    NoSuchComponent(String),
    /// Nothing to serve.
    #[error("has no [[trigger.http]]. Add one with a route and a component")]
    NoTriggers,
}

/// An application.
#[derive(Debug)]
pub struct Manifest {
    /// `application.name`.
    pub name: String,
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
    /// What `spin:variables` answers.
    pub variables: BTreeMap<String, Template>,
    /// The guest's environment.
    pub environment: BTreeMap<String, String>,
    /// Where it may connect to.
    pub allowed_outbound_hosts: Vec<Template>,
}

impl Manifest {
    /// Reads a manifest; `path` may be the directory that holds `spin.toml`.
    pub fn load(path: &Path) -> Result<Self, ManifestError> {
        let path = if path.is_dir() { path.join("spin.toml") } else { path.to_owned() };
        let directory = path.parent().unwrap_or(Path::new("")).to_owned();
        let read = || Self::parse(&std::fs::read_to_string(&path)?, &directory);
        read().map_err(|problem| ManifestError { path: path.clone(), problem })
    }

    /// Reads a manifest's text; sources are relative to `directory`.
    pub fn parse(text: &str, directory: &Path) -> Result<Self, Problem> {
        let mut root = Section::new("", text.parse()?);
        match root.integer("spin_manifest_version")? {
            Some(2) => {}
            Some(other) => {
                let message = format!("is {other}; this host reads version 2");
                return Err(root.error("spin_manifest_version", message).into());
            }
            None => return Err(root.missing("spin_manifest_version", "= 2").into()),
        }
        let name = read_application(&mut root)?;
        let variables = read_variables(&mut root)?;
        let mut components = read_components(&mut root, &variables, directory)?;
        let router = read_triggers(&mut root)?;
        root.finish()?;
        for (_, component) in router.routes() {
            if !components.contains_key(component) {
                return Err(Problem::NoSuchComponent(component.to_owned()));
            }
        }
        components.retain(|name, _| router.routes().any(|(_, component)| component == name));
        Ok(Self { name, variables, components, router })
    }
}

fn read_application(root: &mut Section) -> Result<String, Problem> {
    let Some(mut section) = root.section("application")? else {
        return Err(root.missing("application", "with a name").into());
    };
    let name = section.string("name")?.ok_or_else(|| section.missing("name", "= \"…\""))?;
    section.ignore(&["version", "description", "authors", "targets", "tool"]);
    section.refuse(&[("trigger", "gives settings to all triggers, which this host doesn't read")])?;
    section.finish()?;
    Ok(name)
}

fn read_variables(root: &mut Section) -> Result<BTreeMap<String, Declaration>, Problem> {
    let mut variables = BTreeMap::new();
    let Some(section) = root.section("variables")? else { return Ok(variables) };
    for (name, mut section) in section.sections()? {
        let field = format!("variables.{name}");
        check_name(&name).map_err(|problem| Problem::Variable { field: field.clone(), problem })?;
        let default = section.string("default")?;
        let required = section.boolean("required")?.unwrap_or(false);
        if default.is_none() && !required {
            let message = "has neither a default nor required = true. Add one of them".to_owned();
            return Err(FieldError { path: field, message }.into());
        }
        // Values are printed nowhere, so that a secret needs no more care.
        section.ignore(&["description", "secret"]);
        section.finish()?;
        variables.insert(name, Declaration { default });
    }
    Ok(variables)
}

/// Fields of a component that ask for something this host hasn't got.
const UNSUPPORTED: &[(&str, &str)] = &[
    ("ai_models", "asks for language models of the host, which this host hasn't got"),
    ("allowed_http_hosts", "is for outbound HTTP, which this host hasn't got"),
    ("dependencies", "composes components, which this host doesn't do"),
    ("dependencies_inherit_configuration", "composes components, which this host doesn't do"),
    ("exclude_files", "mounts files, which this host doesn't do"),
    ("files", "mounts files, which this host doesn't do"),
    ("key_value_stores", "asks for key-value stores, which this host hasn't got"),
    ("sqlite_databases", "asks for SQLite databases, which this host hasn't got"),
];

fn read_components(
    root: &mut Section,
    declared: &BTreeMap<String, Declaration>,
    directory: &Path,
) -> Result<BTreeMap<String, Component>, Problem> {
    let mut components = BTreeMap::new();
    let Some(section) = root.section("component")? else { return Ok(components) };
    for (name, mut section) in section.sections()? {
        section.refuse(UNSUPPORTED)?;
        // What describes or builds the component; profiles are chosen by `spin up --profile`.
        section.ignore(&["description", "build", "tool", "targets", "profile"]);
        let component = Component {
            source: directory.join(read_source(&mut section)?),
            variables: read_templates(&mut section, declared)?,
            environment: section.strings_by_name("environment")?,
            allowed_outbound_hosts: read_hosts(&mut section, declared)?,
        };
        section.finish()?;
        components.insert(name, component);
    }
    Ok(components)
}

fn read_source(section: &mut Section) -> Result<String, FieldError> {
    if section.is_table("source") {
        let message = "comes from a URL or a registry, and this host doesn't download. \
                       Name a local file, or run the application with `spin up`";
        return Err(section.error("source", message.to_owned()));
    }
    section.string("source")?.ok_or_else(|| section.missing("source", "= \"path/to/component.wasm\""))
}

fn read_templates(
    section: &mut Section,
    declared: &BTreeMap<String, Declaration>,
) -> Result<BTreeMap<String, Template>, Problem> {
    let mut templates = BTreeMap::new();
    for (name, text) in section.strings_by_name("variables")? {
        let field = section.path_of(&format!("variables.{name}"));
        check_name(&name)
            .and_then(|()| read_template(&text, declared))
            .map(|template| templates.insert(name, template))
            .map_err(|problem| Problem::Variable { field, problem })?;
    }
    Ok(templates)
}

fn read_hosts(
    section: &mut Section,
    declared: &BTreeMap<String, Declaration>,
) -> Result<Vec<Template>, Problem> {
    let field = section.path_of("allowed_outbound_hosts");
    let read = |text: String| {
        read_template(&text, declared).map_err(|problem| Problem::Variable { field: field.clone(), problem })
    };
    section.strings("allowed_outbound_hosts")?.into_iter().map(read).collect()
}

fn read_template(text: &str, declared: &BTreeMap<String, Declaration>) -> Result<Template, VariableError> {
    let template = Template::parse(text)?;
    let undeclared = template.variables().find(|name| !declared.contains_key(*name)).map(str::to_owned);
    match undeclared {
        Some(name) => Err(VariableError::Undeclared(name)),
        None => Ok(template),
    }
}

fn read_triggers(root: &mut Section) -> Result<Router, Problem> {
    let mut router = Router::default();
    let Some(mut section) = root.section("trigger")? else { return Err(Problem::NoTriggers) };
    for mut trigger in section.array_of_sections("http")? {
        trigger.ignore(&["id"]);
        trigger.refuse(&[
            ("components", "chains components, which this host doesn't do"),
            ("dependencies", "composes components, which this host doesn't do"),
            ("static_response", "answers without a component, which this host doesn't do"),
        ])?;
        if trigger.is_table("route") {
            let message = "is private; this host serves public routes. Take the trigger out".to_owned();
            return Err(trigger.error("route", message).into());
        }
        if let Some(mut executor) = trigger.section("executor")? {
            let kind = executor.string("type")?.unwrap_or_default();
            if !matches!(kind.as_str(), "http" | "spin") {
                let message = format!("is '{kind}'; this host runs \"http\" only");
                return Err(executor.error("type", message).into());
            }
            executor.finish()?;
        }
        let route = trigger.string("route")?.ok_or_else(|| trigger.missing("route", "= \"/...\""))?;
        if trigger.is_table("component") {
            let message = "holds a whole component. Move it to [component.NAME] and name it here".to_owned();
            return Err(trigger.error("component", message).into());
        }
        let component =
            trigger.string("component")?.ok_or_else(|| trigger.missing("component", "= \"NAME\""))?;
        trigger.finish()?;
        router.add(&route, &component)?;
    }
    if let Some(kind) = section.names().next() {
        let message = "is not a trigger of this host, which has http only. \
                       Take it out, or run the application with `spin up`";
        return Err(section.error(kind, message.to_owned()).into());
    }
    if router.routes().next().is_none() {
        return Err(Problem::NoTriggers);
    }
    Ok(router)
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
