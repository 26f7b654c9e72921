//! The one shape of failure in HTTP bodies.

use emberline_protocol::error::{ApiError, ErrorCode, ErrorType};
use schemars::JsonSchema;
use serde::Serialize;

/// How every failure is told.
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
    #[serde(rename = "type")]
    error_type: ErrorType,
    /// Path of the field to blame, such as `messages[2].content`.
    param: Option<String>,
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
    /// `{"error":{message,type,param,code}}`, all four always present.
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
