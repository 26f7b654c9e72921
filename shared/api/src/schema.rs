//! Request bodies: one declaration both describes and reads them.
//!
//! A body is a struct that derives `Deserialize` and [`JsonSchema`]. Its schema goes into
//! `/openapi.json`, and [`BodySchema::read`] holds every body against the same schema before it
//! becomes the struct, so what is documented is what is enforced, and every complaint names its
//! field by path. Rules between fields are for whoever uses the struct.
//!
//! Conventions: bodies are closed (`#[schemars(deny_unknown_fields)]`); what is optional is an
//! `Option`, and `null` counts as absent; integers have both ends of their range. Beside JSON
//! Schema's own keywords there are
//! - `x-unsupported`, on an object: names of parameters that are known and not supported;
//! - `x-unsupported-values`: values that are known and not supported; for objects that are told
//!   apart by a tag, values of the tag;
//! - `x-unsupported-others`, beside `enum`: no other value is supported;
//! - `x-instead`: by such names and values, what to do instead;
//! - `x-hint`: what to do about a value that is refused.

mod json;
mod validate;

use std::marker::PhantomData;
use std::sync::OnceLock;

use schemars::JsonSchema;
use schemars::generate::{SchemaGenerator, SchemaSettings};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use emberline_protocol::error::{ApiError, ErrorCode};

/// Deepest nesting of a request body.
pub const MAX_DEPTH: usize = 64;

/// Reads JSON of a client, nested no deeper than a body may be.
pub(crate) fn parse_json(text: &[u8]) -> Result<Value, ApiError> {
    json::parse(text, MAX_DEPTH)
}

/// How bodies of one type are read. The schema is made once, when the first body comes.
pub struct BodySchema<T> {
    schema: OnceLock<Value>,
    body: PhantomData<fn() -> T>,
}

impl<T: JsonSchema + DeserializeOwned> BodySchema<T> {
    /// For a `static`.
    #[allow(clippy::new_without_default)] // a static can't call `default`
    pub const fn new() -> Self {
        Self { schema: OnceLock::new(), body: PhantomData }
    }

    /// Reads a body.
    pub fn read(&self, body: &[u8]) -> Result<T, ApiError> {
        let mut value = parse_json(body)?;
        validate::check(self.schema(), &mut value)?;
        serde_json::from_value(value).map_err(|error| {
            let message = format!("The body can't be read: {error}. Compare it with /openapi.json.");
            ApiError::new(ErrorCode::InvalidValue, message)
        })
    }

    /// A reference to the schema, for a document that describes the API.
    pub fn describe(&self, components: &mut Components) -> Value {
        components.request::<T>()
    }

    /// The schema that bodies are held against.
    pub fn schema(&self) -> &Value {
        self.schema.get_or_init(|| {
            SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<T>().to_value()
        })
    }
}

/// The schemas of bodies and answers, under `#/components/schemas` of an OpenAPI document.
pub struct Components {
    requests: SchemaGenerator,
    answers: SchemaGenerator,
}

impl Default for Components {
    fn default() -> Self {
        let settings = || {
            SchemaSettings::draft2020_12()
                .with(|settings| settings.definitions_path = "/components/schemas".into())
        };
        Self {
            requests: settings().for_deserialize().into_generator(),
            answers: settings().for_serialize().into_generator(),
        }
    }
}

impl Components {
    /// A reference to what is read.
    pub fn request<T: JsonSchema>(&mut self) -> Value {
        self.requests.subschema_for::<T>().to_value()
    }

    /// A reference to what is answered.
    pub fn answer<T: JsonSchema>(&mut self) -> Value {
        self.answers.subschema_for::<T>().to_value()
    }

    /// The names of what is read and of what is answered.
    pub fn names(&self) -> (Vec<String>, Vec<String>) {
        let names = |generator: &SchemaGenerator| generator.definitions().keys().cloned().collect();
        (names(&self.requests), names(&self.answers))
    }

    /// All that is referred to. No request is called as an answer is.
    pub fn into_schemas(mut self) -> Map<String, Value> {
        let mut schemas = self.requests.take_definitions(true);
        schemas.extend(self.answers.take_definitions(true));
        schemas
    }
}

#[cfg(test)]
pub(crate) use validate::tests::assert_enforceable;
