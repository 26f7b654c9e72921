//! What proves who connects.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use async_nats::Auth;
use data_encoding::BASE64URL_NOPAD;
use nkeys::{KeyPair, KeyPairType};
use serde::Deserialize;
use time::{Date, OffsetDateTime};

use crate::args::Secret;

/// What proves who connects.
#[derive(Clone)]
pub enum Proof {
    /// Nothing: nats-server asks for nothing, or takes the client's certificate for it.
    None,
    /// A user's password.
    Password {
        /// The variable that had it.
        variable: &'static str,
        /// The password.
        text: String,
    },
    /// A token.
    Token {
        /// The variable that had it.
        variable: &'static str,
        /// The token.
        text: String,
    },
    /// An NKEY, which signs what nats-server sends.
    Nkey(NkeySource),
    /// A .creds file: a JWT of the user, and the NKEY that is named in it.
    Credentials(PathBuf),
}

/// Where the seed of an NKEY is.
#[derive(Debug, Clone)]
pub enum NkeySource {
    /// In a variable.
    Seed(Secret),
    /// In a file.
    File(PathBuf),
}

/// Why there is no proof.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ProofError {
    #[error("{variable} is not valid UTF-8; set it to text")]
    Encoding { variable: &'static str },
    #[error("both {one} and {other} are set, and one proves who connects; unset the other")]
    Several { one: &'static str, other: &'static str },
    #[error("{origin}: {reason}. Give a file that can be read")]
    Unreadable { origin: String, reason: String },
    #[error(
        "{origin} is not the seed of a user's NKEY (SU and 56 more characters): {reason}. `emberline nats user add` makes one"
    )]
    Seed { origin: String, reason: String },
    #[error(
        "--nats-credentials {} {reason}. Give a .creds file of a user, as `nsc generate creds` writes it",
        path.display()
    )]
    Credentials { path: PathBuf, reason: String },
    #[error(
        "the credentials in {} expired on {expired} (UTC). Put new ones there, from whoever runs NATS",
        path.display()
    )]
    Expired { path: PathBuf, expired: Date },
    #[error(
        "the credentials in {} are valid from {valid_from} (UTC) on. Set this machine's clock, or put others there",
        path.display()
    )]
    NotYetValid { path: PathBuf, valid_from: Date },
    #[error("{origin} can't sign: {reason}")]
    Sign { origin: String, reason: String },
}

impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Password { variable, .. } => write!(f, "Password({variable})"),
            Self::Token { variable, .. } => write!(f, "Token({variable})"),
            Self::Nkey(source) => write!(f, "Nkey({source:?})"),
            Self::Credentials(path) => write!(f, "Credentials({})", path.display()),
        }
    }
}

impl Proof {
    /// The proof of a password.
    pub fn password(variable: &'static str, text: String) -> Self {
        Self::Password { variable, text }
    }

    /// The proof of an NKEY.
    pub fn nkey(variable: &'static str, seed: String) -> Self {
        Self::Nkey(NkeySource::Seed(Secret { variable, text: seed }))
    }

    /// Whether it can be used now.
    pub(crate) fn check(&self) -> Result<(), ProofError> {
        match self {
            Self::None | Self::Password { .. } | Self::Token { .. } => Ok(()),
            Self::Nkey(source) => source.key_pair().map(|_| ()),
            Self::Credentials(path) => Credentials::read(path)?.check_time(path, now()),
        }
    }

    /// What to answer to nats-server, which sent `nonce`.
    pub(crate) fn answer(&self, user: &str, nonce: &[u8]) -> Result<Auth, ProofError> {
        let mut auth = Auth::new();
        match self {
            Self::None => {}
            Self::Password { text, .. } => {
                auth.username = Some(user.to_owned());
                auth.password = Some(text.clone());
            }
            Self::Token { text, .. } => auth.token = Some(text.clone()),
            Self::Nkey(source) => {
                let key = source.key_pair()?;
                auth.signature = Some(sign(&key, nonce, &source.origin())?);
                auth.nkey = Some(key.public_key());
            }
            Self::Credentials(path) => {
                let credentials = Credentials::read(path)?;
                credentials.check_time(path, now())?;
                auth.signature = Some(sign(&credentials.key, nonce, &path.display().to_string())?);
                auth.jwt = Some(credentials.jwt);
            }
        }
        Ok(auth)
    }
}

