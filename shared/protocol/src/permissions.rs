//! Who may do what in NATS: the permissions of each role, as data.
//!
//! The users in deploy/nats.conf and those that `emberline nats user add` prints are made of these tables, and a
//! test tries each subject of one role as every other one.
//!
//! NATS checks the subjects that a client publishes to and subscribes to. It checks neither what a request
//! says nor the subject to which it wants the reply. So a role that may read a stream in batches (a bare
//! `$JS.API.DIRECT.GET.<stream>`) may read all of it, and one that may read by subject may give a subject with
//! wildcards, which brings the newest message that matches.

use std::fmt;

use crate::counter::{LIMITS_STREAM, LONG_LIMITS_STREAM};
use crate::jetstream_domain::JetStreamDomain;
use crate::lane::Lane;
use crate::streams::{Consumer, Layout, consumers, streams};
use crate::subject::{
    self, CONTROL_SUBJECTS, DEAD_STREAM, EVENTS_STREAM, HEARTBEATS_SUBJECTS, JOBS_STREAM, KEPT_STREAM,
    KEYS_STREAM, KEYS_SUBJECTS, REQUESTS_STREAM, SUMMARIES_SUBJECTS, USAGE_STREAM, USAGE_SUBJECTS,
    WITHDRAWN_STREAM, WITHDRAWN_SUBJECTS, WORKERS_STREAM,
};

/// Every stored request, by its exact subject.
const REQUEST: &str = "$KV.requests.*";
/// Where the leaders of the records' streams are asked for sequences: [`crate::read_index`].
const READ_INDEX_OF_KEYS: &str = "$KV.keys.read_index";
const READ_INDEX_OF_REQUESTS: &str = "$KV.requests.read_index";

/// The streams that workers use, and whose configuration they therefore look at. Looking at a stream tells its
/// subjects, too, so the ids of stored requests and the hashes of keys are not for them.
pub const WORKER_STREAMS: [&str; 9] = [
    JOBS_STREAM,
    EVENTS_STREAM,
    KEPT_STREAM,
    WITHDRAWN_STREAM,
    DEAD_STREAM,
    WORKERS_STREAM,
    LIMITS_STREAM,
    LONG_LIMITS_STREAM,
    USAGE_STREAM,
];

/// What a NATS user is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// Any instance of the function.
    Function,
    /// Workers of any model, `emberline status` and `emberline bench`.
    Worker,
    /// Workers of these models only.
    WorkerPool(Vec<String>),
    /// The commands that keep keys, read usage, set up NATS, and run jobs again.
    Admin,
}

/// What a user may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permissions {
    /// Where it may publish.
    pub publish: Vec<Grant>,
    /// Where it may subscribe.
    pub subscribe: Vec<Grant>,
    /// The requests that it may answer, once each; `None` for none.
    pub answers: Option<Answers>,
}

/// Requests that a user may answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answers {
    /// What they ask.
    pub purpose: &'static str,
    /// How long after the request, as nats-server writes a duration.
    pub within: &'static str,
}

/// Subjects that belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// What they are for.
    pub purpose: &'static str,
    /// The subjects, with NATS's wildcards.
    pub subjects: Vec<String>,
}

fn grant<S: Into<String>>(purpose: &'static str, subjects: impl IntoIterator<Item = S>) -> Grant {
    Grant { purpose, subjects: subjects.into_iter().map(Into::into).collect() }
}

/// `$JS.API.<verb>.<stream>` for each stream.
fn api(verb: &str, streams: impl IntoIterator<Item = &'static str>) -> Vec<String> {
    streams.into_iter().map(|stream| format!("$JS.API.{verb}.{stream}")).collect()
}

/// Reading a stream by exact subject: `subjects` is what its subjects look like.
fn direct_get(stream: &str, subjects: &str) -> String {
    format!("$JS.API.DIRECT.GET.{stream}.{subjects}")
}

impl Role {
    /// The permissions of a user of this name.
    pub fn permissions(&self, user: &str) -> Permissions {
        let inbox = grant("The answers to its own requests.", [format!("{}.>", subject::inbox_prefix(user))]);
        match self {
            Self::Function => function(inbox),
            Self::Worker => worker(&Scope::every_model(), inbox),
            Self::WorkerPool(models) => worker(&Scope::of(models), inbox),
            Self::Admin => admin(inbox),
        }
    }

