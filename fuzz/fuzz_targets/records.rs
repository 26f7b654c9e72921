//! What lies in NATS' buckets, and the queries that ask for it.

#![no_main]

use emberline_function::admission::served_models::ServedModels;
use emberline_function::endpoints::responses::{Query, ResponseState, job_of, response_id};
use emberline_function::generation::stored_request;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|payload: &[u8]| {
    if let Ok(record) = stored_request::read(payload) {
        let json = serde_json::to_vec(&record).expect("a record is JSON");
        assert_eq!(stored_request::read(&json).as_ref(), Ok(&record));
        let id = response_id(&record.job.id);
        assert_eq!(job_of(&id).as_ref(), Some(&record.job.id));
        if let Some(state) = ResponseState::of(record) {
            assert_eq!(serde_json::to_value(state.response()).expect("a response is JSON")["id"], id);
        }
    }
    let mut skipped = 0;
    let served = ServedModels::read([payload], |_| skipped += 1);
    assert!(skipped == 0 || served.names().is_empty());
    if let Ok(text) = str::from_utf8(payload) {
        let _ = job_of(text);
        if let Err(error) = Query::parse(Some(text)) {
            assert_eq!(error.code.status(), 400);
        }
    }
});
