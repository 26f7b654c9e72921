//! Which endpoint a request is for, by the table of [`super::ENDPOINTS`].
//!
//! Clients differ in what they take for the base of an address: paths that begin with `/v1` are found without it, too,
//! and superfluous slashes mean nothing.

use std::borrow::Cow;

use emberline_protocol::error::{ApiError, ErrorCode};
use http::Method;
use percent_encoding::percent_decode_str;

use super::{ENDPOINTS, Endpoint, not_found};

/// Other servers have an endpoint here. It would be a response's id.
const NOT_AN_ID: &str = "/responses/compact";

/// The endpoint of a request.
pub struct Route {
    /// Its entry in the table.
    pub endpoint: &'static Endpoint,
    /// The decoded `{id}` of its path; empty if it has none.
    pub id: String,
}

/// Why no endpoint answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RouteError {
    /// Nothing is at this path.
    NotFound,
    /// The path takes other methods, as the `Allow` header names them.
    MethodNotAllowed(String),
}

/// Finds the endpoint of `method` at `path` (without query).
pub fn find(method: &Method, path: &str) -> Result<Route, RouteError> {
    let path = &*normalized(path);
    if without_v1(path) == NOT_AN_ID {
        return Err(RouteError::NotFound);
    }
    let exact = |endpoint: &&&Endpoint| matches(endpoint.path, path).is_some_and(|id| id.is_none());
    // `/responses/input_tokens` is not a response's id.
    let is_exact = ENDPOINTS.iter().any(|endpoint| exact(&endpoint));
    let at_path = ENDPOINTS.iter().filter(|endpoint| !is_exact || exact(endpoint));
    let mut allowed = Vec::new();
    for endpoint in at_path {
        let Some(id) = matches(endpoint.path, path) else { continue };
        let id = id.map_or(Some(String::new()), decode).ok_or(RouteError::NotFound)?;
        if endpoint.method == *method || endpoint.method == Method::GET && *method == Method::HEAD {
            return Ok(Route { endpoint, id });
        }
        allowed.push(if endpoint.method == Method::GET { "GET, HEAD" } else { endpoint.method.as_str() });
    }
    Err(if allowed.is_empty() {
        RouteError::NotFound
    } else {
        RouteError::MethodNotAllowed(allowed.join(", "))
    })
}

/// Whether `path` has the form of `pattern`; with the text in place of its `{id}`, if it has one.
fn matches<'a>(pattern: &str, path: &'a str) -> Option<Option<&'a str>> {
    let (pattern, path) = match pattern.strip_prefix("/v1") {
        Some(below) => (below, without_v1(path)),
        None => (pattern, path),
    };
    if let Some(beginning) = pattern.strip_suffix("{id*}") {
        return path.strip_prefix(beginning).map(Some);
    }
    let Some((beginning, end)) = pattern.split_once("{id}") else {
        return (path == pattern).then_some(None);
    };
    let id = path.strip_prefix(beginning)?.strip_suffix(end)?;
    (!id.contains('/')).then_some(Some(id))
}

/// Decodes `%XX`; `None` for an empty id, a broken escape, or bytes that are not UTF-8.
fn decode(id: &str) -> Option<String> {
    let is_escape =
        |rest: &str| rest.as_bytes().iter().take(2).filter(|b| b.is_ascii_hexdigit()).count() == 2;
    if id.is_empty() || !id.split('%').skip(1).all(is_escape) {
        return None;
    }
    percent_decode_str(id).decode_utf8().ok().map(Cow::into_owned)
}

fn without_v1(path: &str) -> &str {
    path.strip_prefix("/v1").unwrap_or(path)
}

impl RouteError {
    /// The error as the client will see it.
    pub fn into_api(self, method: &Method, path: &str) -> ApiError {
        match self {
            Self::NotFound => {
                let instead = not_found::instead_of(&normalized(path));
                let path: String = path.chars().take(200).collect();
                ApiError::new(ErrorCode::NotFound, format!("There is nothing at '{path}'. {instead}"))
            }
            Self::MethodNotAllowed(allow) => {
                let message = format!("This endpoint does not take {method}. Use {allow}.");
                ApiError::new(ErrorCode::MethodNotAllowed, message)
            }
        }
    }
}