    /// What it does, in a comment above a user's configuration.
    fn purpose(&self) -> String {
        match self {
            Self::Function => "Enqueues jobs, counts them, steers them and withdraws them; asks for tokens; keeps stored \
                requests. Reads events, summaries of heartbeats, counters, and the record of a key or of a request whose subject \
                it knows. It creates nothing and writes into no event log."
                .to_owned(),
            Self::Worker => "Takes jobs of any model, charges them, writes and reads events and heartbeats. It creates \
                the consumers of its models, and no stream."
                .to_owned(),
            Self::WorkerPool(models) => format!(
                "Takes jobs of these models only: {}. Events and counters are not told apart by model.",
                models.join(", ")
            ),
            Self::Admin => "`emberline keys`, `usage`, `jobs` and `nats setup`: keeps the keys, reads what was used, sets \
                up what lives in NATS, runs jobs again that were given up or throws them away."
                .to_owned(),
        }
    }
}

fn function(inbox: Grant) -> Permissions {
    Permissions {
        publish: vec![
            grant("Enqueue jobs and steer them.", [subject::JOBS_SUBJECTS, CONTROL_SUBJECTS]),
            grant("Say that nobody waits for a job.", [WITHDRAWN_SUBJECTS]),
            grant("Say that a job's worker is gone.", [subject::ORPHANS_SUBJECTS]),
            grant(
                "Count.",
                ["emberline.limits.>".to_owned()]
                    .into_iter()
                    .chain(api("DIRECT.GET", [LIMITS_STREAM, LONG_LIMITS_STREAM])),
            ),
            grant(
                "Read the record of a key that a client sent, as the stream's leader knows it.",
                [direct_get(KEYS_STREAM, KEYS_SUBJECTS), READ_INDEX_OF_KEYS.to_owned()],
            ),
            grant("Ask workers for tokens.", [subject::TOKENS_SUBJECTS]),
            grant(
                "Read summaries of heartbeats and event logs, in batches.",
                api("DIRECT.GET", [WORKERS_STREAM, EVENTS_STREAM, KEPT_STREAM]),
            ),
            grant(
                "Store requests whose answer can be asked for again, and read the one with a known id.",
                [REQUEST.to_owned(), direct_get(REQUESTS_STREAM, REQUEST)],
            ),
            grant("Have a worker erase the log of a request that is deleted.", [subject::ERASE_SUBJECT]),
        ],
        subscribe: vec![
            grant("Follow jobs.", [subject::LIVE_SUBJECTS]),
            grant("Be asked what a job's client has.", [subject::SENT_SUBJECTS]),
            inbox,
        ],
        answers: Some(Answers {
            purpose: "Tell a worker that takes a job over what was sent.",
            within: "10s",
        }),
    }
}

/// The models of a worker's user.
struct Scope {
    /// The names and the filters of its consumers.
    consumers: Vec<(String, String)>,
    /// The names of its models in subjects.
    models: Vec<String>,
    /// Where its workers write their heartbeats and sum them up.
    heartbeats: Vec<String>,
}

impl Scope {
    fn every_model() -> Self {
        let consumers = vec![("*".to_owned(), subject::JOBS_SUBJECTS.to_owned())];
        let heartbeats = [HEARTBEATS_SUBJECTS, SUMMARIES_SUBJECTS].map(str::to_owned).to_vec();
        Self { consumers, models: vec!["*".to_owned()], heartbeats }
    }

    fn of(models: &[String]) -> Self {
        let names = |consumer: Consumer| (consumer.durable_name, consumer.filter_subject);
        Self {
            consumers: models.iter().flat_map(|model| consumers(model)).map(names).collect(),
            models: models.iter().map(|model| subject::model_token(model)).collect(),
            heartbeats: subject::heartbeats("*", models.iter().map(String::as_str))
                .into_iter()
                .chain(subject::heartbeats("*", []))
                .chain(models.iter().map(|model| subject::model_summary(model)))
                .collect(),
        }
    }

    /// Subjects that have a consumer's name in them.
    fn by_consumer(&self, subject: impl Fn(&str) -> String) -> Vec<String> {
        self.consumers.iter().map(|(name, _)| subject(name)).collect()
    }
}

