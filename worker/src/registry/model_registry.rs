//! Brings the models that are wanted and those that are there together.
//!
//! Each model that is loading, serving or draining is a member; an [`Instance`] lives its life and
//! reports. A member whose options change goes on until its successor serves. One that the memory
//! has no room for beside others is loaded when one of them has gone. A model that can't be served
//! is remembered with the reason, and the others go on; the worker ends only when nothing is left
//! of what it was started with.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use emberline_protocol::heartbeat::ModelState;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::file::Wanted;
use super::instance::{Failure, Instance, Report, Shared};
use super::load::LoadFailure;
use super::options::ModelOptions;
use super::status::{Board, Loaded, Row};
use crate::intake::Phase;

/// Pause before a model whose engine has failed is loaded again; doubled with each failure.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// An engine that has run for this long has got over what made it fail.
const STEADY: Duration = Duration::from_secs(300);

/// Nothing is served any more, or ever was; this is the last reason.
#[derive(Debug, thiserror::Error)]
#[error("model '{name}': {failure}")]
pub struct Hopeless {
    /// The model.
    pub name: String,
    /// Why it is not served.
    pub failure: Failure,
}

/// The models of a worker.
pub struct Fleet {
    shared: Arc<Shared>,
    wanted: Wanted,
    members: Vec<Member>,
    failed: BTreeMap<String, Failed>,
    board: watch::Sender<Board>,
    next_id: u64,
    /// How many models have freed what they held.
    freed: u64,
    /// Whether any model was ever served; before that, failing to load is the end.
    has_served: bool,
    reports: mpsc::UnboundedReceiver<(u64, Report)>,
    reporter: mpsc::UnboundedSender<(u64, Report)>,
}

struct Member {
    id: u64,
    options: Arc<ModelOptions>,
    phase: Arc<watch::Sender<Phase>>,
    stage: Stage,
    /// Told to finish its jobs and go.
    leaving: bool,
    /// Since when it has been serving.
    since: Instant,
    loaded: Option<Loaded>,
    /// [`Fleet::freed`] when it began.
    freed: u64,
    /// How often in a row its engine has failed before.
    crashes: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Loading,
    Serving,
    /// Without jobs, and being unloaded.
    Drained,
}

/// A model that is wanted, but can't be served.
struct Failed {
    reason: String,
    crashes: u32,
    again: Again,
}

/// When a model that has failed is tried again; all are when the configuration is read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Again {
    Never,
    /// When another has freed its memory.
    WithRoom,
    At(Instant),
}

impl Fleet {
    /// No model yet.
    pub fn new(shared: Arc<Shared>) -> Self {
        let (reporter, reports) = mpsc::unbounded_channel();
        Self {
            shared,
            wanted: Wanted::default(),
            members: Vec::new(),
            failed: BTreeMap::new(),
            board: watch::Sender::default(),
            next_id: 0,
            freed: 0,
            has_served: false,
            reports,
            reporter,
        }
    }

    /// What the models are doing, and its changes.
    pub fn board(&self) -> watch::Receiver<Board> {
        self.board.subscribe()
    }

    /// Serves what is wanted; returns when nothing can be.
    pub async fn run(&mut self, wanted: &mut watch::Receiver<Wanted>) -> Hopeless {
        loop {
            let now = wanted.borrow_and_update().clone();
            self.adopt(now);
            self.start_missing();
            self.publish();
            let again = self.failed.values().filter_map(|failed| match failed.again {
                Again::At(time) => Some(time),
                _ => None,
            });
            let again = again.min();
            tokio::select! {
                Ok(()) = wanted.changed() => {}
                Some((id, report)) = self.reports.recv() => if let Some(end) = self.hear(id, report) {
                    return end;
                },
                () = tokio::time::sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => {}
            }
        }
    }

