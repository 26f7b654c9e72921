//! Keys are made, listed, replaced and taken back by the `emberline` command.

use anyhow::{Context as _, Result, ensure};
use async_nats::jetstream;
use emberline_protocol::key::{KeyId, KeyRecord, hash};
use emberline_protocol::subject::{KEYS_STREAM, key};
use emberline_test_kit::cli::{emberline, new_key};
use emberline_test_kit::nats::NatsServer;
use serde_json::Value;

async fn list(nats: &NatsServer) -> Result<Vec<Value>> {
    Ok(serde_json::from_str(&emberline(nats, &["keys", "list", "--json"]).await?)?)
}

/// What is stored of a key.
async fn record(nats: &NatsServer, secret: &str) -> Result<KeyRecord> {
    let client = nats.function_client().await?;
    let subject = format!("$JS.API.DIRECT.GET.{KEYS_STREAM}.{}", key(&hash(secret.as_bytes())));
    Ok(serde_json::from_slice(&client.request(subject, "".into()).await?.payload)?)
}

#[tokio::test]
async fn a_key_is_shown_once_and_known_by_its_hash() -> Result<()> {
    let nats = NatsServer::start().await?;
    assert!(list(&nats).await?.is_empty());
    let settings =
        ["--expires", "30d", "--models", "a,b", "--requests-per-minute", "60", "--jobs-at-once", "4"];
    let secret = new_key(&nats, "ada", &settings).await?;
    let digits = secret.strip_prefix("sk-emb-").context("no prefix")?;
    assert!(digits.len() == 43 && digits.bytes().all(|b| b.is_ascii_alphanumeric()), "{secret}");

    let stored = record(&nats, &secret).await?;
    assert_eq!((stored.id, stored.name.as_str()), (KeyId::of_key(secret.as_bytes()), "ada"));
    assert_eq!(stored.expires.map(|expires| expires - stored.created), Some(30 * 86_400_000));
    assert_eq!(stored.models, Some(vec!["a".to_owned(), "b".to_owned()]));
    assert_eq!((stored.limits.requests_per_minute, stored.limits.jobs_at_once), (Some(60), Some(4)));
    assert!(secret.ends_with(&stored.last_four));

    // The key itself is neither in the lists nor on the disk.
    let table = emberline(&nats, &["keys", "list"]).await?;
    assert!(table.contains("ada") && table.contains("60 requests a minute"), "{table}");
    let one = emberline(&nats, &["keys", "show", "ada"]).await?;
    for text in [table, one, format!("{:?}", list(&nats).await?)] {
        assert!(!text.contains(digits), "{text}");
    }
    Ok(())
}

#[tokio::test]
async fn a_key_is_replaced_and_taken_back() -> Result<()> {
    let nats = NatsServer::start().await?;
    let first = new_key(&nats, "ada", &["--tokens-per-day", "1000"]).await?;
    let taken = new_key(&nats, "ada", &[]).await.unwrap_err().to_string();
    assert!(taken.contains("rotate"), "{taken}");

    let second = emberline(&nats, &["keys", "rotate", "ada"]).await?;
    ensure!(second != first, "the same key");
    assert!(record(&nats, &first).await?.revoked.is_some());
    let replaced = record(&nats, &second).await?;
    assert_eq!((replaced.revoked, replaced.limits.tokens_per_day), (None, Some(1000)));

    // With a grace time both are valid for a while.
    let third: Value = serde_json::from_str(
        &emberline(&nats, &["keys", "rotate", "ada", "--grace", "1h", "--json"]).await?,
    )?;
    let second_now = record(&nats, &second).await?;
    assert!(second_now.revoked.is_none() && second_now.expires.is_some());
    let ambiguous = emberline(&nats, &["keys", "revoke", "ada"]).await.unwrap_err().to_string();
    assert!(ambiguous.contains(second_now.id.as_str()), "{ambiguous}");

    let id = third["id"].as_str().context("id")?;
    emberline(&nats, &["keys", "revoke", id]).await?;
    emberline(&nats, &["keys", "revoke", second_now.id.as_str()]).await?;
    let states: Vec<_> = list(&nats).await?.into_iter().map(|key| key["state"].clone()).collect();
    assert_eq!(states, ["revoked", "revoked", "revoked"]);
    let ended = emberline(&nats, &["keys", "rotate", id]).await.unwrap_err().to_string();
    assert!(ended.contains("already revoked"), "{ended}");
    let unknown = emberline(&nats, &["keys", "revoke", "bob"]).await.unwrap_err().to_string();
    assert!(unknown.contains("no key has the name or id 'bob'"), "{unknown}");
    // The name is free again.
    new_key(&nats, "ada", &[]).await?;
    Ok(())
}

#[tokio::test]
async fn a_key_that_could_not_be_used_is_not_made() -> Result<()> {
    let nats = NatsServer::start().await?;
    for (settings, word) in [
        (&["--expires", "2020-01-01"][..], "past"),
        (&["--expires", "soon"], "30d"),
        (&["--jobs-at-once", "0"], "jobs-at-once"),
    ] {
        let error = new_key(&nats, "ada", settings).await.unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    assert!(list(&nats).await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn more_keys_than_one_answer_brings_are_all_listed() -> Result<()> {
    let nats = NatsServer::start().await?;
    let secret = new_key(&nats, "key-0", &[]).await?;
    let template = record(&nats, &secret).await?;
    let jetstream = jetstream::new(nats.admin_client().await?);
    let mut stored = Vec::new();
    for n in 1..2100 {
        let name = format!("key-{n}");
        let record = KeyRecord { id: KeyId::of_key(name.as_bytes()), name: name.clone(), ..template.clone() };
        let payload = serde_json::to_vec(&record)?;
        stored.push(jetstream.publish(key(&hash(name.as_bytes())), payload.into()).await?);
    }
    for stored in stored {
        stored.await?;
    }
    let names: std::collections::HashSet<_> =
        list(&nats).await?.iter().filter_map(|key| Some(key["name"].as_str()?.to_owned())).collect();
    assert_eq!(names.len(), 2100);
    Ok(())
}
