//! `POST /v1/chat/completions`. The body is [`ChatRequest`], a whole answer is written by [`ChatAnswer`], and a
//! streamed one by [`stream::ChatStream`].

pub mod stream;

use emberline_api::chat::{ChatAnswer, ChatCompletion, ChatCompletionChunk, ChatRequest};
use emberline_protocol::error::ApiError;
use http::Method;

use self::stream::ChatStream;
use super::endpoint::{Endpoint, Handler, Parameter, RequestBody, WITH_REPEATS};
use crate::generation::{self, Generation, GenerationSpec};
use crate::http::response_headers::ResponseHeaders;
use crate::request::ClientRequest;
use crate::response::usage::UsageCounter;
use crate::response::whole_response::CompletionBuilder;
use crate::response::{Reply, streamed_reply};

pub(super) static CREATE: Endpoint = Endpoint {
    method: Method::POST,
    path: "/v1/chat/completions",
    id: "createChatCompletion",
    summary: "The next message of a conversation",
    parameters: &[Parameter::IdempotencyKey, Parameter::RequestTimeout],
    answer: Some(|components| components.answer::<ChatCompletion<'static>>()),
    event: Some(|components| components.answer::<ChatCompletionChunk<'static>>()),
    errors: WITH_REPEATS,
    handler: Handler::WithBody(
        RequestBody {
            schema: ChatRequest::schema,
            example: r#"{"model": "vllm-primary", "messages": [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": "What is machine learning?"}], "temperature": 0.7, "max_tokens": 500}"#,
        },
        |request, headers, body| Box::pin(create(request, headers, body)),
    ),
};

async fn create(
    client: &ClientRequest,
    headers: &mut ResponseHeaders,
    body: &[u8],
) -> Result<Reply, ApiError> {
    let request = ChatRequest::parse(body)?;
    headers.relax(&request.relaxed);
    let tool_choice = request.generation.tool_choice.clone();
    let spec = GenerationSpec {
        body,
        model: request.model,
        seed: request.seed,
        requests: vec![request.generation],
        response: None,
        paths: request.paths,
        whole: !request.stream,
    };
    let generation = generation::begin(client, headers, spec).await?;
    let Generation { jobs, limits, envelope, acceptances, head_ns } = generation;
    let acceptance = acceptances.first();
    let answer = ChatAnswer {
        envelope,
        metadata: request.metadata,
        tool_format: acceptance.and_then(|acceptance| acceptance.tool_format),
        beside_calls: acceptance.map(|acceptance| acceptance.beside_calls).unwrap_or_default(),
        tool_choice,
        echo: request.echo,
        details: request.details,
    };
    let headers = headers.to_map();
    if !request.stream {
        let builder = CompletionBuilder::new(limits, move |choices, usage| answer.completion(choices, usage));
        return streamed_reply::whole(client.host(), jobs, builder, head_ns, headers).await;
    }
    let usage = UsageCounter::new(request.usage, &acceptances);
    Ok(streamed_reply::stream(client.host(), jobs, ChatStream::new(answer, usage, limits), headers))
}
