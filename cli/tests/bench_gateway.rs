//! `emberline bench gateway` with real programs: nats-server, the function in its host, a simulated worker.

#![allow(clippy::unwrap_used, reason = "a step of a test that fails ends the test")]

use std::os::unix::fs::symlink;
use std::process::Command;

use emberline_test_kit::{nats, paths};
use serde_json::Value;

/// The value of a system in the row of a load and a measure.
fn value(report: &Value, load: &str, measure: &str, system: &str) -> f64 {
    let rows = report["rows"].as_array().unwrap();
    let row = rows.iter().find(|row| row["load"] == load && row["measure"] == measure);
    let row = row.unwrap_or_else(|| panic!("no row {load}, {measure} in {report:#}"));
    row["values"][system].as_f64().unwrap()
}

/// The report of a short run with these options.
fn report(options: &[&str]) -> Value {
    let dir = tempfile::tempdir().unwrap();
    symlink(nats::binary().unwrap(), dir.path().join("nats-server")).unwrap();
    let path = std::env::var("PATH").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_emberline"))
        .args(["bench", "gateway", "--quick", "--seconds", "0.5", "--json"])
        .args(options)
        .current_dir(paths::repository())
        .env("PATH", format!("{}:{path}", dir.path().display()))
        .env("EMBERLINE_CACHE", dir.path().join("cache"))
        .env("EMBERLINE_HOST", "local")
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn every_request_is_answered_and_measured() {
    // Few clients, so that a busy machine answers all of them in time.
    let report = report(&["--peers", "none", "--only", "answers", "--clients", "1,4"]);
    let value = |load: &str, measure: &str| value(&report, load, measure, "Emberline");
    let systems = report["systems"].as_array().unwrap();
    assert_eq!(systems.len(), 1, "{systems:#?}");
    assert_eq!((&systems[0]["name"], &systems[0]["errors"]), (&"Emberline".into(), &Value::Array(vec![])));
    assert!(report["machine"]["cores"].as_u64().unwrap() > 0);
    for load in ["answers, 1 client", "answers, 4 clients"] {
        let value = |measure| value(load, measure);
        assert!(value("requests/s") > 0.0 && value("CPU in all, ms/request") > 0.0);
        assert!(value("p50 ms") > 0.0 && value("p50 ms") <= value("p99 ms"));
        // Each request was a job of its own, and no job failed: what is not an answer ends the run.
        assert!((value("stored in JOBS/request") - 1.0).abs() < 1e-9);
        assert!(value("to nats-server/request") >= 1.0);
    }
    for part in ["function", "nats-server", "worker"] {
        assert!(value("memory", &format!("{part} at start, MiB")) > 0.0);
        // On a slow machine a part may use less than a clock tick for the few requests that there are.
        assert!(value("answers, 4 clients", &format!("CPU of {part}, ms/request")) >= 0.0);
    }
}

#[test]
fn each_way_to_nats_is_measured_beside_the_others() {
    let ways = ["Emberline", "Emberline (tls)", "Emberline (edge)", "Emberline (secure-edge)"];
    let options = ["--peers", "tls,edge,secure-edge", "--only", "streams,cold", "--clients", "4"];
    let report = report(&[&options[..], &["--instances", "2"]].concat());
    let systems = report["systems"].as_array().unwrap();
    assert_eq!(systems.len(), ways.len(), "{systems:#?}");
    for (system, way) in systems.iter().zip(ways) {
        assert_eq!((&system["name"], &system["errors"]), (&way.into(), &Value::Array(vec![])));
        let value = |load, measure| value(&report, load, measure, way);
        assert!(value("streams, 4 clients", "tokens/s") > 0.0);
        assert!(value("cold, 1 client", "first byte p50 ms") > 0.0);
        // A fresh instance has no connection; and this is how often one pays for it.
        assert!(value("cold, 1 client", "connections to nats-server/1,000 requests") >= 1000.0);
    }
    assert!(value(&report, "cold, 1 client", "CPU of edge, ms/request", "Emberline (edge)") >= 0.0);
}
