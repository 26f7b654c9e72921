//! A file's key-value metadata.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use super::GgufError;

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Any unsigned integer.
    Unsigned(u64),
    /// Any signed integer.
    Signed(i64),
    /// Either width of float.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// Text.
    String(String),
    /// Values of one type.
    Array(Array),
}

/// An array of values of one type, stored compactly.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // the element type says it
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    Bool(Vec<bool>),
    String(Vec<String>),
}

impl Value {
    fn describe(&self) -> &'static str {
        match self {
            Self::Unsigned(_) => "an unsigned integer",
            Self::Signed(_) => "a signed integer",
            Self::Float(_) => "a float",
            Self::Bool(_) => "a boolean",
            Self::String(_) => "a string",
            Self::Array(_) => "an array",
        }
    }
}

/// A file's key-value metadata; the getters' errors name the file and the key.
#[derive(Debug, Clone)]
pub struct Metadata {
    path: Arc<Path>,
    values: HashMap<String, Value>,
}

/// A pair of getters for one type: one for keys that must be there, one for those that may.
macro_rules! getters {
    ($get:ident, $opt:ident -> $type:ty, $expected:literal, $value:ident => $convert:expr) => {
        #[doc = concat!("The value of `key`, ", $expected, ".")]
        pub fn $get(&self, key: &str) -> Result<$type, GgufError> {
            self.$opt(key)?.ok_or_else(|| self.missing(key))
        }

        #[doc = concat!("The value of `key`, ", $expected, "; `None` if there is no such key.")]
        pub fn $opt(&self, key: &str) -> Result<Option<$type>, GgufError> {
            let Some($value) = self.values.get(key) else { return Ok(None) };
            match $convert {
                Some(converted) => Ok(Some(converted)),
                None => Err(self.wrong_type(key, $expected, $value)),
            }
        }
    };
}

impl Metadata {
    pub(super) fn new(path: Arc<Path>, values: HashMap<String, Value>) -> Self {
        Self { path, values }
    }

    /// The value of `key`, whatever its type.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    getters!(get_str, opt_str -> &str, "a string", value => match value {
        Value::String(text) => Some(text.as_str()),
        _ => None,
    });

    getters!(get_u32, opt_u32 -> u32, "an integer from 0 to 4294967295", value => match *value {
        Value::Unsigned(number) => u32::try_from(number).ok(),
        Value::Signed(number) => u32::try_from(number).ok(),
        _ => None,
    });

    getters!(get_f32, opt_f32 -> f32, "a float", value => match *value {
        Value::Float(number) => Some(number as f32),
        _ => None,
    });

    getters!(get_bool, opt_bool -> bool, "a boolean", value => match *value {
        Value::Bool(truth) => Some(truth),
        _ => None,
    });

    getters!(get_str_array, opt_str_array -> &[String], "an array of strings", value => match value {
        Value::Array(Array::String(items)) => Some(items.as_slice()),
        _ => None,
    });

    getters!(get_f32_array, opt_f32_array -> &[f32], "an array of 32-bit floats", value => match value {
        Value::Array(Array::F32(items)) => Some(items.as_slice()),
        _ => None,
    });

    getters!(get_i32_array, opt_i32_array -> &[i32], "an array of 32-bit integers", value => match value {
        Value::Array(Array::I32(items)) => Some(items.as_slice()),
        _ => None,
    });

    fn missing(&self, key: &str) -> GgufError {
        GgufError::MissingKey { path: self.path.to_path_buf(), key: key.to_owned() }
    }

    fn wrong_type(&self, key: &str, expected: &'static str, value: &Value) -> GgufError {
        GgufError::WrongType {
            path: self.path.to_path_buf(),
            key: key.to_owned(),
            expected,
            found: value.describe(),
        }
    }
}
