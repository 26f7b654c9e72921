//! `emberline doctor`: says what is wrong with a deployment, and what helps.
//!
//! [`server`] looks at each nats-server before anybody logs in, [`tls`] at its certificate; [`session`] logs in, and
//! [`permissions`], [`jetstream`] and [`workers`] look at what is there then. [`device`] is about this machine's GPU,
//! [`function`] and [`streaming`] about the function's URL, [`edge`] about that of an edge. Each judges by itself; this module has them take their
//! turns, and leaves out what can't be known any more. Nothing is changed anywhere.

mod device;
mod edge;
mod function;
mod http;
mod jetstream;
mod permissions;
mod report;
mod server;
mod session;
mod streaming;
mod tls;
mod workers;

use std::collections::BTreeSet;
use std::process::ExitCode;

use clap::Args;
use emberline_protocol::heartbeat::Heartbeat;
use emberline_protocol::permissions::Role;
use emberline_protocol::subject::WORKERS_STREAM;
use url::Url;

use crate::cache::Cache;
use crate::nats::access::{AccessArgs, AccessError, NatsAccess};
use crate::nats::stored;
use crate::nats_setup::RoleChoice;
use crate::running_stack;
use crate::runtime::runtime;
use function::Function;
use permissions::Denied;
use report::{Check, Report};
use session::Session;

/// The exit code for a check that could not be made at all.
const COULD_NOT_RUN: u8 = 2;
/// What needs a connection to NATS.
const ON_NATS: [&str; 7] = ["permissions", "latency", "streams", "consumers", "usage", "clock", "workers"];

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// The function's URL [default: the running stack's]
    #[arg(long, value_name = "URL")]
    url: Option<Url>,
    /// A key for the function [default: the running stack's]
    #[arg(long, env = "EMBERLINE_API_KEY", hide_env_values = true, value_name = "KEY")]
    api_key: Option<String>,
    /// URL of an edge, as in the function's nats_url
    #[arg(long, value_name = "URL")]
    edge: Option<Url>,
    /// What the NATS user is for
    #[arg(long, value_enum, default_value_t = RoleChoice::Worker)]
    role: RoleChoice,
    /// The models that have to be served, separated by commas; a worker's user may be for these alone
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    models: Vec<String>,
    /// Whether the worker's user is for the models of --models alone
    #[arg(long, requires = "models")]
    pool: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    access: AccessArgs,
}

/// What to look at.
struct Target {
    nats: Option<NatsAccess>,
    role: Role,
    models: Vec<String>,
    edge: Option<Url>,
    function: Option<Function>,
}

/// Prints what is wrong; the exit code says whether anything is.
pub(crate) fn run(args: &DoctorArgs) -> ExitCode {
    let examined = || {
        let target = target(args, &Cache::from_env()?)?;
        let report = Report::from(runtime()?.block_on(examine(&target)));
        let text = if args.json { serde_json::to_string_pretty(&report)? } else { report.to_string() };
        println!("{text}");
        anyhow::Ok(report)
    };
    match examined() {
        Ok(report) if report.faults == 0 => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            COULD_NOT_RUN.into()
        }
    }
}

fn target(args: &DoctorArgs, cache: &Cache) -> anyhow::Result<Target> {
    let nats = match args.access.resolve_as(args.role.name(), cache) {
        Ok(access) => Some(access),
        // A URL alone is enough.
        Err(AccessError::NoStack) if args.url.is_some() || args.edge.is_some() => None,
        Err(error) => return Err(error.into()),
    };
    // The running stack's, unless the options are about another one.
    let stack = if args.access.name_servers() { None } else { running_stack::find(cache)? };
    let url = args.url.clone().or_else(|| stack.as_ref()?.url.parse().ok());
    let key = args.api_key.clone().or_else(|| stack.map(|stack| stack.api_key));
    let of_role = if args.pool { &args.models[..] } else { &[] };
    Ok(Target {
        nats,
        role: args.role.role(of_role)?,
        models: args.models.clone(),
        edge: args.edge.clone(),
        function: url.map(|url| Function::new(url, key)),
    })
}

