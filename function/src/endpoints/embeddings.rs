//! `POST /v1/embeddings`, which no model answers yet.

use emberline_api::embeddings;
use emberline_protocol::error::ApiError;
use http::Method;

use super::endpoint::{Endpoint, Handler, RequestBody, WITH_MODEL};
use crate::request::ClientRequest;
use crate::response::Reply;

pub(super) static CREATE: Endpoint = Endpoint {
    method: Method::POST,
    path: "/v1/embeddings",
    id: "createEmbedding",
    summary: "Embeddings of texts; no model makes them yet, so every request is refused",
    parameters: &[],
    answer: None,
    event: None,
    errors: WITH_MODEL,
    handler: Handler::WithBody(
        RequestBody {
            schema: embeddings::schema,
            example: r#"{"model": "vllm-primary", "input": "The food was delicious."}"#,
        },
        |request, _, body| Box::pin(create(request, body)),
    ),
};

async fn create(client: &ClientRequest, body: &[u8]) -> Result<Reply, ApiError> {
    let model = embeddings::parse_model(body)?;
    client.model(&model).await?;
    Err(embeddings::not_an_embedding_model(&model))
}
