//! `emberline status`: the workers of a stack, from their heartbeats.

use emberline_protocol::heartbeat::{Heartbeat, ModelState, ModelStatus};

use crate::cache::Cache;
use crate::nats::access::AccessArgs;
use crate::nats::stored;
use crate::runtime::runtime;
use crate::table::table;
use crate::usage::room::warn_if_nearly_full;

pub(crate) fn run(args: &AccessArgs, cache: &Cache) -> anyhow::Result<()> {
    let access = args.resolve(cache)?;
    let heartbeats = runtime()?.block_on(async {
        let client = access.connect().await?;
        warn_if_nearly_full(&client).await?;
        anyhow::Ok(stored::heartbeats(&client).await?)
    })?;
    println!("{}", render(&heartbeats));
    Ok(())
}

fn render(heartbeats: &[Heartbeat]) -> String {
    if heartbeats.is_empty() {
        return "no worker is running".to_owned();
    }
    let head = ["worker", "model", "jobs", "state", "engine", "device"].map(String::from);
    let mut text = table(&head, heartbeats.iter().flat_map(rows));
    for beat in heartbeats {
        if let Some(problem) = &beat.problem {
            text.push_str(&format!("\n\n{}: {problem}", beat.worker));
        }
        for model in &beat.states {
            if let Some(reason) = &model.reason {
                text.push_str(&format!("\n\n{}: {}: {reason}", beat.worker, model.name));
            }
        }
    }
    text
}

/// One row for each of a worker's models; the worker's own columns are filled in the first row only.
fn rows(beat: &Heartbeat) -> Vec<[String; 6]> {
    let state = |state| match state {
        _ if beat.draining => "draining",
        ModelState::Loading => "loading",
        ModelState::Serving => "serving",
        ModelState::Draining => "draining",
        ModelState::Failed => "failed",
        ModelState::Unknown => "unknown",
    };
    let jobs = |active, capacity| format!("{active}/{capacity}");
    let models: Vec<[String; 3]> = if beat.states.is_empty() {
        let names: Vec<&str> = beat.models.iter().map(|model| model.name.as_str()).collect();
        let state = if beat.models.is_empty() { "idle" } else { state(ModelState::Serving) };
        vec![[names.join(","), jobs(beat.active, beat.capacity), state.to_owned()]]
    } else {
        let row = |model: &ModelStatus| {
            let state = match model.loaded_percent {
                Some(percent) if model.state == ModelState::Loading && !beat.draining => {
                    format!("loading {percent} %")
                }
                _ => state(model.state).to_owned(),
            };
            [model.name.clone(), jobs(model.active, model.capacity), state]
        };
        beat.states.iter().map(row).collect()
    };
    let first = [beat.worker.clone(), format!("{} {}", beat.engine, beat.version), beat.device.clone()];
    let shared = std::iter::once(first).chain(std::iter::repeat_with(<[String; 3]>::default));
    let row = |([model, jobs, state], [worker, engine, device]): ([String; 3], [String; 3])| {
        [worker, model, jobs, state, engine, device]
    };
    models.into_iter().zip(shared).map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use emberline_protocol::heartbeat::ServedModel;

    fn beat() -> Heartbeat {
        Heartbeat {
            v: 1,
            worker: "w1".into(),
            models: vec![ServedModel { name: "m".into(), context_length: 1, created: 0 }],
            engine: "burn".into(),
            device: "CPU (flex)".into(),
            version: "0.1.0".into(),
            capacity: 8,
            active: 3,
            ..Heartbeat::default()
        }
    }

    #[test]
    fn each_worker_has_a_line() {
        let text = render(&[beat(), Heartbeat { worker: "worker-2".into(), draining: true, ..beat() }]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "worker    model  jobs  state     engine      device");
        assert_eq!(lines[1], "w1        m      3/8   serving   burn 0.1.0  CPU (flex)");
        assert_eq!(lines[2], "worker-2  m      3/8   draining  burn 0.1.0  CPU (flex)");
        assert_eq!(render(&[]), "no worker is running");
    }

    #[test]
    fn each_model_has_a_line_and_problems_are_shown_below() {
        let model = |name: &str, state, reason: Option<&str>| ModelStatus {
            pace: 0.0,
            memory: None,
            loaded_percent: (state == ModelState::Loading).then_some(40),
            name: name.into(),
            state,
            reason: reason.map(Into::into),
            capacity: 8,
            active: 3,
        };
        let states = vec![
            model("big", ModelState::Failed, Some("it needs more memory")),
            model("m", ModelState::Serving, None),
            model("n", ModelState::Loading, None),
        ];
        let problem = Some("models.toml, line 3: no".to_owned());
        let text = render(&[Heartbeat { states, problem, ..beat() }]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[1], "w1      big    3/8   failed        burn 0.1.0  CPU (flex)");
        assert_eq!(lines[2], "        m      3/8   serving");
        assert_eq!(lines[3], "        n      3/8   loading 40 %");
        assert_eq!(lines[5], "w1: models.toml, line 3: no");
        assert_eq!(lines[7], "w1: big: it needs more memory");
    }
}
