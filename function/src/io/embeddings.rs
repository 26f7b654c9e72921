//! `POST /v1/embeddings`, which no model answers yet.

use emberline_api::embeddings;
use emberline_protocol::error::ApiError;

use super::context::{Answer, Body, Context};

pub(super) async fn serve(context: &Context, body: &mut Body) -> Result<Answer, ApiError> {
    let model = embeddings::parse_model(&context.read_body(body).await?)?;
    context.model(&model).await?;
    Err(embeddings::not_an_embedding_model(&model))
}
