//! The workers that are there, and what they serve.

use std::collections::BTreeSet;

use emberline_protocol::PROTOCOL_VERSION;
use emberline_protocol::heartbeat::{Heartbeat, ModelState};

use super::report::Check;

const NAME: &str = "workers";

/// The models for which some worker takes jobs.
pub(super) fn served(heartbeats: &[Heartbeat]) -> BTreeSet<String> {
    let models = heartbeats.iter().flat_map(Heartbeat::takes_jobs_for);
    models.map(|model| model.name.clone()).collect()
}

/// Judges the workers' heartbeats; each of `wanted` has to be served.
pub(super) fn judge(heartbeats: &[Heartbeat], wanted: &[String]) -> Vec<Check> {
    if heartbeats.is_empty() {
        return vec![Check::fault(
            NAME,
            "no worker is running",
            "start one (`emberline-worker --nats …`); if one runs, its log says why it does not get to NATS",
        )];
    }
    let mut checks = Vec::new();
    for beat in heartbeats {
        if beat.v != PROTOCOL_VERSION {
            checks.push(Check::fault(
                NAME,
                format!(
                    "{} is of protocol version {}, not {PROTOCOL_VERSION}: it gets no jobs",
                    beat.worker, beat.v
                ),
                "upgrade function and workers together",
            ));
        }
        if let Some(problem) = &beat.problem {
            checks.push(Check::warning(
                NAME,
                format!("{} does not take its new configuration: {problem}", beat.worker),
                "correct the file of models; the worker reads it again by itself",
            ));
        }
        for model in beat.states.iter().filter(|model| model.state == ModelState::Failed) {
            let reason = model.reason.as_deref().unwrap_or("its log says why");
            checks.push(Check::fault(
                NAME,
                format!("{} can't serve {}: {reason}", beat.worker, model.name),
                "put right what the reason says, then `kill -HUP` or restart the worker",
            ));
        }
    }
    let current: Vec<Heartbeat> =
        heartbeats.iter().filter(|beat| beat.v == PROTOCOL_VERSION).cloned().collect();
    let served = served(&current);
    for model in wanted.iter().filter(|model| !served.contains(*model)) {
        checks.push(Check::fault(
            NAME,
            format!("no worker serves {model}"),
            "start a worker with it; `emberline status` shows what is loading",
        ));
    }
    let names = served.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    if served.is_empty() && wanted.is_empty() {
        checks.push(Check::warning(
            NAME,
            format!("{} are running, and none takes jobs", count(heartbeats.len())),
            "wait until a model is loaded; `emberline status` shows what each worker does",
        ));
    } else if checks.is_empty() {
        checks.push(Check::ok(NAME, format!("{}, serving {names}", count(heartbeats.len()))));
    }
    checks
}

fn count(workers: usize) -> String {
    format!("{workers} worker{}", if workers == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::super::report::Outcome;
    use super::*;
    use emberline_protocol::heartbeat::{ModelStatus, ServedModel};

    fn beat(models: &[&str]) -> Heartbeat {
        let served = |name: &&str| ServedModel { name: (*name).into(), context_length: 1, created: 0 };
        Heartbeat {
            v: PROTOCOL_VERSION,
            worker: "w".into(),
            models: models.iter().map(served).collect(),
            ..Heartbeat::default()
        }
    }

    fn outcomes(heartbeats: &[Heartbeat], wanted: &[&str]) -> Vec<(Outcome, String)> {
        let wanted: Vec<String> = wanted.iter().map(ToString::to_string).collect();
        judge(heartbeats, &wanted).into_iter().map(|check| (check.outcome, check.finding)).collect()
    }

    #[test]
    fn what_is_served_is_told() {
        let finding = "2 workers, serving a, b".to_owned();
        assert_eq!(outcomes(&[beat(&["a"]), beat(&["b"])], &["a"]), [(Outcome::Ok, finding)]);
    }

    #[test]
    fn what_keeps_workers_from_serving_is_found() {
        let failed = ModelStatus {
            name: "big".into(),
            state: ModelState::Failed,
            reason: Some("it needs more memory".into()),
            capacity: 0,
            active: 0,
            pace: 0.0,
            memory: None,
            loaded_percent: None,
        };
        for (heartbeats, wanted, outcome, words) in [
            (vec![], vec![], Outcome::Fault, "no worker is running"),
            (vec![Heartbeat { v: 1, ..beat(&["a"]) }], vec![], Outcome::Fault, "protocol version 1"),
            (vec![Heartbeat { states: vec![failed], ..beat(&["a"]) }], vec![], Outcome::Fault, "more memory"),
            (
                vec![Heartbeat { problem: Some("line 3".into()), ..beat(&["a"]) }],
                vec![],
                Outcome::Warning,
                "line 3",
            ),
            (vec![beat(&["a"])], vec!["b"], Outcome::Fault, "no worker serves b"),
            (vec![Heartbeat { draining: true, ..beat(&["a"]) }], vec![], Outcome::Warning, "none takes jobs"),
        ] {
            let found = outcomes(&heartbeats, &wanted);
            assert!(found.iter().any(|(of, finding)| *of == outcome && finding.contains(words)), "{found:?}");
        }
    }
}
