//! A model's lanes in NATS: one subscription, and requests to the consumer of each lane.

use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::consumer::pull::BatchConfig;
use async_nats::jetstream::{Context, Message};
use async_nats::{StatusCode, Subject, Subscriber};
use emberline_protocol::lane::Lane;
use futures::StreamExt;
use tokio::time::Instant;

use super::lanes::{Ask, Lanes, STANDS};
use crate::nats::Bus;

/// One subscription to which the consumers deliver, and what was asked of them.
pub(super) struct Pull {
    context: Context,
    consumers: [PullConsumer; 4],
    /// Answers for a lane come on a subject below this that ends with the lane's number.
    inbox: String,
    subscriber: Subscriber,
    lanes: Lanes,
}

/// What came in on a pull's subscription.
pub(super) enum Delivery {
    Job(Box<Message>),
    /// A request has ended: there was no more.
    Ended,
    /// The requests are void.
    Void(String),
}

impl Pull {
    /// Subscribes; nothing is asked for yet.
    pub(super) async fn open(bus: &Bus, model: &str) -> Result<Self, String> {
        let consumers = bus.consumers(model).await.map_err(|e| e.to_string())?;
        let inbox = bus.client().new_inbox();
        let subscriber = bus.client().subscribe(format!("{inbox}.*")).await.map_err(|e| e.to_string())?;
        let context = bus.jetstream().clone();
        Ok(Self { context, consumers, inbox, subscriber, lanes: Lanes::new() })
    }

    /// Asks for what is to be asked for while so many slots are free.
    pub(super) async fn ask(&mut self, free: u32) -> Result<(), String> {
        for (lane, ask) in self.lanes.ask(free, Instant::now()) {
            let config = match ask {
                Ask::Waiting(jobs) => {
                    BatchConfig { batch: jobs as usize, no_wait: true, ..Default::default() }
                }
                Ask::Next => BatchConfig { batch: 1, expires: Some(STANDS), ..Default::default() },
            };
            let inbox = Subject::from(format!("{}.{lane}", self.inbox));
            self.consumers[lane.index()].request_batch(config, inbox).await.map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    /// Whether something was asked for that may still come.
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
        // A job comes with the subject that it was published to, which ends in the same way.
        let lane = message.subject.rsplit('.').next().and_then(|number| number.parse::<Lane>().ok());
        match (message.status, lane) {
            (None | Some(StatusCode::OK), lane) => {
                if let Some(lane) = lane {
                    self.lanes.delivered(lane);
                }
                Delivery::Job(Box::new(Message { message, context: self.context.clone() }))
            }
            // Nothing waits, or nothing came in time.
            (Some(StatusCode::NOT_FOUND | StatusCode::TIMEOUT), Some(lane)) => {
                self.lanes.ended(lane);
                Delivery::Ended
            }
            (Some(status), _) => {
                Delivery::Void(format!("{status} {}", message.description.unwrap_or_default()))
            }
        }
    }

    /// Ends the subscription; what is on its way on this connection comes from [`Pull::rest`].
    pub(super) async fn leave(&mut self) -> bool {
        self.subscriber.drain().await.is_ok()
    }

    /// What was on its way, after [`Pull::leave`].
    pub(super) async fn rest(&mut self) -> Option<Delivery> {
        let message = self.subscriber.next().await?;
        Some(self.read(message))
    }
}
