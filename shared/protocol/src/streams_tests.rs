//! What the streams' configurations guarantee, and how differences are found and displayed.

use serde_json::json;

use super::definitions::{HOUR, MINUTE};
use super::*;
use crate::lane::Lane;

fn named(name: &str) -> Stream {
    streams(&Layout::default()).into_iter().find(|stream| stream.name == name).unwrap()
}

/// A configuration with one field changed.
fn with(stream: &Stream, field: &str, value: Value) -> Value {
    let mut found = stream.to_json();
    found[field] = value;
    found
}

#[test]
fn every_stream_fits_itself_and_has_a_bound() {
    let all = streams(&Layout::default());
    for stream in &all {
        assert_eq!(stream.incompatible_fields(&stream.to_json()), []);
        assert!(stream.max_bytes > 0 && !stream.subjects.is_empty(), "{}", stream.name);
        assert!(stream.max_age.is_zero() || stream.duplicate_window <= stream.max_age, "{}", stream.name);
    }
    let mut names = all.map(|stream| stream.name);
    names.sort_unstable();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
}

#[test]
fn a_layout_changes_replicas_everywhere_and_storage_where_it_may() {
    let cluster = Layout { replicas: 3, ..Layout::default() };
    for stream in streams(&cluster) {
        assert_eq!((stream.num_replicas, stream.storage), (3, Storage::File), "{}", stream.name);
    }
    let memory = streams(&Layout { volatile: Storage::Memory, ..Layout::default() });
    let in_memory: Vec<&str> =
        memory.iter().filter(|stream| stream.storage == Storage::Memory).map(|stream| stream.name).collect();
    assert_eq!(in_memory, ["EVENTS", "KV_workers", "LIMITS"]);
}

#[test]
fn what_is_stored_is_removed_by_nobody() {
    for stream in streams(&Layout::default()) {
        let name = stream.name;
        assert_eq!(stream.allow_rollup_hdrs, ["EVENTS", "KEPT"].contains(&name), "{name}");
        assert_eq!(stream.deny_delete, name != "DEAD", "{name}");
        assert_eq!(stream.deny_purge, !["EVENTS", "KEPT"].contains(&name), "{name}");
        // A stream as it was made before is brought up to date; one that denies more is left alone.
        for (field, before) in [("allow_rollup_hdrs", true), ("deny_delete", false), ("deny_purge", false)] {
            let expected = usize::from(stream.to_json()[field] != before);
            assert_eq!(
                stream.incompatible_fields(&with(&stream, field, before.into())).len(),
                expected,
                "{name}"
            );
        }
        for field in ["deny_delete", "deny_purge"] {
            assert_eq!(stream.incompatible_fields(&with(&stream, field, true.into())), [], "{name}");
        }
    }
}

#[test]
fn what_was_charged_makes_room_for_nothing() {
    let usage = named("USAGE");
    let unfit = usage.incompatible_fields(&with(&usage, "discard", json!("old")));
    assert_eq!(unfit.iter().map(ToString::to_string).collect::<Vec<_>>(), ["discard old -> new"]);
    assert!(named("JOBS").discard == Discard::New && named("EVENTS").discard == Discard::Old);
}

#[test]
fn an_operators_limits_fit_and_another_kind_of_stream_does_not() {
    let jobs = named("JOBS");
    assert_eq!(jobs.incompatible_fields(&with(&jobs, "max_msgs", json!(1))), []);
    assert_eq!(jobs.incompatible_fields(&with(&jobs, "num_replicas", json!(3))), []);
    assert_eq!(jobs.incompatible_fields(&with(&jobs, "max_msgs_per_subject", json!(50))), []);
    assert_eq!(jobs.incompatible_fields(&with(&jobs, "max_msgs_per_subject", json!(-1))).len(), 1);
    let log = jobs.incompatible_fields(&with(&jobs, "retention", json!("limits")));
    assert_eq!(log.iter().map(ToString::to_string).collect::<Vec<_>>(), ["retention limits -> workqueue"]);
}

#[test]
fn nothing_may_be_forgotten_too_early_and_no_heartbeat_too_late() {
    let ages = |name: &str, age: Duration| {
        let stream = named(name);
        let unfit = stream.incompatible_fields(&with(
            &stream,
            "max_age",
            json!(u64::try_from(age.as_nanos()).unwrap()),
        ));
        unfit.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(ages("EVENTS", 10 * MINUTE), ["max_age 10 min -> 25 h"]);
    assert!(ages("EVENTS", Duration::ZERO).is_empty() && ages("EVENTS", 30 * HOUR).is_empty());
    assert_eq!(ages("KV_keys", HOUR), ["max_age 1 h -> unlimited"]);
    assert_eq!(ages("KV_workers", Duration::ZERO), ["max_age unlimited -> 8 s"]);
    assert!(ages("USAGE", HOUR).is_empty());
}

#[test]
fn what_the_api_leaves_out_is_nothing() {
    let limits = named("LIMITS");
    let mut found = limits.to_json();
    found.as_object_mut().unwrap().remove("allow_msg_counter");
    let unfit = limits.incompatible_fields(&found);
    assert_eq!(unfit.len(), 1);
    assert_eq!(unfit[0].to_string(), "allow_msg_counter false -> true");
    found["allow_msg_counter"] = Value::Null;
    assert_eq!(limits.incompatible_fields(&found), unfit);
}

#[test]
fn an_operators_consumer_fits_unless_it_serves_something_else() {
    let wanted = Consumer::of_jobs("m", Lane::default());
    let mut found = wanted.to_json();
    found["ack_wait"] = json!(60_000_000_000_u64);
    assert_eq!(wanted.incompatible_fields(&found), []);
    assert_eq!(wanted.differences(&found, &["ack_wait"])[0].to_string(), "ack_wait 1 min -> 2500 ms");
    found["filter_subject"] = json!("emberline.jobs.>");
    assert_eq!(wanted.incompatible_fields(&found)[0].field, "filter_subject");
}

#[test]
fn values_are_told_as_people_write_them() {
    for (field, value, told) in [
        ("max_bytes", json!(256 << 20), "256 MiB"),
        ("max_bytes", json!(1 << 30), "1 GiB"),
        ("max_bytes", json!(1000), "1000 B"),
        ("max_bytes", json!(-1), "unlimited"),
        ("max_age", json!(604_800_000_000_000_u64), "7 d"),
        ("ack_wait", json!(0), "0"),
        ("num_replicas", json!(3), "3"),
        ("subjects", json!(["a", "b"]), "a,b"),
        ("allow_direct", json!(true), "true"),
        ("sources", json!([]), "none"),
        ("sources", json!([{"name": "USAGE", "external": {"api": "$JS.eu.API"}}]), "USAGE of $JS.eu.API"),
    ] {
        assert_eq!(readable(field, &value), told);
    }
}
