//! Types of parameters for which only one value is accepted. That value has no effect; any other is refused
//! as unsupported.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny};
use serde_json::{Value, json};

/// A boolean that must be `VALUE`.
#[derive(Debug)]
pub(crate) struct Only<const VALUE: bool>;

/// A number that must be `VALUE`.
#[derive(Debug)]
pub(crate) struct OnlyNumber<const VALUE: i64>;

/// A list that must be empty.
#[derive(Debug)]
pub(crate) struct OnlyEmptyList;

/// An object that must be empty.
#[derive(Debug)]
pub(crate) struct OnlyEmptyObject;

/// A parameter that must be absent or null.
#[derive(Debug)]
pub(crate) struct OnlyAbsent;

fn only(schema_type: &str, value: &Value) -> Schema {
    json_schema!({ "type": schema_type, "enum": [value], "x-unsupported-others": true })
}

macro_rules! with_one_value {
    ($(($($generics:tt)*) $name:ty, $schema:expr;)*) => {$(
        impl<$($generics)*> JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                $schema
            }
        }

        impl<'de, $($generics)*> Deserialize<'de> for $name {
            // Validation against the schema has already checked the value.
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                IgnoredAny::deserialize(deserializer).map(|_| Self)
            }
        }
    )*};
}

with_one_value! {
    (const VALUE: bool) Only<VALUE>, only("boolean", &json!(VALUE));
    (const VALUE: i64) OnlyNumber<VALUE>, only("number", &json!(VALUE));
    () OnlyEmptyList, only("array", &json!([]));
    () OnlyEmptyObject, only("object", &json!({}));
    () OnlyAbsent, json_schema!({ "enum": [null], "x-unsupported-others": true });
}