    /// Lets all models finish their jobs; returns when there are none, and the memory may be freed.
    pub async fn drain(&mut self) {
        self.members.iter_mut().for_each(Member::leave);
        // A load can't be stopped, and nobody waits for it.
        self.members.retain(|member| member.loaded.is_some());
        self.failed.clear();
        while self.members.iter().any(|member| member.stage != Stage::Drained) {
            self.publish();
            let Some((id, report)) = self.reports.recv().await else { return };
            self.hear(id, report);
        }
    }

    /// Waits until what [`Fleet::drain`] has left is unloaded.
    pub async fn unload(&mut self) {
        while !self.members.is_empty() {
            let Some((id, report)) = self.reports.recv().await else { return };
            self.hear(id, report);
        }
    }

    /// Takes over what is wanted now, and lets those go that are not.
    fn adopt(&mut self, wanted: Wanted) {
        if wanted.revision != self.wanted.revision {
            // Whatever was wrong may have been put right.
            self.failed.clear();
        }
        self.wanted = wanted;
        for member in &mut self.members {
            let wanted = self.wanted.models.get(&member.options.name);
            let goes = match wanted {
                None => true,
                // One that serves waits for its successor.
                Some(options) => member.stage == Stage::Loading && *options != *member.options,
            };
            if goes && !member.leaving {
                tracing::info!(model = %member.options.name, "no longer wanted: finishing its jobs");
                member.leave();
            }
        }
    }

    /// Starts what is wanted, not there, and due.
    fn start_missing(&mut self) {
        let missing: Vec<ModelOptions> = self
            .wanted
            .models
            .values()
            .filter(|&options| {
                // One that has failed is there until it says so.
                let there = self.members.iter().any(|m| !m.leaving && *m.options == *options);
                let waits = self.failed.get(&options.name).is_some_and(|failed| match failed.again {
                    Again::At(time) => time > Instant::now(),
                    Again::Never | Again::WithRoom => true,
                });
                !there && !waits
            })
            .cloned()
            .collect();
        for options in missing {
            let crashes = self.failed.remove(&options.name).map_or(0, |failed| failed.crashes);
            self.start(options, crashes);
        }
    }

    fn start(&mut self, options: ModelOptions, crashes: u32) {
        tracing::info!(model = %options.name, "loading");
        let member = Member {
            id: self.next_id,
            options: Arc::new(options),
            phase: Arc::new(watch::Sender::new(Phase::Serving)),
            stage: Stage::Loading,
            leaving: false,
            since: Instant::now(),
            loaded: None,
            freed: self.freed,
            crashes,
        };
        self.next_id += 1;
        let instance = Instance {
            id: member.id,
            options: Arc::clone(&member.options),
            shared: Arc::clone(&self.shared),
            phase: Arc::clone(&member.phase),
            reports: self.reporter.clone(),
        };
        instance.spawn();
        self.members.push(member);
    }

    /// Takes note of what a member says; an answer is the end of all.
    fn hear(&mut self, id: u64, report: Report) -> Option<Hopeless> {
        let member = self.members.iter_mut().find(|member| member.id == id)?;
        match report {
            Report::Serving(loaded) => {
                member.loaded = Some(loaded);
                member.since = Instant::now();
                member.stage = Stage::Serving;
                if !member.leaving {
                    self.has_served = true;
                    let name = member.options.name.clone();
                    self.replace(&name, id);
                }
                None
            }
            Report::Drained => {
                member.stage = Stage::Drained;
                None
            }
            Report::Ended(ended) => {
                let position = self.members.iter().position(|member| member.id == id)?;
                let member = self.members.remove(position);
                if member.loaded.is_some() || ended.is_ok() {
                    self.freed += 1;
                    self.failed.retain(|_, failed| failed.again != Again::WithRoom);
                }
                match ended {
                    Err(failure) if self.misses(&member) => self.lose(&member, failure),
                    Err(failure) => {
                        tracing::info!(model = %member.options.name, %failure, "gone");
                        None
                    }
                    Ok(()) => None,
                }
            }
        }
    }