fn worker(scope: &Scope, inbox: Grant) -> Permissions {
    let by_model =
        |prefix: &str| scope.models.iter().map(|model| format!("{prefix}.{model}")).collect::<Vec<_>>();
    let creates = scope
        .consumers
        .iter()
        .map(|(name, filter)| format!("$JS.API.CONSUMER.CREATE.{JOBS_STREAM}.{name}.{filter}"));
    let inspects = scope.by_consumer(|name| format!("$JS.API.CONSUMER.INFO.{JOBS_STREAM}.{name}"));
    let publish = vec![
        grant("Look whether the streams are as they have to be.", api("STREAM.INFO", WORKER_STREAMS)),
        grant("Create its models' consumers, and look at them.", creates.chain(inspects)),
        grant(
            "Take jobs, report progress, acknowledge.",
            scope
                .by_consumer(|name| format!("$JS.API.CONSUMER.MSG.NEXT.{JOBS_STREAM}.{name}"))
                .into_iter()
                .chain(scope.by_consumer(|name| format!("$JS.ACK.{JOBS_STREAM}.{name}.>"))),
        ),
        grant(
            "Correct the counters of a job that has ended, and tell what it has used.",
            ["emberline.limits.>", USAGE_SUBJECTS],
        ),
        grant(
            "Publish events, write event logs.",
            [subject::LIVE_SUBJECTS, subject::EVENTS_SUBJECTS, subject::KEPT_SUBJECTS],
        ),
        grant("Write heartbeats, and sum them up for its models.", scope.heartbeats.iter().cloned()),
        grant(
            "Read heartbeats and their summaries, in batches; so does `emberline status`.",
            api("DIRECT.GET", [WORKERS_STREAM]),
        ),
        grant(
            "Ask a job's relay what it has sent, and find out whether the job's worker is there.",
            [subject::SENT_SUBJECTS, CONTROL_SUBJECTS],
        ),
        grant(
            "Read the logs of jobs that other workers have begun: in batches, and the last chunk from the leader.",
            api("DIRECT.GET", [EVENTS_STREAM, KEPT_STREAM])
                .into_iter()
                .chain(api("STREAM.MSG.GET", [EVENTS_STREAM, KEPT_STREAM])),
        ),
        grant(
            "Find out whether a job was withdrawn, or its stored request cancelled or deleted, as the leader knows it.",
            [
                direct_get(WITHDRAWN_STREAM, WITHDRAWN_SUBJECTS),
                direct_get(REQUESTS_STREAM, REQUEST),
                READ_INDEX_OF_REQUESTS.to_owned(),
            ],
        ),
        grant("Set jobs aside that can't be served.", by_model("emberline.dead")),
    ];
    Permissions {
        publish,
        subscribe: vec![
            grant("What relays say.", [CONTROL_SUBJECTS]),
            grant("Jobs whose worker is gone.", by_model("emberline.orphans")),
            grant("Requests for tokens.", by_model("emberline.tokens")),
            grant("Requests to erase the log of a request that was deleted.", [subject::ERASE_SUBJECT]),
            inbox,
        ],
        answers: Some(Answers {
            purpose: "Answer whoever asks for tokens, or for a log to be erased.",
            within: "2m",
        }),
    }
}

fn admin(inbox: Grant) -> Permissions {
    let all = || streams(&Layout::default()).map(|stream| stream.name);
    let volatile = streams(&Layout::default()).into_iter().filter(|stream| stream.volatile);
    let first = Lane::default();
    Permissions {
        publish: vec![
            grant(
                "Keep the keys.",
                ["$KV.keys.*".to_owned()].into_iter().chain(api("DIRECT.GET", [KEYS_STREAM])),
            ),
            grant("Read what was used.", api("DIRECT.GET", [USAGE_STREAM])),
            grant(
                "`emberline usage export`: keep the position of an export as a consumer.",
                [
                    format!("$JS.API.CONSUMER.CREATE.{USAGE_STREAM}.*"),
                    format!("$JS.API.CONSUMER.INFO.{USAGE_STREAM}.*"),
                    format!("$JS.API.CONSUMER.MSG.NEXT.{USAGE_STREAM}.*"),
                    format!("$JS.ACK.{USAGE_STREAM}.*.>"),
                ],
            ),
            grant(
                "Look at the streams and buckets, create and change them.",
                api("STREAM.INFO", all())
                    .into_iter()
                    .chain(api("STREAM.CREATE", all()))
                    .chain(api("STREAM.UPDATE", all())),
            ),
            grant(
                "Look at the consumers of jobs, create and change them.",
                [
                    format!("$JS.API.CONSUMER.LIST.{JOBS_STREAM}"),
                    format!("$JS.API.CONSUMER.INFO.{JOBS_STREAM}.*"),
                    format!("$JS.API.CONSUMER.CREATE.{JOBS_STREAM}.*.{}", subject::JOBS_SUBJECTS),
                ],
            ),
            grant(
                "Make anew what need not outlive a restart of nats-server.",
                api("STREAM.DELETE", volatile.map(|stream| stream.name)),
            ),
            grant(
                "Read and remove jobs that were given up.",
                api("DIRECT.GET", [DEAD_STREAM]).into_iter().chain(api("STREAM.MSG.DELETE", [DEAD_STREAM])),
            ),
            grant(
                "Queue one again, keep it alive, read its events.",
                [format!("emberline.jobs.*.{first}"), CONTROL_SUBJECTS.to_owned()]
                    .into_iter()
                    .chain(api("DIRECT.GET", [EVENTS_STREAM])),
            ),
        ],
        subscribe: vec![inbox],
        answers: None,
    }
}

