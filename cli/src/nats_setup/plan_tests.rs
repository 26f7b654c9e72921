//! What is planned for what is there.

use super::*;
use emberline_protocol::lane::Lane;

fn stream(name: &str, wishes: &Wishes) -> Stream {
    streams::streams(&wishes.layout(None)).into_iter().find(|stream| stream.name == name).unwrap()
}

/// The step for a stream that is there as by default, but for one field.
fn step(name: &str, field: &str, value: Value, wishes: &Wishes) -> String {
    let mut config = stream(name, &Wishes::default()).to_json();
    config[field] = value;
    let found = json!({"config": config, "state": {"messages": 7}});
    Step::of_stream(stream(name, wishes), Some(&found), wishes).to_string()
}

#[test]
fn what_nobody_asked_for_stays() {
    let none = Wishes::default();
    for (field, value) in [("num_replicas", json!(3)), ("max_bytes", json!(1)), ("max_msgs", json!(5))] {
        assert_eq!(step("JOBS", field, value, &none), "unchanged  stream JOBS");
    }
    assert_eq!(step("EVENTS", "storage", json!("file"), &none), "unchanged  stream EVENTS");
    assert_eq!(step("USAGE", "max_age", json!(0), &none), "unchanged  stream USAGE");
}

#[test]
fn what_is_asked_for_is_changed_and_what_an_operator_added_stays() {
    let wishes =
        Wishes { replicas: Some(3), queue_jobs: Some(50), queue_bytes: Some(1 << 30), ..Wishes::default() };
    let told = step("JOBS", "x", json!(null), &wishes);
    let changes = "num_replicas 1 -> 3, max_msgs 10000 -> 500, max_msgs_per_subject 1000 -> 50, max_bytes 512 MiB -> 1 GiB";
    assert_eq!(told, format!("update     stream JOBS: {changes}"));
    assert_eq!(step("USAGE", "x", json!(null), &wishes), "update     stream USAGE: num_replicas 1 -> 3");

    let mut config = stream("DEAD", &Wishes::default()).to_json();
    config["placement"] = json!({"cluster": "east"});
    let found = json!({"config": config});
    let step = Step::of_stream(stream("DEAD", &wishes), Some(&found), &wishes);
    let Action::Update { config, .. } = step.action else { panic!("{step}") };
    assert_eq!((&config["placement"]["cluster"], &config["num_replicas"]), (&json!("east"), &json!(3)));
}

#[test]
fn what_is_new_has_as_many_replicas_as_the_queue() {
    let queue = json!({"config": {"num_replicas": 3}});
    assert_eq!(Wishes::default().layout(Some(&queue)).replicas, 3);
    assert_eq!(Wishes { replicas: Some(1), ..Wishes::default() }.layout(Some(&queue)).replicas, 1);
    assert_eq!(Wishes::default().layout(None), Layout::default());
}

#[test]
fn nothing_is_lost_unless_asked_for_and_nothing_on_disk_at_all() {
    let file = Wishes { storage: Some(Storage::File), ..Wishes::default() };
    let told = step("EVENTS", "x", json!(null), &file);
    assert_eq!(
        told,
        "can't      stream EVENTS: storage memory -> file in place; with --recreate it is made anew: its 7 messages are lost, answers that are being given break off"
    );
    let recreate = Wishes { recreate: true, ..file };
    assert_eq!(
        step("EVENTS", "x", json!(null), &recreate),
        "recreate   stream EVENTS: storage memory -> file; its 7 messages are lost, answers that are being given break off"
    );
    let told = step("JOBS", "retention", json!("limits"), &recreate);
    assert_eq!(
        told,
        "can't      stream JOBS: retention limits -> workqueue in place; `nats stream rm JOBS` removes it with its 7 messages"
    );
    assert_eq!(step("USAGE", "x", json!(null), &recreate), "unchanged  stream USAGE");
}

#[test]
fn a_stream_is_whole_when_all_its_replicas_are_up_to_date() {
    let found = |others: Value| json!({"cluster": {"leader": "a", "replicas": others}});
    let (current, late) = (json!({"current": true}), json!({"current": false}));
    assert!(is_whole(&json!({}), 1) && is_whole(&found(json!([current, current])), 3));
    for others in [json!(null), json!([current]), json!([current, late])] {
        assert!(!is_whole(&found(others.clone()), 3), "{others}");
    }
    assert!(!is_whole(&found(json!([current, {"current": true, "offline": true}])), 3));
}

#[test]
fn what_is_new_is_described() {
    let create = |name| {
        let wishes = Wishes { replicas: Some(3), ..Wishes::default() };
        Step::of_stream(stream(name, &wishes), None, &wishes).to_string()
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
        Step::of_consumer(wanted.clone(), Some(&json!({"config": config}))).to_string()
    };
    let name = &wanted.durable_name;
    assert_eq!(step("num_replicas", json!(3)), format!("unchanged  consumer {name} of JOBS"));
    let told = step("ack_wait", json!(15_000_000_000_u64));
    assert_eq!(told, format!("update     consumer {name} of JOBS: ack_wait 15 s -> 2500 ms"));
    assert!(step("ack_policy", json!("all")).starts_with("can't"));
}
