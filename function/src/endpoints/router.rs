//! Which endpoint a request is for.
//!
//! Clients differ in what they take for the base of an address: OpenAI's endpoints are found with and
//! without `/v1`, and slashes too many mean nothing.

use std::borrow::Cow;

use emberline_protocol::error::{ApiError, ErrorCode};
use http::Method;

/// An endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// `POST /v1/chat/completions`
    Chat,
    /// `POST /v1/responses`
    Responses,
    /// `POST /v1/responses/input_tokens`
    InputTokens,
    /// `GET` and `DELETE /v1/responses/{id}`
    Response(String),
    /// `POST /v1/responses/{id}/cancel`
    CancelResponse(String),
    /// `POST /v1/completions`
    Completions,
    /// `POST /v1/embeddings`
    Embeddings,
    /// `POST /tokenize`
    Tokenize,
    /// `POST /detokenize`
    Detokenize,
    /// `GET /openapi.json`
    OpenApi,
    /// `GET /v1/models`
    Models,
    /// `GET /v1/models/{id}`; the id, decoded, may contain slashes.
    Model(String),
    /// `GET /health`
    Health,
    /// `GET /ready`
    Ready,
    /// `GET /version`
    Version,
}

/// Why no endpoint answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RouteError {
    /// Nothing is at this path.
    NotFound,
    /// The path takes other methods, named here as the `Allow` header wants them.
    MethodNotAllowed(&'static str),
}

const GET: &str = "GET, HEAD";
const GET_DELETE: &str = "GET, HEAD, DELETE";
const POST: &str = "POST";

impl Route {
    /// Finds the endpoint at `path` (without query).
    pub fn find(method: &Method, path: &str) -> Result<Self, RouteError> {
        let path = &*without_idle_slashes(path);
        let (route, allow) = match path.strip_prefix("/v1").unwrap_or(path) {
            "/chat/completions" => (Self::Chat, POST),
            "/responses" => (Self::Responses, POST),
            "/responses/input_tokens" => (Self::InputTokens, POST),
            // It would be a response's id.
            "/responses/compact" => return Err(RouteError::NotFound),
            "/completions" => (Self::Completions, POST),
            "/embeddings" => (Self::Embeddings, POST),
            "/models" => (Self::Models, GET),
            below => match path {
                "/tokenize" => (Self::Tokenize, POST),
                "/detokenize" => (Self::Detokenize, POST),
                "/openapi.json" => (Self::OpenApi, GET),
                "/health" => (Self::Health, GET),
                "/ready" => (Self::Ready, GET),
                "/version" => (Self::Version, GET),
                _ => Self::with_id(below).ok_or(RouteError::NotFound)?,
            },
        };
        if allow.split(", ").any(|allowed| allowed == method.as_str()) {
            Ok(route)
        } else {
            Err(RouteError::MethodNotAllowed(allow))
        }
    }

    /// The endpoint at a path, without `/v1`, that names a thing.
    fn with_id(path: &str) -> Option<(Self, &'static str)> {
        let decode = |id: &str| percent_decode(id).filter(|id| !id.is_empty());
        if let Some(id) = path.strip_prefix("/models/") {
            return Some((Self::Model(decode(id)?), GET));
        }
        let id = path.strip_prefix("/responses/")?;
        match id.split_once('/') {
            None => Some((Self::Response(decode(id)?), GET_DELETE)),
            Some((id, "cancel")) => Some((Self::CancelResponse(decode(id)?), POST)),
            Some(_) => None,
        }
    }

    /// What an `Idempotency-Key` is counted for, however the path was written.
    pub fn endpoint(&self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
            Self::Responses => "/v1/responses",
            _ => "",
        }
    }

    /// Whether the endpoint is for holders of a key only.
    pub fn needs_key(&self) -> bool {
        !matches!(self, Self::Health | Self::Ready | Self::OpenApi | Self::Version)
    }
}

