use emberline_protocol::job::{GenerationRequest, SamplingOptions};
use proptest::prelude::*;

use super::*;

fn job() -> Job {
    Job {
        v: PROTOCOL_VERSION,
        id: JobId::from_random(1),
        model: "simulated-echo".into(),
        created: 0,
        deadline: 0,
        request: GenerationRequest {
            n: 1,
            logprobs: None,
            messages: Vec::new(),
            max_tokens: None,
            stop: Vec::new(),
            sampling: SamplingOptions::default(),
            ..GenerationRequest::default()
        },
        seed: 0,
        background: None,
        account: None,
    }
}

fn message(payload: &[u8], id_header: Option<&str>) -> async_nats::Message {
    let headers = id_header.map(|id| {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert(async_nats::header::NATS_MESSAGE_ID, id);
        headers
    });
    async_nats::Message {
        subject: "emberline.jobs.x.0".into(),
        reply: None,
        payload: payload.to_vec().into(),
        headers,
        status: None,
        description: None,
        length: 0,
    }
}

#[test]
fn a_job_in_its_own_queue_is_taken() {
    let payload = serde_json::to_vec(&job()).unwrap();
    assert_eq!(parse(&payload, "emberline.jobs.simulated-echo.3"), Ok(job()));
    let refused = parse(&payload, "emberline.jobs.other.0");
    assert_eq!(refused, Err(Refusal::WrongModel));
}

#[test]
fn a_job_of_another_version_is_refused_as_such_even_if_it_looks_different() {
    for (version, older) in [(PROTOCOL_VERSION + 1, "worker"), (PROTOCOL_VERSION - 1, "function")] {
        let job = format!(r#"{{"v":{version},"identity":"?"}}"#);
        let refusal = parse(job.as_bytes(), "s").unwrap_err();
        assert_eq!(refusal, Refusal::Version(version));
        assert!(refusal.to_string().ends_with(&format!("upgrade the {older}")), "{refusal}");
    }
    let unlike = format!(r#"{{"v":{PROTOCOL_VERSION},"identity":"?"}}"#);
    assert!(matches!(parse(unlike.as_bytes(), "s"), Err(Refusal::NotAJob(_))));
}

#[test]
fn the_id_is_found_in_the_body_or_in_the_header() {
    let (one, two) = (JobId::from_random(1), JobId::from_random(2));
    let body = format!(r#"{{"id":"{one}","rest":[]}}"#);
    assert_eq!(id_of(&message(body.as_bytes(), Some(two.as_str()))), Some(one));
    assert_eq!(id_of(&message(b"not json", Some(two.as_str()))), Some(two));
    assert_eq!(id_of(&message(b"not json", Some("*.>"))), None);
    assert_eq!(id_of(&message(b"{}", None)), None);
}

proptest! {
    #[test]
    fn no_message_makes_the_parser_panic(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(parse(&payload, "emberline.jobs.x.0").is_err());
        prop_assert_eq!(id_of(&message(&payload, None)), None);
    }
}
