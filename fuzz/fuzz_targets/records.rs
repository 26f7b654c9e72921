//! What lies in NATS' buckets, and the queries that ask for it.

#![no_main]

use emberline_function::admission::served_models::ServedModels;
use emberline_function::endpoints::responses::{Query, ResponseState};
use emberline_function::generation::stored_request::{self, job_of, response_id};
use emberline_protocol::heartbeat::Heartbeat;
use emberline_protocol::model_summary::ModelSummary;
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
    let summary = ModelSummary::read(payload);
    let mut reported = 0;
    let served = ServedModels::read([("key", payload)], |_| reported += 1);
    assert_eq!(served.names().len(), usize::from(summary.is_ok()));
    assert!(summary.is_ok() || reported == 1);
    for (model, heartbeat) in [("m", Heartbeat::read(payload)), ("", Heartbeat::read(payload))] {
        if let Some(summary) = ModelSummary::of(model, None, [heartbeat]) {
            let json = serde_json::to_vec(&summary).expect("a summary is JSON");
            assert!(ModelSummary::read(&json).is_ok());
        }
    }
    if let Ok(text) = str::from_utf8(payload) {
        let _ = job_of(text);
        if let Err(error) = Query::parse(Some(text)) {
            assert_eq!(error.code.status(), 400);
        }
    }
});
