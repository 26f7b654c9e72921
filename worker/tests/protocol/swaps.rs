//! Models that come, go and fail, with engines that do so when they are told.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use emberline_inference::device::Backend;
use emberline_inference::engine::inference::{CacheDtype, PrecisionChoice};
use emberline_inference::engine::simulated::SimulatedEngine;
use emberline_inference::engine::{
    Engine, EngineError, EngineStats, EventSink, PreparedRequest, Preprocessor,
};
use emberline_inference::memory::NotEnough;
use emberline_inference::speculation::Speculation;
use emberline_nats_access::{NatsAccess, Proof};
use emberline_protocol::bytes::Bytes;
use emberline_protocol::control::Control;
use emberline_protocol::dead_letter::Prompts;
use emberline_protocol::event::Usage;
use emberline_protocol::heartbeat::ModelState::{Draining, Failed, Loading, Serving};
use emberline_protocol::heartbeat::ServedModel;
use emberline_protocol::jetstream_domain::JetStreamDomain;
use emberline_protocol::subject::JobId;
use emberline_test_kit::nats::NatsServer;
use emberline_test_kit::nats::WORKER_SEED;
use emberline_worker::config::Config;
use emberline_worker::nats::NatsConfig;
use emberline_worker::registry::file::ModelList;
use emberline_worker::registry::load::{LoadFailure, Loader};
use emberline_worker::registry::options::Settings;
use emberline_worker::serve::{ServeError, Signals, serve};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::support::{Models, Relay, job_for, text_of, within};

const A: &str = "simulated-a";
const B: &str = "simulated-b";
/// The wish for so many words breaks an engine.
const POISON: u32 = 13;
/// A model with so many slots is loaded when the test says so.
const GATED: usize = 5;

/// Makes engines, as many as there is room for.
struct Engines {
    room: usize,
    alive: Arc<AtomicUsize>,
    /// How many engines break at their poison.
    fragile: Arc<AtomicUsize>,
    /// Whether they break because their device is lost.
    lose_device: bool,
    gate: mpsc::Sender<()>,
    gated: Arc<Mutex<mpsc::Receiver<()>>>,
}

struct Tracked {
    engine: SimulatedEngine,
    alive: Arc<AtomicUsize>,
    fragile: bool,
    loses_device: bool,
}

impl Engines {
    fn new(room: usize, fragile: usize) -> Self {
        let (gate, gated) = mpsc::channel();
        let fragile = Arc::new(AtomicUsize::new(fragile));
        Self {
            room,
            alive: Arc::default(),
            fragile,
            lose_device: false,
            gate,
            gated: Arc::new(Mutex::new(gated)),
        }
    }

    fn loader(&self) -> Loader {
        let (room, alive, fragile) = (self.room, Arc::clone(&self.alive), Arc::clone(&self.fragile));
        let (gated, loses_device) = (Arc::clone(&self.gated), self.lose_device);
        Arc::new(move |options, _| {
            let slots = options.settings.slots.map_or(2, usize::from);
            if slots == GATED {
                gated.lock().unwrap().recv().unwrap();
            }
            if alive.load(Ordering::SeqCst) >= room {
                let none = Bytes(0);
                let shortage =
                    NotEnough { needed: Bytes(9), weights: Bytes(9), cache: none, available: none };
                return Err(LoadFailure::Memory(shortage));
            }
            alive.fetch_add(1, Ordering::SeqCst);
            let fragile =
                fragile.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
            Ok(Box::new(Tracked {
                engine: SimulatedEngine::new(options.name.clone(), slots, 50.0, 0),
                alive: Arc::clone(&alive),
                fragile: fragile.is_ok(),
                loses_device,
            }))
        })
    }

