//! Text to tokens and back.

use emberline_protocol::error::ErrorCode;
use emberline_protocol::event::{ErrorEvent, EventKind};
use emberline_protocol::heartbeat::ModelState::Serving;
use emberline_protocol::job::{GenerationRequest, Job, Message, RawPrompt, Role, ToolChoice};
use emberline_protocol::subject;
use emberline_protocol::tokens::{Tokenize, TokensInput, TokensReply, TokensRequest};
use emberline_test_kit::nats::NatsServer;
use serde_json::Map;

use crate::support::{MODEL, Relay, Worker, job_for, within};

pub(crate) const TINY: &str = "tiny";

/// A worker of a tiny model of Qwen 3's family.
pub(crate) fn worker_of_tiny(nats: &NatsServer) -> Worker {
    let model = format!("{TINY}={}/inference/tests/families/qwen3", env!("CARGO_MANIFEST_DIR"));
    let address = nats.address();
    let args = ["--nats", &address, "--backend", "cpu", "--slots", "2", "--model", &model];
    Worker::start_with(&args, emberline_test_kit::nats::WORKER_SEED)
}

/// Asks as the function does.
pub(crate) async fn ask(relay: &Relay, model: &str, request: &TokensRequest) -> TokensReply {
    let payload = serde_json::to_vec(request).unwrap();
    let reply = within("tokens", relay.client.request(subject::tokens(model), payload.into())).await;
    serde_json::from_slice(&reply.unwrap().payload).unwrap()
}

fn tokenize(input: TokensInput, add_special_tokens: bool) -> TokensRequest {
    TokensRequest::Tokenize(Tokenize { input, add_special_tokens, return_token_strs: true })
}

fn tokens_of(reply: TokensReply) -> Vec<u32> {
    match reply {
        TokensReply::Tokenized { tokens, .. } => tokens,
        other => panic!("{other:?}"),
    }
}

