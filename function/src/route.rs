//! Which endpoint a request is for.

use emberline_shared::error::{ApiError, ErrorCode};
use http::Method;

/// An endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// `POST /v1/chat/completions`
    Chat,
    /// `POST /v1/responses`
    Responses,
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
        let (route, allow) = match path {
            "/v1/chat/completions" => (Self::Chat, POST),
            "/v1/responses" => (Self::Responses, POST),
            "/v1/completions" => (Self::Completions, POST),
            "/v1/embeddings" => (Self::Embeddings, POST),
            "/tokenize" => (Self::Tokenize, POST),
            "/detokenize" => (Self::Detokenize, POST),
            "/openapi.json" => (Self::OpenApi, GET),
            "/v1/models" => (Self::Models, GET),
            "/health" => (Self::Health, GET),
            "/ready" => (Self::Ready, GET),
            _ => Self::with_id(path).ok_or(RouteError::NotFound)?,
        };
        if allow.split(", ").any(|allowed| allowed == method.as_str()) {
            Ok(route)
        } else {
            Err(RouteError::MethodNotAllowed(allow))
        }
    }

    /// The endpoint at a path that names a thing.
    fn with_id(path: &str) -> Option<(Self, &'static str)> {
        let decode = |id: &str| percent_decode(id).filter(|id| !id.is_empty());
        if let Some(id) = path.strip_prefix("/v1/models/") {
            return Some((Self::Model(decode(id)?), GET));
        }
        let id = path.strip_prefix("/v1/responses/")?;
        match id.split_once('/') {
            None => Some((Self::Response(decode(id)?), GET_DELETE)),
            Some((id, "cancel")) => Some((Self::CancelResponse(decode(id)?), POST)),
            Some(_) => None,
        }
    }

    /// Whether the endpoint is for holders of a key only.
    pub fn needs_key(&self) -> bool {
        !matches!(self, Self::Health | Self::Ready | Self::OpenApi)
    }
}

impl RouteError {
    /// The error as the client will see it.
    pub fn into_api(self, method: &Method, path: &str) -> ApiError {
        match self {
            Self::NotFound => {
                let path: String = path.chars().take(200).collect();
                let message =
                    format!("There is nothing at '{path}'. Chat completions are at '/v1/chat/completions'.");
                ApiError::new(ErrorCode::NotFound, message)
            }
            Self::MethodNotAllowed(allow) => {
                let message = format!("This endpoint does not take {method}. Use {allow}.");
                ApiError::new(ErrorCode::MethodNotAllowed, message)
            }
        }
    }
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
        ] {
            assert_eq!(Route::find(&method, path), Ok(route), "{path}");
        }
    }

    #[test]
    fn other_paths_and_methods_are_told_apart() {
        for path in
            ["/", "/v1", "/v1/chat", "/v1/chat/completions/", "/v1/models/", "/health/", "/v1/models/%zz"]
        {
            assert_eq!(Route::find(&Method::GET, path), Err(RouteError::NotFound), "{path}");
        }
        let wrong = |method, path| Route::find(&method, path).unwrap_err();
        assert_eq!(wrong(Method::GET, "/v1/chat/completions"), RouteError::MethodNotAllowed(POST));
        assert_eq!(wrong(Method::POST, "/v1/models/a"), RouteError::MethodNotAllowed(GET));
        assert_eq!(wrong(Method::DELETE, "/health"), RouteError::MethodNotAllowed(GET));
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