    fn alive(&self) -> usize {
        self.alive.load(Ordering::SeqCst)
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.alive.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Engine for Tracked {
    fn models(&self) -> Vec<ServedModel> {
        self.engine.models()
    }
    fn name(&self) -> &'static str {
        self.engine.name()
    }
    fn device(&self) -> String {
        self.engine.device()
    }
    fn capacity(&self) -> usize {
        self.engine.capacity()
    }
    fn preprocessor(&self) -> Arc<dyn Preprocessor> {
        self.engine.preprocessor()
    }
    fn submit(&mut self, prepared: PreparedRequest, events: EventSink) {
        if self.fragile && prepared.job.request.max_tokens == Some(POISON) {
            panic!("no more memory");
        }
        self.engine.submit(prepared, events);
    }
    fn cancel(&mut self, job: &JobId) -> Option<Usage> {
        self.engine.cancel(job)
    }
    fn has_work(&self) -> bool {
        self.engine.has_work()
    }
    fn step(&mut self) -> Result<(), EngineError> {
        self.engine.step()
    }
    fn stats(&self) -> EngineStats {
        self.engine.stats()
    }
    fn close_all(&mut self) {
        self.engine.close_all();
    }
    fn lost_device(&mut self) -> Option<String> {
        self.loses_device.then(|| "a reset".to_owned())
    }
}

/// A worker in this process.
struct Worker {
    stop: watch::Sender<u32>,
    task: JoinHandle<Result<(), ServeError>>,
}

impl Worker {
    fn start(nats: &NatsServer, models: &Models, engines: &Engines) -> Self {
        let settings = Settings {
            backend: Backend::Cpu,
            adapter: None,
            slots: Some(2),
            quantize: None,
            precision: PrecisionChoice::Exact,
            cache_memory: None,
            max_memory: None,
            cache_dtype: CacheDtype::Auto,
            context_length: None,
            prefill_budget: None,
            speculation: Speculation::Auto,
            tokens_per_s: 50.0,
        };
        let file: PathBuf = models.path.clone();
        let config = Config {
            nats: NatsConfig {
                access: NatsAccess::new(
                    vec![nats.address().parse().unwrap()],
                    "worker".to_owned(),
                    Proof::nkey("WORKER_SEED", WORKER_SEED.to_owned()),
                ),
                domain: JetStreamDomain::default(),
            },
            models: ModelList::new(Vec::new(), Some(file), settings),
            drain: Duration::from_secs(30),
            alive_timeout: Duration::from_secs(15),
            dead_letter_prompts: Prompts::Keep,
            http_listen: None,
        };
        let (stop, stopped) = watch::channel(0);
        let signals = Signals { stop: stopped, hang_up: watch::channel(0).1 };
        let loader = engines.loader();
        let task = tokio::spawn(async move { serve(&config, loader, signals).await });
        Self { stop, task }
    }