impl NkeySource {
    pub(crate) fn key_pair(&self) -> Result<KeyPair, ProofError> {
        match self {
            Self::Seed(Secret { text, .. }) => user_key(text.trim(), &self.origin()),
            Self::File(path) => {
                let origin = self.origin();
                let text = fs::read_to_string(path)
                    .map_err(|e| ProofError::Unreadable { origin: origin.clone(), reason: e.to_string() })?;
                // Tools write comments and lines of dashes around it.
                let seed = text.lines().map(str::trim).find(|line| line.starts_with("SU"));
                user_key(seed.unwrap_or(text.trim()), &origin)
            }
        }
    }

    fn origin(&self) -> String {
        match self {
            Self::Seed(Secret { variable, .. }) => (*variable).to_owned(),
            Self::File(path) => format!("--nats-nkey-file {}", path.display()),
        }
    }
}

fn user_key(seed: &str, origin: &str) -> Result<KeyPair, ProofError> {
    let failed = |reason: String| ProofError::Seed { origin: origin.to_owned(), reason };
    let key = KeyPair::from_seed(seed).map_err(|e| failed(e.to_string()))?;
    match key.key_pair_type() {
        KeyPairType::User => Ok(key),
        other => Err(failed(format!("it is the seed of another kind ({other:?})"))),
    }
}

fn sign(key: &KeyPair, nonce: &[u8], origin: &str) -> Result<Vec<u8>, ProofError> {
    key.sign(nonce).map_err(|e| ProofError::Sign { origin: origin.to_owned(), reason: e.to_string() })
}

/// What a .creds file holds.
pub(crate) struct Credentials {
    jwt: String,
    key: KeyPair,
    claims: Claims,
}

/// The part of a user's JWT that is looked at here.
#[derive(Deserialize)]
struct Claims {
    /// The user's public key.
    sub: String,
    /// When it expires and from when it is valid, in seconds since 1970; 0 or absent for always.
    #[serde(default)]
    exp: i64,
    #[serde(default)]
    nbf: i64,
}

impl Credentials {
    pub(crate) fn read(path: &Path) -> Result<Self, ProofError> {
        let text = fs::read_to_string(path).map_err(|e| ProofError::Unreadable {
            origin: format!("--nats-credentials {}", path.display()),
            reason: e.to_string(),
        })?;
        Self::parse(&text).map_err(|reason| ProofError::Credentials { path: path.to_owned(), reason })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let jwt = after(text, "BEGIN NATS USER JWT").ok_or("has no JWT")?;
        let seed = after(text, "BEGIN USER NKEY SEED").ok_or("has no seed")?;
        let key = KeyPair::from_seed(seed).map_err(|e| format!("has no seed: {e}"))?;
        let claims = jwt.split('.').nth(1).and_then(|part| BASE64URL_NOPAD.decode(part.as_bytes()).ok());
        let claims: Option<Claims> = claims.and_then(|json| serde_json::from_slice(&json).ok());
        let claims = claims.ok_or("has something else in the place of the JWT")?;
        if claims.sub != key.public_key() {
            return Err("has the seed of another user than its JWT".to_owned());
        }
        Ok(Self { jwt: jwt.to_owned(), key, claims })
    }

    /// The public key of the user.
    pub(crate) fn user(&self) -> &str {
        &self.claims.sub
    }

    fn check_time(&self, path: &Path, now: i64) -> Result<(), ProofError> {
        let Claims { exp, nbf, .. } = self.claims;
        if exp != 0 && exp <= now {
            return Err(ProofError::Expired { path: path.to_owned(), expired: date(exp) });
        }
        if nbf > now {
            return Err(ProofError::NotYetValid { path: path.to_owned(), valid_from: date(nbf) });
        }
        Ok(())
    }
}

