//! `POST /v1/chat/completions`.

use emberline_api::chat::{ChatAnswer, ChatRequest};
use emberline_protocol::error::ApiError;

use super::answer;
use super::context::{Answer, Body, Context};
use super::generation::{self, Generation, Wish};
use crate::endpoints::chat::stream::ChatFrames;
use crate::response::usage::Count;
use crate::response::whole_response::Completion;

pub(super) async fn serve(context: &Context, body: &mut Body) -> Result<Answer, ApiError> {
    let body = context.read_body(body).await?;
    let request = ChatRequest::parse(&body)?;
    context.relax(&request.relaxed);
    let tool_choice = request.generation.tool_choice.clone();
    let wish = Wish {
        body: &body,
        model: request.model,
        seed: request.seed,
        requests: vec![request.generation],
        outline: None,
        paths: request.paths,
    };
    let Generation { jobs, limits, envelope, acceptances, head_ns } =
        generation::begin(context, wish).await?;
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
    if !request.stream {
        let completion = Completion::new(limits, move |choices, usage| answer.completion(choices, usage));
        return answer::whole(jobs, completion, head_ns, &context.headers()).await;
    }
    let count = Count::new(request.usage, &acceptances);
    let frames = ChatFrames::new(answer, count, limits);
    answer::stream(jobs, frames, &context.headers())
}
