//! The body of every error answer.

use emberline_protocol::error::{ApiError, ErrorCode, ErrorType};
use schemars::JsonSchema;
use serde::Serialize;

/// The body of an error answer.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Error")]
pub struct ErrorBody {
    error: ErrorDetails,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(inline)]
struct ErrorDetails {
    /// What is wrong and what to do about it.
    message: String,
    /// The category of the error.
    #[serde(rename = "type")]
    error_type: ErrorType,
    /// Path of the field that caused the error, such as `messages[2].content`; null if no field did.
    param: Option<String>,
    /// The kind of the error.
    code: ErrorCode,
}

impl From<&ApiError> for ErrorBody {
    fn from(error: &ApiError) -> Self {
        let ApiError { code, param, message } = error;
        Self {
            error: ErrorDetails {
                message: message.clone(),
                error_type: code.error_type(),
                param: param.clone(),
                code: *code,
            },
        }
    }
}

impl ErrorBody {
    /// Serialises an error as `{"error":{message,type,param,code}}`. All four fields are always present.
    pub fn json(error: &ApiError) -> serde_json::Value {
        serde_json::to_value(Self::from(error)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_always_has_its_four_fields() {
        let body = ErrorBody::json(&ApiError::new(ErrorCode::Overloaded, "busy"));
        assert_eq!(
            body,
            serde_json::json!({"error": {"message": "busy", "type": "server_error", "param": null, "code": "overloaded"}})
        );
        let body = ErrorBody::json(&ApiError::field(ErrorCode::InvalidType, "messages[2].content", "no"));
        assert_eq!(body["error"]["param"], "messages[2].content");
        assert_eq!(body["error"]["type"], "invalid_request_error");
    }
}
