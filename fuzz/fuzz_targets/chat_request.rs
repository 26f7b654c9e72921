//! Chat requests: no body makes the parser panic, every refusal says why, and what is accepted
//! reaches the worker as it is.

#![no_main]

use emberline_shared::chat::ChatRequest;
use emberline_shared::job::GenerationRequest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    match ChatRequest::parse(body) {
        Ok(request) => {
            let queued = serde_json::to_vec(&request.generation).expect("a job is JSON");
            let read: GenerationRequest = serde_json::from_slice(&queued).expect("the worker reads it");
            assert_eq!(read, request.generation);
        }
        Err(error) => {
            assert!(matches!(error.code.status(), 400 | 413), "{error:?}");
            assert!(!error.message.is_empty());
        }
    }
});