impl RouteError {
    /// The error as the client will see it.
    pub fn into_api(self, method: &Method, path: &str) -> ApiError {
        match self {
            Self::NotFound => {
                let instead = super::not_found::instead_of(&without_idle_slashes(path));
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
fn without_idle_slashes(path: &str) -> Cow<'_, str> {
    let path = path.trim_end_matches('/');
    if !path.contains("//") {
        return if path.is_empty() { "/".into() } else { path.into() };
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    format!("/{}", parts.join("/")).into()
}

/// Decodes `%XX`; nothing for a broken escape or for bytes that are no text.
fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let mut digit = || u8::try_from(char::from(bytes.next()?).to_digit(16)?).ok();
        let (high, low) = (digit()?, digit()?);
        decoded.push((high << 4) | low);
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_endpoint_is_found() {
        for (method, path, route) in [
            (Method::POST, "/v1/chat/completions", Route::Chat),
            (Method::POST, "/v1/completions", Route::Completions),
            (Method::POST, "/v1/embeddings", Route::Embeddings),
            (Method::POST, "/tokenize", Route::Tokenize),
            (Method::POST, "/detokenize", Route::Detokenize),
            (Method::GET, "/openapi.json", Route::OpenApi),
            (Method::GET, "/v1/models", Route::Models),
            (Method::HEAD, "/v1/models", Route::Models),
            (Method::GET, "/v1/models/a", Route::Model("a".into())),
            (Method::POST, "/v1/responses", Route::Responses),
            (Method::GET, "/v1/responses/resp_1", Route::Response("resp_1".into())),
            (Method::DELETE, "/v1/responses/resp_1", Route::Response("resp_1".into())),
            (Method::POST, "/v1/responses/a/cancel", Route::CancelResponse("a".into())),
            (Method::GET, "/v1/models/Qwen/Qwen2.5", Route::Model("Qwen/Qwen2.5".into())),
            (Method::GET, "/v1/models/Qwen%2FQwen2.5%20x", Route::Model("Qwen/Qwen2.5 x".into())),
            (Method::GET, "/health", Route::Health),
            (Method::GET, "/ready", Route::Ready),
            (Method::HEAD, "/version", Route::Version),
            (Method::POST, "/v1/responses/input_tokens", Route::InputTokens),
            // Without `/v1`, and with slashes too many.
            (Method::GET, "/models", Route::Models),
            (Method::GET, "/models/Qwen/Qwen2.5", Route::Model("Qwen/Qwen2.5".into())),
            (Method::POST, "/chat/completions", Route::Chat),
            (Method::POST, "/completions/", Route::Completions),
            (Method::POST, "/responses", Route::Responses),
            (Method::GET, "/responses/resp_1", Route::Response("resp_1".into())),
            (Method::POST, "/v1/chat/completions/", Route::Chat),
            (Method::POST, "//v1//chat/completions", Route::Chat),
            (Method::GET, "/v1/models//", Route::Models),
            (Method::GET, "/health/", Route::Health),
        ] {
            assert_eq!(Route::find(&method, path), Ok(route), "{path}");
        }
    }

    #[test]
    fn other_paths_and_methods_are_told_apart() {
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
            assert_eq!(Route::find(&Method::GET, path), Err(RouteError::NotFound), "{path}");
        }
        let wrong = |method, path| Route::find(&method, path).unwrap_err();
        assert_eq!(wrong(Method::GET, "/v1/chat/completions"), RouteError::MethodNotAllowed(POST));
        assert_eq!(wrong(Method::POST, "/v1/models/a"), RouteError::MethodNotAllowed(GET));
        assert_eq!(wrong(Method::DELETE, "/health"), RouteError::MethodNotAllowed(GET));
        assert_eq!(wrong(Method::GET, "/v1/responses/input_tokens"), RouteError::MethodNotAllowed(POST));
    }

    #[test]
    fn an_endpoint_is_the_same_however_its_path_is_written() {
        let endpoint = |path| Route::find(&Method::POST, path).unwrap().endpoint();
        assert_eq!(endpoint("/chat/completions/"), endpoint("/v1/chat/completions"));
        assert_ne!(endpoint("/v1/completions"), endpoint("/v1/responses"));
    }

    #[test]
    fn whoever_asks_for_what_is_not_here_is_told_what_is() {
        let told = |path| RouteError::NotFound.into_api(&Method::POST, path);
        let error = told("/v1//messages/");
        assert!(error.code == ErrorCode::NotFound && error.message.contains("Anthropic"), "{error}");
        assert!(error.message.starts_with("There is nothing at '/v1//messages/'."), "{error}");
        assert!(told(&"/x".repeat(1000)).message.len() < 400);
    }

    proptest! {
        #[test]
        fn an_encoded_id_comes_back(id in "\\PC{1,20}") {
            let encoded: String = id.bytes().map(|b| format!("%{b:02x}")).collect();
            prop_assert_eq!(Route::find(&Method::GET, &format!("/v1/models/{encoded}")), Ok(Route::Model(id)));
        }

        #[test]
        fn no_path_panics(path in "/v1/models/[%0-9a-zé]{0,12}") {
            let _ = Route::find(&Method::GET, &path);
        }
    }
}
