//! A nats-server's operator who keeps its users in JWTs, with one account.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use data_encoding::BASE64URL_NOPAD;
use nkeys::KeyPair;
use serde_json::{Value, json};

/// An operator and an account.
#[derive(Debug)]
pub struct Operator {
    operator: KeyPair,
    account: KeyPair,
}

impl Default for Operator {
    fn default() -> Self {
        Self { operator: KeyPair::new_operator(), account: KeyPair::new_account() }
    }
}

impl Operator {
    /// The part of nats-server's configuration that names both.
    pub fn config(&self) -> Result<String> {
        let operator = jwt(&self.operator, &self.operator, "operator", json!({}), None)?;
        let limits = json!({
            "limits": {"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true,
                "conn": -1, "leaf": -1, "mem_storage": -1, "disk_storage": -1},
        });
        let account = jwt(&self.account, &self.operator, "account", limits, None)?;
        let name = self.account.public_key();
        Ok(format!("operator: {operator}\nresolver: MEMORY\nresolver_preload: {{ {name}: {account} }}\n"))
    }

    /// The text of a .creds file of a new user, whose JWT expires at that time if one is given.
    pub fn credentials(&self, expires: Option<SystemTime>) -> Result<String> {
        let user = KeyPair::new_user();
        let limits = json!({"subs": -1, "data": -1, "payload": -1});
        let jwt = jwt(&user, &self.account, "user", limits, expires)?;
        Ok(format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
            user.seed()?
        ))
    }
}

fn jwt(
    subject: &KeyPair,
    issuer: &KeyPair,
    kind: &str,
    mut of: Value,
    expires: Option<SystemTime>,
) -> Result<String> {
    let seconds = |time: SystemTime| anyhow::Ok(time.duration_since(UNIX_EPOCH)?.as_secs());
    of["type"] = kind.into();
    of["version"] = 2.into();
    let mut claims = json!({
        "jti": subject.public_key(),
        "iat": seconds(SystemTime::now())?,
        "iss": issuer.public_key(),
        "name": kind,
        "sub": subject.public_key(),
        "nats": of,
    });
    if let Some(expires) = expires {
        claims["exp"] = seconds(expires)?.into();
    }
    let head = json!({"typ": "JWT", "alg": "ed25519-nkey"});
    let text = [head, claims].map(|part| BASE64URL_NOPAD.encode(part.to_string().as_bytes())).join(".");
    let signature = issuer.sign(text.as_bytes())?;
    Ok(format!("{text}.{}", BASE64URL_NOPAD.encode(&signature)))
}