impl Permissions {
    /// The same for a user of a server that is not part of `domain`, in which the streams are.
    #[must_use]
    pub fn in_domain(mut self, domain: &JetStreamDomain) -> Self {
        for subject in self.publish.iter_mut().flat_map(|grant| &mut grant.subjects) {
            *subject = domain.subject(subject).into_owned();
        }
        self
    }

    /// Whether `subject` may be published to.
    pub fn may_publish(&self, subject: &str) -> bool {
        is_granted(&self.publish, subject)
    }

    /// Whether `subject`, which may have wildcards, may be subscribed to.
    pub fn may_subscribe(&self, subject: &str) -> bool {
        is_granted(&self.subscribe, subject)
    }
}

fn is_granted(grants: &[Grant], subject: &str) -> bool {
    grants.iter().flat_map(|grant| &grant.subjects).any(|granted| covers(granted, subject))
}

/// Whether everything that `subject` matches is matched by `granted`, too.
fn covers(granted: &str, subject: &str) -> bool {
    let (mut granted, mut subject) = (granted.split('.'), subject.split('.'));
    loop {
        match (granted.next(), subject.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some("*"), Some(token)) if token != ">" => {}
            (Some(granted), Some(token)) if granted == token => {}
            _ => return false,
        }
    }
}

/// A user of nats-server; its text is its entry in the list `users` of nats.conf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Its name.
    pub name: String,
    /// How nats-server knows it.
    pub identity: Identity,
    /// What it is for.
    pub role: Role,
    /// The domain in which the streams are, for a server that is not part of it.
    pub domain: JetStreamDomain,
}

/// How nats-server knows a user, as the configuration has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// The public key of its NKEY, or a variable such as `$EMBERLINE_WORKER_NKEY`. It has no name then.
    Nkey(String),
    /// Its name, and its password: a variable, or a bcrypt hash in single quotes.
    Password(String),
}

/// The users of deploy/nats.conf.
pub fn default_users() -> [User; 3] {
    [("function", Role::Function), ("worker", Role::Worker), ("admin", Role::Admin)].map(|(name, role)| {
        User {
            name: name.to_owned(),
            identity: Identity::Nkey(format!("$EMBERLINE_{}_NKEY", name.to_uppercase())),
            role,
            domain: JetStreamDomain::default(),
        }
    })
}

/// Longest line of a comment.
const WIDTH: usize = 100;

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Permissions { publish, subscribe, answers } =
            self.role.permissions(&self.name).in_domain(&self.domain);
        let (name, purpose) = (&self.name, self.role.purpose());
        match &self.identity {
            Identity::Nkey(key) => {
                comment(f, 4, &format!("{name}: {purpose}"))?;
                writeln!(f, "    {{\n      nkey: {key}")?;
            }
            Identity::Password(password) => {
                comment(f, 4, &purpose)?;
                writeln!(f, "    {{\n      user: \"{name}\"\n      password: {password}")?;
            }
        }
        writeln!(f, "      permissions: {{")?;
        list(f, "publish", &publish)?;
        list(f, "subscribe", &subscribe)?;
        if let Some(Answers { purpose, within }) = answers {
            comment(f, 8, purpose)?;
            writeln!(f, "        allow_responses: {{max: 1, expires: \"{within}\"}}")?;
        }
        write!(f, "      }}\n    }}")
    }
}

fn list(f: &mut fmt::Formatter<'_>, name: &str, grants: &[Grant]) -> fmt::Result {
    writeln!(f, "        {name}: [")?;
    for Grant { purpose, subjects } in grants {
        comment(f, 10, purpose)?;
        for subject in subjects {
            writeln!(f, "          \"{subject}\"")?;
        }
    }
    writeln!(f, "        ]")
}

/// Writes a comment in lines of at most [`WIDTH`] characters.
fn comment(f: &mut fmt::Formatter<'_>, indent: usize, text: &str) -> fmt::Result {
    let start = format!("{:indent$}#", "");
    let mut line = start.clone();
    for word in text.split_whitespace() {
        if line.len() + 1 + word.len() > WIDTH && line.len() > start.len() {
            writeln!(f, "{line}")?;
            line.clone_from(&start);
        }
        line.push(' ');
        line.push_str(word);
    }
    writeln!(f, "{line}")
}

#[cfg(test)]
#[path = "permissions_tests.rs"]
mod tests;
