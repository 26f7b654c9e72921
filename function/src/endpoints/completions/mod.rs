//! `POST /v1/completions`. The body is [`CompletionRequest`], a whole answer is written by [`CompletionAnswer`],
//! and a streamed one by [`stream::CompletionStream`].

pub mod stream;

use emberline_api::completions::{Completion, CompletionAnswer, CompletionRequest};
use emberline_protocol::error::ApiError;
use emberline_protocol::prompt::PromptScoring;
use http::Method;

use self::stream::CompletionStream;
use super::endpoint::{Endpoint, Handler, Parameter, RequestBody, WITH_REPEATS};
use crate::generation::{self, Generation, GenerationSpec};
use crate::http::response_headers::ResponseHeaders;
use crate::relay::Acceptance;
use crate::request::ClientRequest;
use crate::response::usage::UsageCounter;
use crate::response::whole_response::CompletionBuilder;
use crate::response::{Reply, streamed_reply};

pub(super) static CREATE: Endpoint = Endpoint {
    method: Method::POST,
    path: "/v1/completions",
    id: "createCompletion",
    summary: "Text that continues a prompt",
    parameters: &[Parameter::IdempotencyKey, Parameter::RequestTimeout],
    answer: Some(|components| components.answer::<Completion<'static>>()),
    event: Some(|components| components.answer::<Completion<'static>>()),
    errors: WITH_REPEATS,
    handler: Handler::WithBody(
        RequestBody {
            schema: CompletionRequest::schema,
            example: r#"{"model": "vllm-primary", "prompt": "Once upon a time", "max_tokens": 32}"#,
        },
        |request, headers, body| Box::pin(create(request, headers, body)),
    ),
};

async fn create(
    client: &ClientRequest,
    headers: &mut ResponseHeaders,
    body: &[u8],
) -> Result<Reply, ApiError> {
    let request = CompletionRequest::parse(body)?;
    headers.relax(&request.relaxed);
    let choices_each = request.generations.first().map_or(1, |generation| generation.n);
    let scoring = request.generations.first().and_then(PromptScoring::of);
    let spec = GenerationSpec {
        body,
        model: request.model,
        seed: request.seed,
        requests: request.generations,
        response: None,
        paths: request.paths.clone(),
        whole: !request.stream,
    };
    let generation = generation::begin(client, headers, spec).await?;
    let Generation { jobs, limits, envelope, acceptances, head_ns } = generation;
    // Each worker has checked its own prompt only.
    let tokens = acceptances.iter().map(|acceptance| u64::from(acceptance.prompt_tokens)).sum();
    if let Some(Err(error)) = scoring.map(|scoring| scoring.check(tokens)) {
        jobs.cancel().await;
        return Err(request.paths.error(error));
    }
    let answer = CompletionAnswer { envelope, details: request.details };
    let usage = UsageCounter::new(request.usage, &acceptances);
    let echoes = echoes(acceptances, choices_each);
    let headers = headers.to_map();
    if !request.stream {
        let builder =
            CompletionBuilder::new(limits, move |choices, usage| answer.whole(choices, &echoes, usage));
        return streamed_reply::whole(client.host(), jobs, builder, head_ns, headers).await;
    }
    let writer = CompletionStream::new(answer, usage, limits, echoes);
    Ok(streamed_reply::stream(client.host(), jobs, writer, headers))
}

/// What each choice begins with: its prompt, if that is asked for.
fn echoes(acceptances: Vec<Acceptance>, choices_each: u32) -> Vec<String> {
    let each = usize::try_from(choices_each).unwrap_or(usize::MAX);
    let prompts = acceptances.into_iter().map(|acceptance| acceptance.prompt_text.unwrap_or_default());
    prompts.flat_map(|prompt| std::iter::repeat_n(prompt, each)).collect()
}