fn error_of(reply: TokensReply) -> ErrorEvent {
    match reply {
        TokensReply::Error(error) => error,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn any_worker_of_a_model_turns_text_into_tokens_and_back() {
    let nats = NatsServer::start().await.unwrap();
    let (_first, _second) = (worker_of_tiny(&nats), worker_of_tiny(&nats));
    let relay = Relay::new(&nats).await;
    relay.wait_for_load(&[0, 0]).await;

    let text = "Hello 🙂 <|im_end|>\nthere";
    let reply = ask(&relay, TINY, &tokenize(TokensInput::Text(text.to_owned()), true)).await;
    let TokensReply::Tokenized { tokens, token_strs, max_model_len, .. } = reply else { panic!("{reply:?}") };
    assert_eq!(max_model_len, 256);
    let token_strs = token_strs.unwrap();
    assert!(
        token_strs.len() == tokens.len() && token_strs.contains(&"<|im_end|>".to_owned()),
        "{token_strs:?}"
    );
    for _ in 0..8 {
        let back = ask(&relay, TINY, &TokensRequest::Detokenize { tokens: tokens.clone() }).await;
        assert_eq!(back, TokensReply::Detokenized { text: text.to_owned() });
    }

    let error = error_of(ask(&relay, TINY, &TokensRequest::Detokenize { tokens: vec![0, 1 << 30] }).await);
    assert_eq!((error.status, error.param.as_deref()), (400, Some("tokens[1]")));
    let garbage = relay.client.request(subject::tokens(TINY), "{}".into()).await.unwrap();
    let error = error_of(serde_json::from_slice(&garbage.payload).unwrap());
    assert_eq!(error.code, ErrorCode::InternalError);
}

#[tokio::test]
async fn a_conversation_has_the_tokens_that_its_job_is_charged_for() {
    let nats = NatsServer::start().await.unwrap();
    let _worker = worker_of_tiny(&nats);
    let relay = Relay::new(&nats).await;
    relay.wait_for_states(&[(TINY, Serving)]).await;
    let messages = vec![Message::new(Role::User, "Hello there")];
    let chat = |variables: &[(&str, bool)], add_generation_prompt| TokensInput::Chat {
        tool_choice: ToolChoice::Auto,
        single_tool_call: false,
        messages: messages.clone(),
        tools: Vec::new(),
        template_variables: variables.iter().map(|&(name, value)| (name.to_owned(), value.into())).collect(),
        add_generation_prompt,
        continue_final_message: false,
    };
    let prompt = tokens_of(ask(&relay, TINY, &tokenize(chat(&[], true), true)).await);
    let without = tokens_of(ask(&relay, TINY, &tokenize(chat(&[], false), true)).await);
    assert!(prompt.starts_with(&without) && prompt.len() > without.len());
    let thoughtless =
        tokens_of(ask(&relay, TINY, &tokenize(chat(&[("enable_thinking", false)], true), true)).await);
    assert!(thoughtless.starts_with(&prompt) && thoughtless.len() > prompt.len());
    let TokensReply::Tokenized { tokens, relaxed, .. } =
        ask(&relay, TINY, &tokenize(chat(&[("nobody", true)], true), true)).await
    else {
        panic!("no tokens")
    };
    assert_eq!((tokens, relaxed.paths()), (prompt.clone(), &["chat_template_kwargs.nobody".to_owned()][..]));

    let accepted = |id, request| {
        let job = Job { request, ..job_for(TINY, id, 1) };
        let relay = &relay;
        async move {
            let mut events = relay.send(&job).await;
            assert!(matches!(events.next().await.kind, EventKind::Taken { .. }));
            match events.next().await.kind {
                EventKind::Accepted(accepted) => (accepted.prompt_tokens, accepted.prompt_text),
                other => panic!("{other:?}"),
            }
        }
    };
    let base = GenerationRequest { max_tokens: Some(1), ..GenerationRequest::default() };
    let request = GenerationRequest { messages: messages.clone(), ..base.clone() };
    assert_eq!(accepted(1, request).await, (u32::try_from(prompt.len()).unwrap(), None));
    // The same tokens, as they are.
    let raw = Some(RawPrompt::Tokens(prompt.clone()));
    let (count, text) = accepted(2, GenerationRequest { prompt: raw, echo: true, ..base }).await;
    assert_eq!(count as usize, prompt.len());
    let back = ask(&relay, TINY, &TokensRequest::Detokenize { tokens: prompt }).await;
    assert_eq!(back, TokensReply::Detokenized { text: text.unwrap() });
}

#[tokio::test]
async fn what_does_not_fit_into_a_message_is_refused() {
    let nats = NatsServer::start().await.unwrap();
    let _worker = worker_of_tiny(&nats);
    let relay = Relay::new(&nats).await;
    relay.wait_for_states(&[(TINY, Serving)]).await;
    // Each of these bytes is a token of its own, written in four bytes.
    let text = "\u{1}".repeat(1 << 20);
    let error = error_of(ask(&relay, TINY, &tokenize(TokensInput::Text(text), false)).await);
    assert_eq!((error.status, error.code), (413, ErrorCode::RequestTooLarge));
}

#[tokio::test]
async fn a_model_without_a_tokenizer_says_so_and_nobody_answers_for_one_that_is_not_served() {
    let nats = NatsServer::start().await.unwrap();
    let mut worker = Worker::start(&nats, &[]);
    let relay = Relay::new(&nats).await;
    relay.wait_for_load(&[0]).await;
    let request = tokenize(TokensInput::Text("x".to_owned()), true);
    let error = error_of(ask(&relay, MODEL, &request).await);
    assert_eq!((error.status, error.code), (400, ErrorCode::UnsupportedParameter));
    let chat = TokensInput::Chat {
        tool_choice: ToolChoice::Auto,
        single_tool_call: false,
        messages: Vec::new(),
        tools: Vec::new(),
        template_variables: Map::new(),
        add_generation_prompt: true,
        continue_final_message: false,
    };
    assert_eq!(error_of(ask(&relay, MODEL, &tokenize(chat, true)).await).status, 400);
    worker.signal("TERM");
    assert!(worker.exit().await.success());
    let payload = serde_json::to_vec(&request).unwrap();
    let nobody = within("no answer", relay.client.request(subject::tokens(MODEL), payload.into())).await;
    let nobody = nobody.unwrap_err();
    assert_eq!(nobody.kind(), async_nats::RequestErrorKind::NoResponders);
}
