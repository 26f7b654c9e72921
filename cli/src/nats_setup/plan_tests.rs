//! Which steps are planned for what exists.

use super::*;
use emberline_protocol::lane::Lane;

fn stream(name: &str, requested: &RequestedChanges) -> Stream {
    streams::streams(&requested.layout(None)).into_iter().find(|stream| stream.name == name).unwrap()
}

/// The step for a stream that exists with the default settings but for one field.
fn step(name: &str, field: &str, value: Value, requested: &RequestedChanges) -> String {
    let mut config = stream(name, &RequestedChanges::default()).to_json();
    config[field] = value;
    let found = json!({"config": config, "state": {"messages": 7}});
    PlanStep::of_stream(stream(name, requested), Some(&found), requested).to_string()
}

#[test]
fn settings_that_nobody_asked_for_stay() {
    let none = RequestedChanges::default();
    for (field, value) in [("num_replicas", json!(3)), ("max_bytes", json!(1)), ("max_msgs", json!(5))] {
        assert_eq!(step("JOBS", field, value, &none), "unchanged  stream JOBS");
    }
    assert_eq!(step("EVENTS", "storage", json!("file"), &none), "unchanged  stream EVENTS");
    assert_eq!(step("USAGE", "max_age", json!(0), &none), "unchanged  stream USAGE");
}

#[test]
fn requested_settings_change_and_an_operators_additions_stay() {
    let requested = RequestedChanges {
        replicas: Some(3),
        queue_jobs: Some(50),
        queue_bytes: Some(1 << 30),
        ..RequestedChanges::default()
    };
    let planned = step("JOBS", "x", json!(null), &requested);
    let changes = "num_replicas 1 -> 3, max_msgs 10000 -> 500, max_msgs_per_subject 1000 -> 50, max_bytes 512 MiB -> 1 GiB";
    assert_eq!(planned, format!("update     stream JOBS: {changes}"));
    assert_eq!(step("USAGE", "x", json!(null), &requested), "update     stream USAGE: num_replicas 1 -> 3");
    let age = |days: u64| RequestedChanges {
        usage_age: Some(Duration::from_secs(days * 24 * 60 * 60)),
        usage_bytes: Some(1 << 32),
        ..RequestedChanges::default()
    };
    assert_eq!(
        step("USAGE", "x", json!(null), &age(90)),
        "update     stream USAGE: max_bytes 1 GiB -> 4 GiB, max_age 400 d -> 90 d; what is older is removed"
    );
    assert_eq!(
        step("USAGE", "x", json!(null), &age(500)),
        "update     stream USAGE: max_bytes 1 GiB -> 4 GiB, max_age 400 d -> 500 d"
    );

    let mut config = stream("DEAD", &RequestedChanges::default()).to_json();
    config["placement"] = json!({"cluster": "east"});
    let found = json!({"config": config});
    let step = PlanStep::of_stream(stream("DEAD", &requested), Some(&found), &requested);
    let PlanAction::Update { config, .. } = step.action else { panic!("{step}") };
    assert_eq!((&config["placement"]["cluster"], &config["num_replicas"]), (&json!("east"), &json!(3)));
}

#[test]
fn new_streams_have_as_many_replicas_as_the_queue() {
    let queue = json!({"config": {"num_replicas": 3}});
    assert_eq!(RequestedChanges::default().layout(Some(&queue)).replicas, 3);
    assert_eq!(
        RequestedChanges { replicas: Some(1), ..RequestedChanges::default() }.layout(Some(&queue)).replicas,
        1
    );
    assert_eq!(RequestedChanges::default().layout(None), Layout::default());
}

