//! Schemas of request bodies. One declaration both documents a body and validates it.
//!
//! A body is a struct that derives `Deserialize` and [`JsonSchema`]. `/openapi.json` contains its schema, and
//! [`BodySchema::read`] validates every body against the same schema before it deserialises the struct.
//! Documentation and behaviour therefore agree, and every error names the path of the field. Rules that
//! concern several fields are checked by the code that uses the struct.
//!
//! Conventions: bodies refuse unknown fields (`#[schemars(deny_unknown_fields)]`); an optional field is an
//! `Option`, and `null` counts as absent; integers have both a minimum and a maximum. In addition to JSON
//! Schema's keywords, a schema may contain
//! - `x-unsupported`, on an object: names of known parameters that are not supported;
//! - `x-unsupported-values`: known values that are not supported; on objects that are distinguished by a tag,
//!   values of the tag;
//! - `x-unsupported-others`, together with `enum`: values that are not listed are unsupported, not invalid;
//! - `x-instead`: maps unsupported names and values to what the client should do instead;
//! - `x-hint`: what the client should do about a refused value.

mod json;
mod validate;

use std::marker::PhantomData;
use std::sync::OnceLock;

use schemars::JsonSchema;
use schemars::generate::{SchemaGenerator, SchemaSettings};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use emberline_protocol::error::{ApiError, ErrorCode};

/// Deepest allowed nesting of a request body.
pub const MAX_DEPTH: usize = 64;

/// Parses JSON from a client, nested at most [`MAX_DEPTH`] levels deep.
pub(crate) fn parse_json(text: &[u8]) -> Result<Value, ApiError> {
    json::parse(text, MAX_DEPTH)
}

/// Validates and deserialises bodies of one type. The schema is generated once, on first use.
pub struct BodySchema<T> {
    schema: OnceLock<Value>,
    body: PhantomData<fn() -> T>,
}

impl<T: JsonSchema + DeserializeOwned> BodySchema<T> {
    /// Creates it without generating the schema, for use in a `static`.
    #[allow(clippy::new_without_default)] // a static can't call `default`
    pub const fn new() -> Self {
        Self { schema: OnceLock::new(), body: PhantomData }
    }

    /// Parses, validates and deserialises a body.
    pub fn read(&self, body: &[u8]) -> Result<T, ApiError> {
        let mut value = parse_json(body)?;
        validate::check(self.schema(), &mut value)?;
        serde_json::from_value(value).map_err(|error| {
            let message = format!("The body can't be read: {error}. Compare it with /openapi.json.");
            ApiError::new(ErrorCode::InvalidValue, message)
        })
    }

    /// Adds the schema to `components` and returns a reference to it.
    pub fn describe(&self, components: &mut Components) -> Value {
        components.request::<T>()
    }

    /// The schema against which bodies are validated.
    pub fn schema(&self) -> &Value {
        self.schema.get_or_init(|| {
            SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<T>().to_value()
        })
    }
}

/// Collects the schemas of request bodies and answers for `#/components/schemas` of an OpenAPI document.
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
    /// Adds the schema of a request body and returns a reference to it.
    pub fn request<T: JsonSchema>(&mut self) -> Value {
        self.requests.subschema_for::<T>().to_value()
    }

    /// Adds the schema of an answer and returns a reference to it.
    pub fn answer<T: JsonSchema>(&mut self) -> Value {
        self.answers.subschema_for::<T>().to_value()
    }

    /// The names of the schemas of request bodies, and those of answers.
    pub fn names(&self) -> (Vec<String>, Vec<String>) {
        let names = |generator: &SchemaGenerator| generator.definitions().keys().cloned().collect();
        (names(&self.requests), names(&self.answers))
    }

    /// All schemas that the returned references refer to. Schemas of requests and of answers must not share
    /// names.
    pub fn into_schemas(mut self) -> Map<String, Value> {
        let mut schemas = self.requests.take_definitions(true);
        schemas.extend(self.answers.take_definitions(true));
        schemas
    }
}

#[cfg(test)]
pub(crate) use validate::tests::assert_enforceable;
