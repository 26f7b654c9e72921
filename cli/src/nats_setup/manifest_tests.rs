//! deploy/kubernetes/gpu.yaml, which the chart makes, names the streams, consumers and variables that the code uses.

use emberline_protocol::streams::consumers;
use emberline_protocol::subject::JOBS_STREAM;

const MANIFEST: &str = include_str!("../../../deploy/kubernetes/gpu.yaml");

/// All values of a field, in order. Of `{name: NAME, value: VALUE}` it is the value.
fn values<'a>(field: &str) -> Vec<&'a str> {
    let value = |line: &'a str| {
        let line = line.trim().trim_start_matches("- ");
        let inline = format!("{{name: {field}, value: ");
        let rest = line.strip_prefix(&format!("{field}: ")).or_else(|| line.strip_prefix(&inline))?;
        Some(rest.trim_end_matches('}').trim_matches('"'))
    };
    MANIFEST.lines().filter_map(value).collect()
}

#[test]
fn the_manifest_scales_by_the_lanes_of_its_model() {
    let model = values("EMBERLINE_MODEL_NAME")[0];
    let lanes = consumers(model).map(|consumer| consumer.durable_name);
    assert_eq!(values("consumer"), lanes);
    assert_eq!(values("stream"), [JOBS_STREAM; 4]);
    // The formula counts every lane.
    let names: Vec<&str> = values("name").into_iter().filter(|name| name.starts_with("lane")).collect();
    assert_eq!(names.len(), 4);
    assert_eq!(values("formula"), [names.join(" + ")]);
    assert_eq!(values("account"), ["$G"; 4]);
}

#[test]
fn a_pod_lives_long_enough_to_drain() {
    // The last one is the worker's.
    let seconds = |field: &str| values(field).last().unwrap().parse::<u64>().unwrap();
    assert!(seconds("terminationGracePeriodSeconds") >= seconds("EMBERLINE_DRAIN_S") + 15);
    assert!(seconds("target") < seconds("EMBERLINE_SLOTS"));
}