#[test]
fn nothing_is_lost_unless_asked_for_and_nothing_on_disk_at_all() {
    let memory = RequestedChanges { storage: Some(Storage::Memory), ..RequestedChanges::default() };
    let planned = step("EVENTS", "x", json!(null), &memory);
    assert_eq!(
        planned,
        "blocked    stream EVENTS: storage file -> memory can't be changed in place; --recreate removes and recreates it: its 7 messages are lost, running answers break off"
    );
    let recreate = RequestedChanges { recreate: true, ..memory };
    assert_eq!(
        step("EVENTS", "x", json!(null), &recreate),
        "recreate   stream EVENTS: storage file -> memory; its 7 messages are lost, running answers break off"
    );
    let planned = step("JOBS", "retention", json!("limits"), &recreate);
    assert_eq!(
        planned,
        "blocked    stream JOBS: retention limits -> workqueue can't be changed in place; `nats stream rm JOBS` removes it with its 7 messages"
    );
    assert_eq!(step("USAGE", "x", json!(null), &recreate), "unchanged  stream USAGE");
}

#[test]
fn a_stream_is_replicated_when_all_its_replicas_are_up_to_date() {
    let found = |others: Value| json!({"cluster": {"leader": "a", "replicas": others}});
    let (current, late) = (json!({"current": true}), json!({"current": false}));
    assert!(is_replicated(&json!({}), 1) && is_replicated(&found(json!([current, current])), 3));
    for others in [json!(null), json!([current]), json!([current, late])] {
        assert!(!is_replicated(&found(others.clone()), 3), "{others}");
    }
    assert!(!is_replicated(&found(json!([current, {"current": true, "offline": true}])), 3));
}

#[test]
fn new_streams_are_described() {
    let create = |name| {
        let requested = RequestedChanges { replicas: Some(3), ..RequestedChanges::default() };
        PlanStep::of_stream(stream(name, &requested), None, &requested).to_string()
    };
    assert_eq!(create("DEAD"), "create     stream DEAD: file, 3 replicas, 256 MiB, 7 d");
    assert_eq!(create("KV_keys"), "create     stream KV_keys: file, 3 replicas, 64 MiB");
}

#[test]
fn consumers_are_brought_up_to_date() {
    let wanted = Consumer::of_jobs("m", Lane::default());
    let step = |field: &str, value: Value| {
        let mut config = wanted.to_json();
        config[field] = value;
        PlanStep::of_consumer(wanted.clone(), Some(&json!({"config": config}))).to_string()
    };
    let name = &wanted.durable_name;
    assert_eq!(step("num_replicas", json!(3)), format!("unchanged  consumer {name} of JOBS"));
    let planned = step("ack_wait", json!(15_000_000_000_u64));
    assert_eq!(planned, format!("update     consumer {name} of JOBS: ack_wait 15 s -> 2500 ms"));
    assert!(step("ack_policy", json!("all")).starts_with("blocked"));
}

#[test]
fn sources_are_added_to_those_that_are_there() {
    let requested = RequestedChanges {
        keys_from: "home".parse().ok(),
        usage_from: vec!["eu".parse().unwrap(), "us".parse().unwrap()],
        ..RequestedChanges::default()
    };
    let keys = PlanStep::of_stream(stream("KV_keys", &requested), None, &requested);
    assert_eq!(
        keys.to_string(),
        "create     stream KV_keys: file, 1 replica, 64 MiB, with KV_keys of $JS.home.API"
    );
    let PlanAction::Create { config } = keys.action else { panic!() };
    assert_eq!(config["sources"], json!([{"name": "KV_keys", "external": {"api": "$JS.home.API"}}]));
    // As nats-server gives it back.
    let eu = json!([{"name": "USAGE", "external": {"api": "$JS.eu.API", "deliver": ""}}]);
    assert_eq!(
        step("USAGE", "sources", eu.clone(), &requested),
        "update     stream USAGE: sources USAGE of $JS.eu.API -> USAGE of $JS.eu.API,USAGE of $JS.us.API"
    );
    let none = RequestedChanges::default();
    assert_eq!(step("USAGE", "sources", eu, &none), "unchanged  stream USAGE");
    assert!(
        step("KV_keys", "x", json!(null), &requested).contains("sources none -> KV_keys of $JS.home.API")
    );
}
