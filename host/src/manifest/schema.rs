//! The schema of `spin.toml`: Spin's own (its `crates/manifest/src/schema/v2.rs` and
//! `crates/http/src/config.rs`), type by type, so that a manifest that Spin refuses does not pass.
//!
//! Fields that this host does not use are declared so that their types are checked.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use toml::{Table, Value};

use crate::ids::{KebabId, LowerSnakeId, SnakeId};

/// A whole `spin.toml` of version 2.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AppManifest {
    spin_manifest_version: Value,
    pub(super) application: AppDetails,
    #[serde(default)]
    pub(super) variables: BTreeMap<LowerSnakeId, Variable>,
    #[serde(default, rename = "trigger")]
    pub(super) triggers: BTreeMap<String, Vec<Trigger>>,
    #[serde(default, rename = "component")]
    pub(super) components: BTreeMap<KebabId, ComponentSection>,
}

/// The version field of a manifest of any version.
#[derive(Deserialize)]
pub(super) struct VersionProbe {
    #[serde(alias = "spin_version")]
    pub(super) spin_manifest_version: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AppDetails {
    pub(super) name: String,
    #[serde(default)]
    pub(super) version: String,
    #[serde(default)]
    description: String,
    #[serde(default)]
    authors: Vec<String>,
    #[serde(default)]
    targets: Vec<TargetEnvironmentRef>,
    #[serde(default, rename = "trigger")]
    pub(super) triggers: BTreeMap<String, Table>,
    #[serde(default)]
    tool: BTreeMap<String, Table>,
}

/// `application.trigger.http`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HttpSettings {
    pub(super) base: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Variable {
    description: Option<String>,
    #[serde(default)]
    pub(super) required: bool,
    pub(super) default: Option<String>,
    // Unused: this host prints no values, secret or not.
    #[serde(default)]
    secret: bool,
}

#[derive(Deserialize)]
pub(super) struct Trigger {
    #[serde(default)]
    id: String,
    pub(super) component: Option<ComponentSpec>,
    #[serde(default)]
    pub(super) components: Table,
    #[serde(default)]
    pub(super) dependencies: Table,
    /// The fields that depend on the kind of trigger.
    #[serde(flatten)]
    pub(super) config: Table,
}

#[derive(Deserialize)]
#[serde(try_from = "Value")]
pub(super) enum ComponentSpec {
    Reference(KebabId),
    Inline,
}

impl TryFrom<Value> for ComponentSpec {
    type Error = toml::de::Error;

    fn try_from(value: Value) -> Result<Self, toml::de::Error> {
        match value {
            Value::String(_) => KebabId::deserialize(value).map(Self::Reference),
            _ => ComponentSection::deserialize(value).map(|_| Self::Inline),
        }
    }
}

/// The fields of a `[[trigger.http]]` besides those of every trigger.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HttpTrigger {
    pub(super) route: Route,
    pub(super) executor: Option<Executor>,
    pub(super) static_response: Option<StaticResponse>,
}

#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Route {
    Public(String),
    Private(PrivateEndpoint),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PrivateEndpoint {
    pub(super) private: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", tag = "type")]
pub(super) enum Executor {
    #[serde(alias = "spin")]
    Http,
    Wagi(Wagi),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wagi {
    entrypoint: Option<String>,
    argv: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct StaticResponse {
    status_code: Option<u16>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    body: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ComponentSection {
    pub(super) source: Source,
    #[serde(default)]
    description: String,
    #[serde(default)]
    pub(super) variables: BTreeMap<LowerSnakeId, String>,
    #[serde(default)]
    pub(super) environment: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) files: Vec<FilesMount>,
    #[serde(default)]
    pub(super) exclude_files: Vec<String>,
    #[serde(default)]
    pub(super) allowed_http_hosts: Vec<String>,
    #[serde(default)]
    pub(super) allowed_outbound_hosts: Vec<String>,
    #[serde(default)]
    pub(super) key_value_stores: Vec<StoreId>,
    #[serde(default)]
    pub(super) sqlite_databases: Vec<StoreId>,
    #[serde(default)]
    pub(super) ai_models: Vec<String>,
    targets: Option<Vec<TargetEnvironmentRef>>,
    build: Option<Build>,
    #[serde(default)]
    tool: BTreeMap<String, Table>,
    pub(super) dependencies_inherit_configuration: Option<bool>,
    #[serde(default)]
    pub(super) dependencies: Table,
    /// Profiles for `spin up --profile`; they make no difference here.
    #[serde(default)]
    pub(super) profile: BTreeMap<String, Profile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, untagged)]
pub(super) enum Source {
    Local(String),
    Remote { url: String, digest: String },
    Registry { registry: Option<String>, package: String, version: String },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, untagged)]
pub(super) enum FilesMount {
    Pattern(String),
    Placement { source: String, destination: String },
}

/// A name whose words are separated by `-` or by `_`.
pub(super) struct StoreId;

impl<'de> Deserialize<'de> for StoreId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let kebab = KebabId::try_from(name.clone()).map(drop);
        kebab.or_else(|_| SnakeId::try_from(name).map(drop)).map_err(serde::de::Error::custom)?;
        Ok(Self)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, untagged)]
enum TargetEnvironmentRef {
    Catalogue(String),
    Http { url: String },
    File { path: String },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Build {
    command: Commands,
    workdir: Option<String>,
    #[serde(default)]
    watch: Vec<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Commands {
    Single(String),
    Multiple(Vec<String>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Profile {
    source: Option<Source>,
    #[serde(default)]
    environment: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) dependencies: Table,
    build: Option<ProfileBuild>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProfileBuild {
    command: Commands,
}
