//! deploy/nats.conf is what the tables say, and the tables say what they are meant to.

use super::*;
use crate::key::KeyId;
use crate::subject::JobId;

const CONFIG: &str = include_str!("../../../deploy/nats.conf");

#[test]
fn the_configuration_has_the_users_of_the_tables() {
    let users = default_users().map(|user| user.to_string()).join("\n\n");
    let (_, rest) = CONFIG.split_once("  users: [\n").unwrap();
    let (found, _) = rest.rsplit_once("\n  ]\n").unwrap();
    assert_eq!(found, users, "put this between the brackets of `users` in deploy/nats.conf:\n{users}\n");
}

#[test]
fn a_pattern_covers_what_is_within_it() {
    for (granted, within) in [
        ("a.*", "a.b"),
        ("a.*", "a.*"),
        ("a.>", "a.b.c"),
        ("a.>", "a.>"),
        ("a.>", "a.*"),
        ("a.*.c", "a.b.c"),
        ("a.b", "a.b"),
    ] {
        assert!(covers(granted, within), "{granted} {within}");
    }
    for (granted, beyond) in [
        ("a.*", "a.>"),
        ("a.*", "a"),
        ("a.*", "a.b.c"),
        ("a.>", "a"),
        ("a.b", "a.*"),
        ("a.b", ">"),
        ("*", ">"),
    ] {
        assert!(!covers(granted, beyond), "{granted} {beyond}");
    }
}

fn pool() -> Permissions {
    Role::WorkerPool(vec!["a".into(), "b.c".into()]).permissions("pool")
}

#[test]
fn a_pool_takes_and_acknowledges_jobs_of_its_models_only() {
    let pool = pool();
    for model in ["a", "b=2Ec"] {
        for lane in Lane::ALL {
            let name = format!("worker-{model}-{lane}");
            for subject in [
                format!("$JS.API.CONSUMER.MSG.NEXT.JOBS.{name}"),
                format!("$JS.API.CONSUMER.CREATE.JOBS.{name}.emberline.jobs.{model}.{lane}"),
                format!("$JS.API.CONSUMER.INFO.JOBS.{name}"),
                format!("$JS.ACK.JOBS.{name}.1.2.3.4.5"),
                format!("emberline.dead.{model}"),
                format!("$KV.workers.{model}.0123456789abcdef"),
                format!("$KV.workers.v{}={model}", crate::PROTOCOL_VERSION),
            ] {
                assert!(pool.may_publish(&subject), "{subject}");
            }
        }
        for subject in [format!("emberline.tokens.{model}"), format!("emberline.orphans.{model}")] {
            assert!(pool.may_subscribe(&subject), "{subject}");
        }
    }
    assert!(pool.may_publish(subject::heartbeats("w", []).first().unwrap()));
    for subject in [
        "$JS.API.CONSUMER.MSG.NEXT.JOBS.worker-c-0",
        "$JS.API.CONSUMER.CREATE.JOBS.worker-a-0.emberline.jobs.c.0",
        "$JS.API.CONSUMER.CREATE.JOBS.worker-c-0.emberline.jobs.a.0",
        "$JS.API.CONSUMER.CREATE.JOBS.worker-a-0",
        "$JS.API.CONSUMER.CREATE.JOBS",
        "$JS.API.CONSUMER.DURABLE.CREATE.JOBS.worker-a-0",
        "$JS.ACK.JOBS.worker-c-0.1.2.3.4.5",
        "$JS.API.CONSUMER.INFO.JOBS.worker-c-0",
        "emberline.dead.c",
        "$KV.workers.c.0123456789abcdef",
        "$KV.workers.v5=c",
        "$KV.workers.0123456789abcdef",
    ] {
        assert!(!pool.may_publish(subject), "{subject}");
    }
    for subject in [
        "emberline.tokens.c",
        "emberline.tokens.*",
        "emberline.orphans.c",
        "emberline.orphans.*",
        "_INBOX_worker.>",
        "emberline.events.*",
    ] {
        assert!(!pool.may_subscribe(subject), "{subject}");
    }
    assert!(pool.may_subscribe("_INBOX_pool.>"));
}