/// The path without a slash at its end, and with one where there are several.
fn normalized(path: &str) -> Cow<'_, str> {
    let path = path.trim_end_matches('/');
    if !path.contains("//") {
        return if path.is_empty() { "/".into() } else { path.into() };
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    format!("/{}", parts.join("/")).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn found(method: &Method, path: &str) -> Result<(&'static str, String), RouteError> {
        find(method, path).map(|route| (route.endpoint.id, route.id))
    }

    #[test]
    fn every_endpoint_is_found() {
        for (method, path, endpoint, id) in [
            (Method::POST, "/v1/chat/completions", "createChatCompletion", ""),
            (Method::POST, "/v1/completions", "createCompletion", ""),
            (Method::POST, "/v1/embeddings", "createEmbedding", ""),
            (Method::POST, "/tokenize", "tokenize", ""),
            (Method::POST, "/detokenize", "detokenize", ""),
            (Method::GET, "/openapi.json", "openapi", ""),
            (Method::GET, "/v1/models", "listModels", ""),
            (Method::HEAD, "/v1/models", "listModels", ""),
            (Method::GET, "/v1/models/a", "retrieveModel", "a"),
            (Method::POST, "/v1/responses", "createResponse", ""),
            (Method::GET, "/v1/responses/resp_1", "retrieveResponse", "resp_1"),
            (Method::DELETE, "/v1/responses/resp_1", "deleteResponse", "resp_1"),
            (Method::POST, "/v1/responses/a/cancel", "cancelResponse", "a"),
            (Method::GET, "/v1/models/Qwen/Qwen2.5", "retrieveModel", "Qwen/Qwen2.5"),
            (Method::GET, "/v1/models/Qwen%2FQwen2.5%20x", "retrieveModel", "Qwen/Qwen2.5 x"),
            (Method::GET, "/health", "health", ""),
            (Method::GET, "/ready", "ready", ""),
            (Method::HEAD, "/version", "version", ""),
            (Method::POST, "/v1/responses/input_tokens", "countInputTokens", ""),
            // Without `/v1`, and with slashes too many.
            (Method::GET, "/models", "listModels", ""),
            (Method::GET, "/models/Qwen/Qwen2.5", "retrieveModel", "Qwen/Qwen2.5"),
            (Method::POST, "/chat/completions", "createChatCompletion", ""),
            (Method::POST, "/completions/", "createCompletion", ""),
            (Method::POST, "/responses", "createResponse", ""),
            (Method::GET, "/responses/resp_1", "retrieveResponse", "resp_1"),
            (Method::POST, "/v1/chat/completions/", "createChatCompletion", ""),
            (Method::POST, "//v1//chat/completions", "createChatCompletion", ""),
            (Method::GET, "/v1/models//", "listModels", ""),
            (Method::GET, "/health/", "health", ""),
        ] {
            assert_eq!(found(&method, path), Ok((endpoint, id.to_owned())), "{path}");
        }
    }

    #[test]
    fn unknown_paths_and_methods_are_refused() {
        for path in [
            "",
            "/",
            "//",
            "/v1",
            "/v1/chat",
            "/v1chat/completions",
            "/v1/health",
            "/v1/models/%zz",
            "/v1/responses/compact",
            "/v1/v1/models",
        ] {
            assert_eq!(found(&Method::GET, path), Err(RouteError::NotFound), "{path}");
        }
        let wrong = |method, path| found(&method, path).unwrap_err();
        let not_allowed = |allow: &str| RouteError::MethodNotAllowed(allow.into());
        assert_eq!(wrong(Method::GET, "/v1/chat/completions"), not_allowed("POST"));
        assert_eq!(wrong(Method::POST, "/v1/models/a"), not_allowed("GET, HEAD"));
        assert_eq!(wrong(Method::DELETE, "/health"), not_allowed("GET, HEAD"));
        assert_eq!(wrong(Method::GET, "/v1/responses/input_tokens"), not_allowed("POST"));
        assert_eq!(wrong(Method::POST, "/v1/responses/resp_1"), not_allowed("GET, HEAD, DELETE"));
    }

    #[test]
    fn an_endpoint_is_the_same_however_its_path_is_written() {
        let endpoint = |path| find(&Method::POST, path).ok().unwrap().endpoint.path;
        assert_eq!(endpoint("/chat/completions/"), endpoint("/v1/chat/completions"));
        assert_ne!(endpoint("/v1/completions"), endpoint("/v1/responses"));
    }

    #[test]
    fn an_unknown_path_gets_a_hint() {
        let answer = |path| RouteError::NotFound.into_api(&Method::POST, path);
        let error = answer("/v1//messages/");
        assert!(error.code == ErrorCode::NotFound && error.message.contains("Anthropic"), "{error}");
        assert!(error.message.starts_with("There is nothing at '/v1//messages/'."), "{error}");
        assert!(answer(&"/x".repeat(1000)).message.len() < 400);
    }

    proptest! {
        #[test]
        fn an_encoded_id_comes_back(id in "\\PC{1,20}") {
            let encoded: String = id.bytes().map(|b| format!("%{b:02x}")).collect();
            prop_assert_eq!(found(&Method::GET, &format!("/v1/models/{encoded}")), Ok(("retrieveModel", id)));
        }

        #[test]
        fn no_path_panics(path in "/v1/models/[%0-9a-zé]{0,12}") {
            let _ = find(&Method::GET, &path);
        }
    }
}
