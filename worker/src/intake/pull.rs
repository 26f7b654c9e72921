//! Pulls jobs from a model's lanes: one subscription, and pull requests to the consumer of each lane.

use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::consumer::pull::BatchConfig;
use async_nats::jetstream::{Context, Message};
use async_nats::{StatusCode, Subject, Subscriber};
use emberline_protocol::lane::Lane;
use futures::StreamExt;
use tokio::time::Instant;

use super::lanes::{Lanes, PullRequest, STANDS};
use crate::nats::Nats;

/// The subscription that jobs arrive on, and the requests that are open.
pub(super) struct PullSubscription {
    context: Context,
    consumers: [PullConsumer; 4],
    /// Prefix of reply subjects; the lane's number follows.
    inbox: String,
    subscriber: Subscriber,
    lanes: Lanes,
}

/// What arrived on the subscription.
pub(super) enum Delivery {
    Job(Box<Message>),
    /// A request has ended without more jobs.
    Ended,
    /// The requests are void, for this reason.
    Void(String),
}

impl PullSubscription {
    /// Subscribes, without requesting anything yet.
    pub(super) async fn open(nats: &Nats, model: &str) -> Result<Self, String> {
        let consumers = nats.consumers(model).await.map_err(|e| e.to_string())?;
        let inbox = nats.client().new_inbox();
        let subscriber = nats.client().subscribe(format!("{inbox}.*")).await.map_err(|e| e.to_string())?;
        let context = nats.jetstream().clone();
        Ok(Self { context, consumers, inbox, subscriber, lanes: Lanes::new() })
    }

    /// Makes the requests that are due while this many slots are free.
    pub(super) async fn ask(&mut self, free: u32) -> Result<(), String> {
        for (lane, ask) in self.lanes.ask(free, Instant::now()) {
            let config = match ask {
                PullRequest::Waiting(jobs) => {
                    BatchConfig { batch: jobs as usize, no_wait: true, ..Default::default() }
                }
                PullRequest::Next => BatchConfig { batch: 1, expires: Some(STANDS), ..Default::default() },
            };
            let inbox = Subject::from(format!("{}.{lane}", self.inbox));
            self.consumers[lane.index()].request_batch(config, inbox).await.map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    /// Whether a requested job may still arrive.
    pub(super) fn is_asking(&self) -> bool {
        self.lanes.overdue().is_some()
    }

    pub(super) async fn next(&mut self) -> Delivery {
        let overdue = self.lanes.overdue();
        let silence = async {
            match overdue {
                Some(time) => tokio::time::sleep_until(time).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            message = self.subscriber.next() => match message {
                Some(message) => self.read(message),
                None => Delivery::Void("the subscription was closed".to_owned()),
            },
            () = silence => Delivery::Void("nats-server is silent".to_owned()),
        }
    }

    fn read(&mut self, message: async_nats::Message) -> Delivery {
        // A job arrives with the subject that it was published to, whose last token is its lane, too.
        let lane = message.subject.rsplit('.').next().and_then(|number| number.parse::<Lane>().ok());
        match (message.status, lane) {
            (None | Some(StatusCode::OK), lane) => {
                if let Some(lane) = lane {
                    self.lanes.delivered(lane);
                }
                Delivery::Job(Box::new(Message { message, context: self.context.clone() }))
            }
            // No job waits, or none arrived in time.
            (Some(StatusCode::NOT_FOUND | StatusCode::TIMEOUT), Some(lane)) => {
                self.lanes.ended(lane);
                Delivery::Ended
            }
            (Some(status), _) => {
                Delivery::Void(format!("{status} {}", message.description.unwrap_or_default()))
            }
        }
    }

    /// Ends the subscription; jobs in flight on this connection still come from [`PullSubscription::rest`].
    pub(super) async fn leave(&mut self) -> bool {
        self.subscriber.drain().await.is_ok()
    }

    /// The next delivery after [`PullSubscription::leave`].
    pub(super) async fn rest(&mut self) -> Option<Delivery> {
        let message = self.subscriber.next().await?;
        Some(self.read(message))
    }
}