async fn examine(target: &Target) -> Vec<Check> {
    let mut checks = Vec::new();
    let mut session = None;
    match &target.nats {
        Some(access) => session = examine_servers(access, &mut checks).await,
        None => checks.push(Check::skipped("connection", "no nats-server is named; give --nats ADDRESS")),
    }
    match (&mut session, &target.nats) {
        (Some(session), Some(access)) => examine_bus(session, access, target, &mut checks).await,
        (None, Some(_)) => checks.extend(ON_NATS.map(|name| Check::skipped(name, "not connected to NATS"))),
        (_, None) => {}
    }
    if let Some(edge) = &target.edge {
        checks.extend(edge::examine(edge).await);
    }
    checks.push(device::examine());
    match &target.function {
        Some(function) => examine_function(function, target, session.as_ref(), &mut checks).await,
        None => checks.push(Check::skipped("function", "no URL is given; give --url URL")),
    }
    checks
}

/// Looks at each server; a connection to the first that lets us in.
async fn examine_servers(access: &NatsAccess, checks: &mut Vec<Check>) -> Option<Session> {
    let mut session = None;
    for server in access.servers() {
        let name = server::name(server);
        let probe = server::probe(server, access.tls()).await;
        let has_fault = probe.has_fault();
        let mut found = probe.checks;
        if let Some(info) = probe.info {
            found.extend(info.judge(access.domain()));
            found.push(if has_fault {
                Check::skipped("login", "the connection has a fault already")
            } else {
                match session::log_in(access, server, &info).await {
                    Ok(made) => {
                        session.get_or_insert(made);
                        Check::ok("login", format!("as {}", access.user()))
                    }
                    Err(check) => check,
                }
            });
        }
        checks.extend(found.into_iter().map(|check| check.of_server(&name)));
    }
    session
}

/// Looks at what is in NATS.
async fn examine_bus(session: &mut Session, access: &NatsAccess, target: &Target, checks: &mut Vec<Check>) {
    let role = &target.role;
    let (found, denied) = permissions::examine(session, access, role).await;
    checks.extend(found);
    let nats = &session.nats;
    checks.push(jetstream::latency(nats, role).await);
    let heartbeats = heartbeats(session, role, &denied).await;
    let mut models: BTreeSet<String> = target.models.iter().cloned().collect();
    models.extend(heartbeats.iter().flat_map(|heartbeats| workers::served(heartbeats)));
    let models = Vec::from_iter(models);
    match jetstream::layout(nats, role, &denied, &models).await {
        Ok(found) => {
            checks.extend(found);
            checks.extend(jetstream::room_and_clock(nats, role, &denied).await);
        }
        Err(check) => {
            checks.push(check);
            let skipped = ["consumers", "usage", "clock"];
            checks.extend(skipped.map(|name| Check::skipped(name, "JetStream does not answer")));
        }
    }
    match heartbeats {
        Ok(heartbeats) => checks.extend(workers::judge(&heartbeats, &target.models)),
        Err(check) => checks.push(check),
    }
}

async fn heartbeats(session: &Session, role: &Role, denied: &Denied) -> Result<Vec<Heartbeat>, Check> {
    let subject = session.nats.subject_in_domain(&format!("$JS.API.DIRECT.GET.{WORKERS_STREAM}"));
    if *role == Role::Admin || !denied.allows(&subject) {
        return Err(Check::skipped(
            "workers",
            "this user may not read heartbeats; check as worker or function",
        ));
    }
    stored::heartbeats(&session.nats).await.map_err(|error| {
        Check::fault("workers", error.to_string(), "look whether most servers of a cluster are up")
    })
}

async fn examine_function(
    function: &Function,
    target: &Target,
    session: Option<&Session>,
    checks: &mut Vec<Check>,
) {
    checks.extend(function.certificate().await);
    let asked = function.clone();
    let (found, models) = match tokio::task::spawn_blocking(move || asked.examine()).await {
        Ok(found) => found,
        Err(error) => return checks.push(Check::skipped("function", error.to_string())),
    };
    let is_reached = !found.iter().any(Check::is_fault);
    checks.extend(found);
    let wanted = target.models.iter().find(|model| models.contains(model));
    checks.push(match wanted.or(models.first()) {
        Some(model) if is_reached => {
            // Only a worker's user may read how long an answer took.
            let session = session.filter(|_| matches!(target.role, Role::Worker | Role::WorkerPool(_)));
            streaming::examine(function, model, session).await
        }
        _ => Check::skipped("streaming", "the function gives no answers to us"),
    });
}