/// The line after the one that has `head` in it.
fn after<'a>(text: &'a str, head: &str) -> Option<&'a str> {
    let mut lines = text.lines().map(str::trim).skip_while(|line| !line.contains(head));
    lines.nth(1).filter(|line| !line.is_empty())
}

/// Seconds since 1970.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_secs().try_into().unwrap_or(i64::MAX)
}

pub(crate) fn date(seconds: i64) -> Date {
    OffsetDateTime::from_unix_timestamp(seconds).map_or(Date::MAX, OffsetDateTime::date)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jwt(claims: &str) -> String {
        ["{}", claims, "signature"].map(|part| BASE64URL_NOPAD.encode(part.as_bytes())).join(".")
    }

    fn creds(jwt: &str, seed: &str) -> String {
        format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\r\n{seed}\r\n------END USER NKEY SEED------\n"
        )
    }

    #[test]
    fn credentials_name_their_user_and_their_time() {
        let key = KeyPair::new_user();
        let (user, seed) = (key.public_key(), key.seed().unwrap());
        let parse = |claims: String| Credentials::parse(&creds(&jwt(&claims), &seed));
        let forever = parse(format!(r#"{{"sub":"{user}"}}"#)).unwrap();
        assert_eq!((forever.user(), forever.key.public_key()), (user.as_str(), user.clone()));
        forever.check_time(Path::new("f"), i64::MAX).unwrap();
        let limited = parse(format!(r#"{{"sub":"{user}","nbf":86400,"exp":172800}}"#)).unwrap();
        let check = |now| limited.check_time(Path::new("f"), now).map_err(|e| e.to_string());
        assert_eq!(check(86_400), Ok(()));
        assert!(check(86_399).unwrap_err().contains("valid from 1970-01-02"));
        assert!(check(172_800).unwrap_err().contains("expired on 1970-01-03"));
    }

    #[test]
    fn what_is_no_credentials_is_refused() {
        let key = KeyPair::new_user();
        let seed = key.seed().unwrap();
        let mine = jwt(&format!(r#"{{"sub":"{}"}}"#, key.public_key()));
        let other = jwt(&format!(r#"{{"sub":"{}"}}"#, KeyPair::new_user().public_key()));
        for (text, reason) in [
            (String::new(), "has no JWT"),
            (creds("", &seed), "has no JWT"),
            (creds(&mine, ""), "has no seed"),
            (creds(&mine, "SUX"), "has no seed: "),
            (creds("a.b.c", &seed), "in the place of the JWT"),
            (creds("ü", &seed), "in the place of the JWT"),
            (creds(&other, &seed), "another user"),
        ] {
            let error = Credentials::parse(&text).err().unwrap();
            assert!(error.contains(reason), "{reason}: {error}");
        }
    }

    #[test]
    fn the_seed_of_a_user_signs_and_that_of_an_account_does_not() {
        let key = KeyPair::new_user();
        let proof = Proof::nkey("V", format!(" {}\n", key.seed().unwrap()));
        let auth = proof.answer("worker", b"nonce").unwrap();
        assert_eq!(auth.nkey, Some(key.public_key()));
        key.verify(b"nonce", &auth.signature.unwrap()).unwrap();
        let account =
            Proof::nkey("V", KeyPair::new_account().seed().unwrap()).check().unwrap_err().to_string();
        assert!(account.contains("another kind (Account)"), "{account}");
    }

    #[test]
    fn a_file_with_a_seed_may_have_more_in_it() {
        let (folder, key) = (tempfile::tempdir().unwrap(), KeyPair::new_user());
        let (path, seed) = (folder.path().join("seed"), key.seed().unwrap());
        for text in
            [format!("{seed}\n"), format!("# the pool's\n-----BEGIN USER NKEY SEED-----\n{seed}\n----\n")]
        {
            fs::write(&path, text).unwrap();
            let read = NkeySource::File(path.clone()).key_pair().unwrap();
            assert_eq!(read.public_key(), key.public_key());
        }
    }
}
