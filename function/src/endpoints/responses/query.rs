//! The query of `GET /v1/responses/{id}`.

use emberline_protocol::error::{ApiError, ErrorCode};

/// The query of a request for a response.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Query {
    /// Answer as server-sent events.
    pub stream: bool,
    /// The client has all events up to this sequence number; with `stream` only.
    pub starting_after: Option<u64>,
}

impl Query {
    /// Reads what follows the question mark.
    pub fn parse(query: Option<&str>) -> Result<Self, ApiError> {
        let mut read = Self::default();
        for (name, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            let (name, value) = (&*name, &*value);
            match name {
                "stream" => read.stream = boolean(name, value)?,
                "starting_after" => read.starting_after = Some(number(name, value)?),
                "include_obfuscation" if !boolean(name, value)? => {}
                "include_obfuscation" | "include" | "include[]" => {
                    let message = format!("'{name}' is not supported here. Leave it out.");
                    return Err(ApiError::field(ErrorCode::UnsupportedParameter, name, message));
                }
                _ => {
                    let name: String = name.chars().take(64).collect();
                    let message = format!("'{name}' is not a parameter of this endpoint. Leave it out.");
                    return Err(ApiError::field(ErrorCode::UnknownParameter, name, message));
                }
            }
        }
        if read.starting_after.is_some() && !read.stream {
            let message = "'starting_after' needs 'stream=true'. Add that, or leave it out.";
            return Err(ApiError::field(ErrorCode::InvalidValue, "starting_after", message));
        }
        Ok(read)
    }
}

fn boolean(name: &str, value: &str) -> Result<bool, ApiError> {
    match value {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(invalid(name, "true or false")),
    }
}

fn number(name: &str, value: &str) -> Result<u64, ApiError> {
    value.parse().map_err(|_| invalid(name, "the sequence_number of an event, 0 or more"))
}

fn invalid(name: &str, wanted: &str) -> ApiError {
    ApiError::field(ErrorCode::InvalidValue, name, format!("'{name}' must be {wanted}."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_may_start_anywhere() {
        for none in [None, Some(""), Some("&"), Some("stream=false"), Some("include_obfuscation=false")] {
            assert_eq!(Query::parse(none), Ok(Query::default()));
        }
        let query = Query::parse(Some("stream=true&starting_after=17"));
        assert_eq!(query, Ok(Query { stream: true, starting_after: Some(17) }));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (query, code, param) in [
            ("stream=1", ErrorCode::InvalidValue, "stream"),
            ("stream", ErrorCode::InvalidValue, "stream"),
            ("stream=true&starting_after=-1", ErrorCode::InvalidValue, "starting_after"),
            ("starting_after=1", ErrorCode::InvalidValue, "starting_after"),
            ("include_obfuscation=true", ErrorCode::UnsupportedParameter, "include_obfuscation"),
            ("include[]=x", ErrorCode::UnsupportedParameter, "include[]"),
            ("include%5B%5D=x", ErrorCode::UnsupportedParameter, "include[]"),
            ("streaming=true", ErrorCode::UnknownParameter, "streaming"),
        ] {
            let error = Query::parse(Some(query)).unwrap_err();
            assert_eq!((error.code, error.param.as_deref()), (code, Some(param)), "{query}");
        }
    }
}