    async fn end(self) -> Result<(), ServeError> {
        self.stop.send_replace(1);
        within("the worker's end", self.task).await.unwrap()
    }
}

/// A list of models with their slots.
fn with_slots(models: &Models, list: &[(&str, usize)]) {
    let entry =
        |(name, slots)| format!("[[model]]\nname = '{name}'\nsource = 'simulated'\nslots = {slots}\n");
    models.write(&list.iter().copied().map(entry).collect::<String>());
}

#[tokio::test]
async fn a_panicking_engine_of_the_only_model_ends_the_worker_and_its_jobs_go_elsewhere() {
    let nats = NatsServer::start().await.unwrap();
    let (relay, models) = (Relay::new(&nats).await, Models::new(&[(A, "simulated")]));
    let worker = Worker::start(&nats, &models, &Engines::new(1, 1));
    relay.wait_for_states(&[(A, Serving)]).await;
    let mut events = relay.send(&job_for(A, 1, POISON)).await;
    let error = within("the worker's end", worker.task).await.unwrap().unwrap_err().to_string();
    assert!(error.contains("model 'simulated-a'") && error.contains("no more memory"), "{error}");
    assert_eq!(relay.heartbeats().await, []);

    let healthy = Worker::start(&nats, &models, &Engines::new(1, 0));
    // The broken worker did not take it again.
    text_of(&events.rest().await, 2);
    healthy.end().await.unwrap();
}

#[tokio::test]
async fn a_panicking_engine_is_loaded_again_and_the_other_models_do_not_notice() {
    let nats = NatsServer::start().await.unwrap();
    let (relay, models) = (Relay::new(&nats).await, Models::new(&[(A, "simulated")]));
    // What has panicked is never freed, so there must be room for three.
    let engines = Engines::new(3, 2);
    let worker = Worker::start(&nats, &models, &engines);
    relay.wait_for_states(&[(A, Serving)]).await;
    models.set(&[(A, "simulated"), (B, "simulated")]);
    relay.wait_for_states(&[(A, Serving), (B, Serving)]).await;
    let long = job_for(A, 1, 30_000);
    let mut stream = relay.send(&long).await;
    let mut events = vec![stream.next().await];

    let mut poisoned = relay.send(&job_for(B, 2, POISON)).await;
    let heartbeats = relay.wait_for_states(&[(A, Serving), (B, Loading)]).await;
    let reason = heartbeats.states[1].reason.as_deref().unwrap_or_default();
    assert!(reason.contains("no more memory"), "{reason}");
    text_of(&poisoned.rest().await, 2);
    relay.wait_for_states(&[(A, Serving), (B, Serving)]).await;

    relay.control(&long.id, Control::Cancel).await;
    events.extend(stream.rest().await);
    text_of(&events, 1);
    worker.end().await.unwrap();
}

/// Whatever else it serves: the others may share the device, and only another process can use that again.
#[tokio::test]
async fn a_lost_device_ends_the_worker_and_its_jobs_go_elsewhere() {
    let nats = NatsServer::start().await.unwrap();
    let both = [(A, "simulated"), (B, "simulated")];
    let (relay, models) = (Relay::new(&nats).await, Models::new(&both));
    let worker = Worker::start(&nats, &models, &Engines { lose_device: true, ..Engines::new(2, 2) });
    relay.wait_for_states(&[(A, Serving), (B, Serving)]).await;
    let mut events = relay.send(&job_for(B, 1, POISON)).await;
    let error = within("the worker's end", worker.task).await.unwrap().unwrap_err().to_string();
    assert!(error.contains("model 'simulated-b': the device is lost: a reset"), "{error}");
    assert_eq!(relay.heartbeats().await, []);

    let healthy = Worker::start(&nats, &models, &Engines::new(2, 0));
    text_of(&events.rest().await, 2);
    healthy.end().await.unwrap();
}

#[tokio::test]
async fn a_changed_model_serves_until_its_successor_does() {
    let nats = NatsServer::start().await.unwrap();
    let (relay, models) = (Relay::new(&nats).await, Models::new(&[(A, "simulated")]));
    let engines = Engines::new(2, 0);
    let worker = Worker::start(&nats, &models, &engines);
    relay.wait_for_states(&[(A, Serving)]).await;
    let long = job_for(A, 1, 30_000);
    let mut stream = relay.send(&long).await;
    let mut events = vec![stream.next().await];

    with_slots(&models, &[(A, GATED)]);
    let heartbeats = relay.wait_for_states(&[(A, Loading), (A, Serving)]).await;
    assert_eq!((heartbeats.models.len(), heartbeats.capacity), (1, 2));
    assert_eq!(text_of(&relay.send(&job_for(A, 2, 1)).await.rest().await, 1), "The");
    engines.gate.send(()).unwrap();
    // The old one has the long job still, the new one takes what comes.
    let heartbeats = relay.wait_for_states(&[(A, Serving), (A, Draining)]).await;
    assert_eq!((heartbeats.models.len(), heartbeats.capacity, heartbeats.active), (1, 5, 1));
    assert_eq!(text_of(&relay.send(&job_for(A, 3, 1)).await.rest().await, 1), "The");
    relay.control(&long.id, Control::Cancel).await;
    events.extend(stream.rest().await);
    text_of(&events, 1);
    relay.wait_for_states(&[(A, Serving)]).await;
    assert_eq!(engines.alive(), 1);
    worker.end().await.unwrap();
    assert_eq!(engines.alive(), 0);
}

#[tokio::test]
async fn without_room_for_both_the_old_one_goes_first() {
    let nats = NatsServer::start().await.unwrap();
    let (relay, models) = (Relay::new(&nats).await, Models::new(&[(A, "simulated")]));
    let engines = Engines::new(1, 0);
    let worker = Worker::start(&nats, &models, &engines);
    relay.wait_for_states(&[(A, Serving)]).await;

    // The same name, changed.
    let long = job_for(A, 1, 30_000);
    let mut stream = relay.send(&long).await;
    stream.next_tokens(1).await;
    with_slots(&models, &[(A, 3)]);
    let heartbeats = relay.wait_for_states(&[(A, Loading), (A, Draining)]).await;
    assert!(heartbeats.states[0].reason.as_deref().is_some_and(|reason| reason.contains("memory")));
    relay.control(&long.id, Control::Cancel).await;
    stream.rest().await;
    let heartbeats = relay.wait_for_states(&[(A, Serving)]).await;
    assert_eq!(heartbeats.capacity, 3);

    // Another in its place.
    with_slots(&models, &[(B, 2)]);
    relay.wait_for_states(&[(B, Serving)]).await;
    assert_eq!(engines.alive(), 1);

    // One more than there is room for, until the first is removed.
    with_slots(&models, &[(A, 3), (B, 2)]);
    relay.wait_for_states(&[(A, Failed), (B, Serving)]).await;
    with_slots(&models, &[(A, 3)]);
    relay.wait_for_states(&[(A, Serving)]).await;
    worker.end().await.unwrap();
    assert_eq!(engines.alive(), 0);
}

#[tokio::test]
async fn a_model_that_is_removed_while_it_loads_is_never_served() {
    let nats = NatsServer::start().await.unwrap();
    let (relay, models) = (Relay::new(&nats).await, Models::new(&[(A, "simulated")]));
    let engines = Engines::new(2, 0);
    let worker = Worker::start(&nats, &models, &engines);
    relay.wait_for_states(&[(A, Serving)]).await;
    with_slots(&models, &[(A, 2), (B, GATED)]);
    relay.wait_for_states(&[(A, Serving), (B, Loading)]).await;
    with_slots(&models, &[(A, 2)]);
    relay.wait_for_states(&[(A, Serving), (B, Draining)]).await;
    engines.gate.send(()).unwrap();
    relay.wait_for_states(&[(A, Serving)]).await;
    assert_eq!(engines.alive(), 1);
    worker.end().await.unwrap();
}
