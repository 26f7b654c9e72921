//! `POST /v1/completions`.

use emberline_api::completions::{CompletionAnswer, CompletionRequest};
use emberline_protocol::error::ApiError;
use emberline_protocol::prompt::PromptScoring;

use super::answer;
use super::context::{Answer, Body, Context};
use super::generation::{self, Generation, Wish};
use crate::endpoints::completions::stream::CompletionFrames;
use crate::relay::Acceptance;
use crate::response::usage::Count;
use crate::response::whole_response::Completion;

pub(super) async fn serve(context: &Context, body: &mut Body) -> Result<Answer, ApiError> {
    let body = context.read_body(body).await?;
    let request = CompletionRequest::parse(&body)?;
    context.relax(&request.relaxed);
    let each = request.generations.first().map_or(1, |generation| generation.n);
    let scoring = request.generations.first().and_then(PromptScoring::of);
    let wish = Wish {
        body: &body,
        model: request.model,
        seed: request.seed,
        requests: request.generations,
        outline: None,
        paths: request.paths.clone(),
    };
    let Generation { jobs, limits, envelope, acceptances, head_ns } =
        generation::begin(context, wish).await?;
    // Each worker has seen to its own prompt.
    let tokens = acceptances.iter().map(|acceptance| u64::from(acceptance.prompt_tokens)).sum();
    if let Some(Err(error)) = scoring.map(|scoring| scoring.check(tokens)) {
        jobs.cancel().await;
        return Err(request.paths.error(error));
    }
    let answer = CompletionAnswer { envelope, details: request.details };
    let count = Count::new(request.usage, &acceptances);
    let echoes = echoes(acceptances, each);
    if !request.stream {
        let completion = Completion::new(limits, move |choices, usage| answer.whole(choices, &echoes, usage));
        return answer::whole(jobs, completion, head_ns, &context.headers()).await;
    }
    let frames = CompletionFrames::new(answer, count, limits, echoes);
    answer::stream(jobs, frames, &context.headers())
}

/// What each choice begins with: its prompt, if that is asked for.
fn echoes(acceptances: Vec<Acceptance>, each: u32) -> Vec<String> {
    let each = usize::try_from(each).unwrap_or(usize::MAX);
    let prompts = acceptances.into_iter().map(|acceptance| acceptance.prompt_text.unwrap_or_default());
    prompts.flat_map(|prompt| std::iter::repeat_n(prompt, each)).collect()
}
