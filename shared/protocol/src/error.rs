//! The one form of failure, from a worker's event to the HTTP body.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Why a request failed. It determines HTTP status and error type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)] // the names are the documentation: they are the `code` that a client sees
pub enum ErrorCode {
    InvalidJson,
    MissingField,
    InvalidType,
    InvalidValue,
    UnknownParameter,
    UnsupportedParameter,
    ContextLengthExceeded,
    MissingAuthHeader,
    InvalidApiKey,
    ModelNotAllowed,
    ModelNotFound,
    NotFound,
    MethodNotAllowed,
    IdempotencyKeyReused,
    RequestTooLarge,
    UnsupportedMediaType,
    RateLimitExceeded,
    InternalError,
    WorkerFailed,
    Overloaded,
    NoWorker,
    BusUnavailable,
    Timeout,
}

/// The coarse class that client libraries map to exception types.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, clippy::enum_variant_names)] // the names are OpenAI's
pub enum ErrorType {
    InvalidRequestError,
    AuthenticationError,
    PermissionError,
    RateLimitError,
    ServerError,
}

impl ErrorCode {
    /// The HTTP status of a response with this code.
    pub fn status(self) -> u16 {
        match self {
            Self::InvalidJson
            | Self::MissingField
            | Self::InvalidType
            | Self::InvalidValue
            | Self::UnknownParameter
            | Self::UnsupportedParameter
            | Self::ContextLengthExceeded => 400,
            Self::MissingAuthHeader | Self::InvalidApiKey => 401,
            Self::ModelNotAllowed => 403,
            Self::ModelNotFound | Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::IdempotencyKeyReused => 409,
            Self::RequestTooLarge => 413,
            Self::UnsupportedMediaType => 415,
            Self::RateLimitExceeded => 429,
            Self::InternalError => 500,
            Self::WorkerFailed => 502,
            Self::Overloaded | Self::NoWorker | Self::BusUnavailable => 503,
            Self::Timeout => 504,
        }
    }

    /// The error's class in OpenAI's vocabulary.
    pub fn error_type(self) -> ErrorType {
        match self.status() {
            401 => ErrorType::AuthenticationError,
            403 => ErrorType::PermissionError,
            429 => ErrorType::RateLimitError,
            500.. => ErrorType::ServerError,
            _ => ErrorType::InvalidRequestError,
        }
    }

    /// Seconds after which a client may retry, for conditions that pass by themselves.
    pub fn retry_after_s(self) -> Option<u32> {
        match self {
            Self::Overloaded | Self::BusUnavailable => Some(1),
            Self::NoWorker => Some(5),
            Self::RateLimitExceeded => Some(1),
            _ => None,
        }
    }
}

/// An error as the client sees it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// Determines HTTP status and error type.
    pub code: ErrorCode,
    /// Path of the offending field, such as `messages[2].content`.
    pub param: Option<String>,
    /// What is wrong and what to do about it.
    pub message: String,
}

impl ApiError {
    /// An error that no single field causes.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, param: None, message: message.into() }
    }

    /// An error in the field at `param`.
    pub fn field(code: ErrorCode, param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code, param: Some(param.into()), message: message.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_decides_the_type() {
        assert_eq!(ErrorCode::InvalidApiKey.error_type(), ErrorType::AuthenticationError);
        assert_eq!(ErrorCode::ModelNotAllowed.error_type(), ErrorType::PermissionError);
        assert_eq!(ErrorCode::RateLimitExceeded.error_type(), ErrorType::RateLimitError);
        assert_eq!(ErrorCode::Timeout.error_type(), ErrorType::ServerError);
        assert_eq!(ErrorCode::RequestTooLarge.error_type(), ErrorType::InvalidRequestError);
    }
}
