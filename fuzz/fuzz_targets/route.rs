//! Paths and methods: each request has an endpoint or an answer that says what is wrong.

#![no_main]

use emberline_function::endpoints::router;
use http::Method;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&[u8], &str)| {
    let (method, path) = input;
    let Ok(method) = Method::from_bytes(method) else { return };
    match router::find(&method, path) {
        Ok(route) => drop(route.endpoint.needs_key()),
        Err(error) => {
            let error = error.into_api(&method, path);
            assert!(matches!(error.code.status(), 404 | 405));
            assert!(error.message.len() < 2048, "{}", error.message.len());
        }
    }
});