    /// Lets the older members of this name go.
    fn replace(&mut self, name: &str, successor: u64) {
        let older = |member: &&mut Member| member.options.name == name && member.id < successor;
        self.members.iter_mut().filter(older).for_each(Member::leave);
    }

    /// Whether a member that is gone leaves a gap.
    fn misses(&self, gone: &Member) -> bool {
        let same_name = |member: &Member| member.stays() && member.options.name == gone.options.name;
        let wanted = self.wanted.models.get(&gone.options.name);
        // While another of its name serves, only what is wanted now is missed.
        let is_gap =
            wanted.is_some_and(|options| *options == *gone.options || !self.members.iter().any(same_name));
        is_gap && !gone.leaving
    }

    /// Takes note of a member that has failed; an answer is the end of all.
    fn lose(&mut self, member: &Member, failure: Failure) -> Option<Hopeless> {
        let name = member.options.name.clone();
        let reason = one_line(&failure.to_string());
        tracing::error!(model = %name, %reason, "not served");
        let alone = !self.members.iter().any(Member::stays);
        let has_crashed = matches!(failure, Failure::Engine(_));
        if alone && (has_crashed || !self.has_served) {
            return Some(Hopeless { name, failure });
        }
        let (crashes, again) = match &failure {
            Failure::Engine(_) => {
                let crashes = if member.since.elapsed() > STEADY { 0 } else { member.crashes };
                let pause = FIRST_PAUSE.saturating_mul(1 << crashes.min(10)).min(LONGEST_PAUSE);
                (crashes + 1, Again::At(Instant::now() + pause))
            }
            // Something was freed while it looked.
            Failure::Load(LoadFailure::Memory(_)) if member.freed != self.freed => {
                (0, Again::At(Instant::now()))
            }
            Failure::Load(LoadFailure::Memory(_)) => {
                // No room beside the one that it is to replace: that one goes first.
                let same_name = |other: &&mut Member| other.options.name == name;
                self.members.iter_mut().filter(same_name).for_each(Member::leave);
                (0, Again::WithRoom)
            }
            _ => (0, Again::Never),
        };
        self.failed.insert(name, Failed { reason, crashes, again });
        None
    }

    fn publish(&self) {
        let makes_room = self.members.iter().any(|member| member.leaving);
        let failed = self.failed.iter().filter_map(|(name, failed)| {
            let options = self.wanted.models.get(name)?;
            let state = match failed.again {
                Again::WithRoom if makes_room => ModelState::Loading,
                Again::At(_) => ModelState::Loading,
                _ => ModelState::Failed,
            };
            let reason = Some(failed.reason.clone());
            Some(Row { name: name.clone(), state, reason, engine: options.engine(), loaded: None })
        });
        let mut models: Vec<Row> = failed.chain(self.members.iter().rev().map(Member::row)).collect();
        models.sort_by(|a, b| a.name.cmp(&b.name));
        self.board.send_replace(Board { models, problem: self.wanted.problem.clone() });
    }
}

impl Member {
    /// Whether it serves or will.
    fn stays(&self) -> bool {
        !self.leaving && self.stage != Stage::Drained
    }

    /// Has it finish its jobs and go.
    fn leave(&mut self) {
        self.leaving = true;
        self.phase.send_if_modified(|phase| {
            let serving = *phase == Phase::Serving;
            if serving {
                *phase = Phase::Draining;
            }
            serving
        });
    }

    fn row(&self) -> Row {
        let state = match self.stage {
            Stage::Loading if !self.leaving => ModelState::Loading,
            Stage::Serving if !self.leaving => ModelState::Serving,
            _ => ModelState::Draining,
        };
        Row {
            name: self.options.name.clone(),
            state,
            reason: None,
            engine: self.options.engine(),
            loaded: self.loaded.clone(),
        }
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