#[test]
fn no_role_but_the_admin_creates_changes_or_removes_a_stream() {
    for role in [Role::Function, Role::Worker, Role::WorkerPool(vec!["a".into()])] {
        let permissions = role.permissions("user");
        for stream in streams(&Layout::default()) {
            for verb in ["CREATE", "UPDATE", "DELETE", "PURGE", "RESTORE", "SNAPSHOT", "MSG.DELETE"] {
                let subject = format!("$JS.API.STREAM.{verb}.{}", stream.name);
                assert!(!permissions.may_publish(&subject), "{role:?} {subject}");
            }
        }
    }
    let admin = Role::Admin.permissions("admin");
    for stream in streams(&Layout::default()) {
        assert!(!admin.may_publish(&format!("$JS.API.STREAM.PURGE.{}", stream.name)));
        assert_eq!(admin.may_publish(&format!("$JS.API.STREAM.DELETE.{}", stream.name)), stream.volatile);
    }
}

#[test]
fn the_function_writes_no_event_and_reads_a_record_by_its_subject_only() {
    let job = JobId::from_random(7);
    let function = Role::Function.permissions("function");
    for subject in [subject::events(&job), subject::kept_events(&job), subject::live(&job)] {
        assert!(!function.may_publish(&subject), "{subject}");
    }
    assert!(function.may_subscribe(&subject::live(&job)) && function.may_publish(&subject::withdrawn(&job)));
    for (stream, record) in [(REQUESTS_STREAM, subject::request(&job)), (KEYS_STREAM, subject::key(&[1; 32]))]
    {
        assert!(function.may_publish(&direct_get(stream, &record)), "{record}");
        for subject in api("DIRECT.GET", [stream]).into_iter().chain(api("STREAM.INFO", [stream])) {
            assert!(!function.may_publish(&subject), "{subject}");
        }
    }
    assert!(!function.may_publish(&subject::usage(&KeyId::of_key(b"k"))));
}

/// One message with a rollup header takes the place of a whole stream.
#[test]
fn only_workers_write_where_a_message_may_take_the_place_of_others() {
    for stream in streams(&Layout::default()).into_iter().filter(|stream| stream.allow_rollup_hdrs) {
        for role in [Role::Function, Role::Admin] {
            let permissions = role.permissions("user");
            for subject in stream.subjects {
                assert!(!permissions.may_publish(subject), "{role:?} {subject}");
                let concrete = subject.replace('*', "x");
                assert!(!permissions.may_publish(&concrete), "{role:?} {concrete}");
            }
        }
    }
}

#[test]
fn a_user_is_written_as_nats_server_reads_it() {
    let user = |identity| {
        let role = Role::WorkerPool(vec!["m".into()]);
        User { name: "pool".into(), identity, role, domain: JetStreamDomain::default() }.to_string()
    };
    let by_nkey = user(Identity::Nkey("UABC".into()));
    assert!(by_nkey.starts_with("    # pool: Takes jobs of these models only: m."), "{by_nkey}");
    let by_password = user(Identity::Password("'$2b$04$x'".into()));
    assert!(by_password.starts_with("    # Takes jobs of these models only: m."), "{by_password}");
    for (text, identity) in [
        (by_nkey, &["      nkey: UABC"][..]),
        (by_password, &["      user: \"pool\"", "      password: '$2b$04$x'"]),
    ] {
        for line in identity.iter().chain(&[
            "          \"$JS.ACK.JOBS.worker-m-3.>\"",
            "          \"_INBOX_pool.>\"",
            "        allow_responses: {max: 1, expires: \"2m\"}",
        ]) {
            assert!(text.lines().any(|found| found == *line), "{line}\n{text}");
        }
        assert!(text.lines().all(|line| line.len() <= WIDTH));
    }
}

#[test]
fn a_user_of_a_leaf_node_asks_the_streams_domain_only() {
    let hub: JetStreamDomain = "hub".parse().unwrap();
    for role in [Role::Function, Role::Worker, Role::WorkerPool(vec!["m".into()]), Role::Admin] {
        let (own, of_hub) = (role.permissions("user"), role.permissions("user").in_domain(&hub));
        let subjects = |permissions: &Permissions| -> Vec<String> {
            permissions.publish.iter().flat_map(|grant| grant.subjects.clone()).collect()
        };
        for (own, of_hub) in subjects(&own).iter().zip(subjects(&of_hub)) {
            assert_eq!(of_hub, hub.subject(own));
            assert!(!["$JS.API.", "$KV."].iter().any(|prefix| of_hub.starts_with(prefix)), "{of_hub}");
        }
        assert_eq!(own.subscribe, of_hub.subscribe);
    }
    let user = User {
        name: "function".into(),
        identity: Identity::Nkey("U".into()),
        role: Role::Function,
        domain: hub,
    };
    assert!(user.to_string().contains("\"$JS.hub.API.$KV.requests.*\""), "{user}");
}
