//! Request bodies of every endpoint: none makes a parser panic, every refusal says why, and what is
//! accepted reaches the worker as it is. The first byte says which endpoint.

#![no_main]

use emberline_api::chat::ChatRequest;
use emberline_api::completions::CompletionRequest;
use emberline_api::embeddings;
use emberline_api::responses::ResponsesRequest;
use emberline_api::tokenize::TokenRequest;
use emberline_protocol::error::ApiError;
use emberline_protocol::job::GenerationRequest;
use emberline_protocol::tokens::TokensRequest;
use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;

fuzz_target!(|input: (u8, &[u8])| {
    let (endpoint, body) = input;
    match endpoint % 6 {
        0 => check(ChatRequest::parse(body), |request| queued(&request.generation)),
        1 => check(CompletionRequest::parse(body), |request| {
            assert!(!request.generations.is_empty());
            request.generations.iter().for_each(queued);
        }),
        2 => check(ResponsesRequest::parse(body), |request| {
            queued(&request.generation);
            survives(&request.spec);
        }),
        3 => check(TokenRequest::parse_tokenize(body), |request| survives::<TokensRequest>(&request.request)),
        4 => {
            check(TokenRequest::parse_detokenize(body), |request| survives::<TokensRequest>(&request.request))
        }
        _ => check(embeddings::parse_model(body), |model| assert!(!model.is_empty())),
    }
});

fn check<T>(read: Result<T, ApiError>, accept: impl FnOnce(T)) {
    match read {
        Ok(request) => accept(request),
        Err(error) => {
            assert_eq!(error.code.status(), 400, "{error:?}");
            assert!(!error.message.is_empty() && error.message.len() < 4096, "{error:?}");
        }
    }
}

fn queued(request: &GenerationRequest) {
    survives(request);
    assert!((1..=16).contains(&request.n));
    assert!(request.stop.iter().all(|stop| !stop.is_empty()));
}

/// It is written and read without a difference.
fn survives<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(value: &T) {
    let json = serde_json::to_vec(value).expect("it is JSON");
    assert_eq!(&serde_json::from_slice::<T>(&json).expect("it is read"), value);
}
