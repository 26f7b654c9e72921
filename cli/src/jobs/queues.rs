//! Counts the waiting and running jobs of each model, from the consumers of the stream `JOBS`.

use std::collections::BTreeMap;

use emberline_protocol::subject::{JOBS_STREAM, model_of_jobs};
use serde::Serialize;
use serde_json::{Value, json};

use crate::nats::access::NatsConnection;
use crate::nats::jetstream_api::{self, JetStreamError};

/// The jobs of one model, in all lanes together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Queue {
    pub(super) model: String,
    pub(super) waiting: u64,
    pub(super) running: u64,
}

/// The queues of all models that have or had a worker, sorted by name.
pub(super) async fn queues(client: &NatsConnection) -> Result<Vec<Queue>, JetStreamError> {
    let mut consumers = Vec::new();
    loop {
        let list = format!("CONSUMER.LIST.{JOBS_STREAM}");
        let page = match jetstream_api::call(client, &list, &json!({"offset": consumers.len()})).await {
            Err(error) if error.is_not_found() => break,
            page => page?,
        };
        let batch = page["consumers"].as_array().cloned().unwrap_or_default();
        let total = page["total"].as_u64().unwrap_or_default();
        let is_last = batch.is_empty();
        consumers.extend(batch);
        if is_last || consumers.len() as u64 >= total {
            break;
        }
    }
    Ok(summed(&consumers))
}

fn summed(consumers: &[Value]) -> Vec<Queue> {
    let mut queues = BTreeMap::<String, Queue>::new();
    for consumer in consumers {
        let subject = consumer["config"]["filter_subject"].as_str();
        // Somebody else's consumer.
        let Some(model) = subject.and_then(model_of_jobs) else { continue };
        let count = |field: &str| consumer[field].as_u64().unwrap_or_default();
        let empty = || Queue { model: model.clone(), waiting: 0, running: 0 };
        let queue = queues.entry(model.clone()).or_insert_with(empty);
        queue.waiting += count("num_pending");
        queue.running += count("num_ack_pending");
    }
    queues.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_models_consumers_are_summed_up() {
        let consumer = |subject: &str, pending: u64, running: u64| json!({"config": {"filter_subject": subject}, "num_pending": pending, "num_ack_pending": running});
        let all = [
            consumer("emberline.jobs.b=2E5.0", 2, 1),
            consumer("emberline.jobs.a.0", 0, 0),
            consumer("elsewhere", 9, 9),
            consumer("emberline.jobs.b=2E5.3", 3, 4),
        ];
        let queue = |model: &str, waiting, running| Queue { model: model.into(), waiting, running };
        assert_eq!(summed(&all), [queue("a", 0, 0), queue("b.5", 5, 5)]);
    }
}
