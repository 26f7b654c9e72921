//! Who the function is at nats-server, and how it proves that.

use std::fmt;

use data_encoding::{BASE64_NOPAD, BASE64URL_NOPAD};
use nkeys::KeyPair;
use serde::Deserialize;
use watermelon_proto::Connect;

/// The user, and the proof that we are that user.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Credentials {
    /// Names the inboxes, whatever the proof is. With a password it is the user's name, and empty for a server without
    /// authentication.
    pub user: String,
    /// What nats-server gets to see.
    pub proof: Proof,
}

/// A proof of who we are.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub enum Proof {
    /// No more than the user's name, or a client certificate.
    #[default]
    None,
    /// A password.
    Password(String),
    /// A token, which is all that the server knows of us.
    Token(String),
    /// A signature with an NKEY, of which this is the seed.
    Nkey(String),
    /// A JWT, and a signature with the NKEY that it names.
    Jwt {
        /// The JWT.
        jwt: String,
        /// The seed of the NKEY.
        seed: String,
    },
}

/// Credentials that can't be used. No text repeats them.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages are the documentation
pub enum InvalidCredentials {
    #[error("{0} and {1} are both set. Keep one of them")]
    Two(&'static str, &'static str),
    #[error(
        "nats_nkey_seed is not the seed of a user's NKEY, which begins with SU. `emberline nats user add` makes one"
    )]
    Seed,
    #[error(
        "nats_credentials is not the text of a .creds file: it needs a block NATS USER JWT and a block USER NKEY SEED"
    )]
    File,
    #[error(
        "nats-server asks for no signature, though an NKEY is set. Give it a user with the key's public half"
    )]
    NoNonce,
}

/// The settings of which at most one is a proof.
pub struct Given<'a> {
    /// `nats_password`.
    pub password: &'a str,
    /// `nats_token`.
    pub token: &'a str,
    /// `nats_nkey_seed`.
    pub nkey_seed: &'a str,
    /// `nats_credentials`.
    pub credentials: &'a str,
}

impl Proof {
    /// The one proof that is given.
    pub fn parse(given: &Given<'_>) -> Result<Self, InvalidCredentials> {
        let named = [
            ("nats_password", given.password),
            ("nats_token", given.token),
            ("nats_nkey_seed", given.nkey_seed),
            ("nats_credentials", given.credentials),
        ];
        let mut set = named.into_iter().filter(|(_, value)| !value.is_empty());
        let Some((name, value)) = set.next() else { return Ok(Self::None) };
        if let Some((other, _)) = set.next() {
            return Err(InvalidCredentials::Two(name, other));
        }
        match name {
            "nats_password" => Ok(Self::Password(value.to_owned())),
            "nats_token" => Ok(Self::Token(value.to_owned())),
            "nats_nkey_seed" => {
                key_pair(value).map_err(|_| InvalidCredentials::Seed)?;
                Ok(Self::Nkey(value.to_owned()))
            }
            _ => Self::from_file(value),
        }
    }

    /// Reads the text of a `.creds` file.
    fn from_file(text: &str) -> Result<Self, InvalidCredentials> {
        let jwt = block(text, "NATS USER JWT").ok_or(InvalidCredentials::File)?;
        let seed = block(text, "USER NKEY SEED").ok_or(InvalidCredentials::File)?;
        key_pair(seed).map_err(|_| InvalidCredentials::File)?;
        Ok(Self::Jwt { jwt: jwt.to_owned(), seed: seed.to_owned() })
    }
}

/// The line in a block of a `.creds` file.
fn block<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = text.lines().map(str::trim);
    lines.by_ref().find(|line| line.starts_with("---") && line.contains("BEGIN") && line.contains(name))?;
    lines.find(|line| !line.is_empty()).filter(|line| !line.starts_with('-'))
}

fn key_pair(seed: &str) -> Result<KeyPair, nkeys::error::Error> {
    KeyPair::from_seed(seed)
}

impl Credentials {
    /// Fills in who we are. `nonce` is what the server wants signed.
    pub fn apply(&self, connect: &mut Connect, nonce: Option<&str>) -> Result<(), InvalidCredentials> {
        let user = Some(self.user.clone()).filter(|user| !user.is_empty());
        match &self.proof {
            Proof::None => {
                connect.password = user.is_some().then(String::new);
                connect.username = user;
            }
            Proof::Password(password) => {
                connect.password = user.is_some().then(|| password.clone());
                connect.username = user;
            }
            Proof::Token(token) => connect.auth_token = Some(token.clone()),
            Proof::Nkey(seed) => {
                let pair = key_pair(seed).map_err(|_| InvalidCredentials::Seed)?;
                connect.signature = Some(sign(&pair, nonce)?);
                connect.nkey = Some(pair.public_key());
            }
            Proof::Jwt { jwt, seed } => {
                let pair = key_pair(seed).map_err(|_| InvalidCredentials::File)?;
                connect.signature = Some(sign(&pair, nonce)?);
                connect.jwt = Some(jwt.clone());
            }
        }
        Ok(())
    }

    /// What to say where the server refuses them.
    pub fn refused(&self, reason: String, unix_s: u64) -> Refusal {
        let remedy = match &self.proof {
            Proof::None => "no password, token, NKEY or credentials are set, and it may want some".to_owned(),
            Proof::Password(_) => "check nats_user and nats_password against its configuration".to_owned(),
            Proof::Token(_) => "check nats_token against its configuration".to_owned(),
            Proof::Nkey(seed) => {
                let public = key_pair(seed).map(|pair| pair.public_key()).unwrap_or_default();
                format!(
                    "its configuration needs a user with `nkey: {public}`, which belongs to nats_nkey_seed"
                )
            }
            Proof::Jwt { jwt, .. } => match expiry(jwt) {
                Some(end) if end <= unix_s => {
                    let days = unix_s.saturating_sub(end).div_euclid(24 * 60 * 60);
                    format!("the JWT in nats_credentials expired {days} days ago; make a new one")
                }
                _ => "check that the account knows the user in nats_credentials".to_owned(),
            },
        };
        Refusal { user: self.user.clone(), reason, remedy }
    }
}

fn sign(pair: &KeyPair, nonce: Option<&str>) -> Result<String, InvalidCredentials> {
    let nonce = nonce.ok_or(InvalidCredentials::NoNonce)?;
    let signature = pair.sign(nonce.as_bytes()).map_err(|_| InvalidCredentials::Seed)?;
    Ok(BASE64URL_NOPAD.encode(&signature))
}

/// When a JWT ends, in Unix seconds, if it says so.
fn expiry(jwt: &str) -> Option<u64> {
    #[derive(Deserialize)]
    struct Claims {
        exp: u64,
    }
    let claims = jwt.split('.').nth(1)?;
    let claims =
        BASE64URL_NOPAD.decode(claims.as_bytes()).or_else(|_| BASE64_NOPAD.decode(claims.as_bytes())).ok()?;
    serde_json::from_slice::<Claims>(&claims).ok().map(|claims| claims.exp).filter(|end| *end > 0)
}

/// The server does not let us in.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    user: String,
    reason: String,
    remedy: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { user, reason, remedy } = self;
        write!(f, "NATS refuses the user '{user}': {reason}; {remedy}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: &str = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY";
    const NONE: Given<'static> = Given { password: "", token: "", nkey_seed: "", credentials: "" };

    fn file(jwt: &str) -> String {
        format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
             ************************* IMPORTANT *************************\n\
             -----BEGIN USER NKEY SEED-----\r\n{SEED}\r\n------END USER NKEY SEED------\n"
        )
    }

    fn jwt(claims: &str) -> String {
        format!("head.{}.signature", BASE64URL_NOPAD.encode(claims.as_bytes()))
    }

    #[test]
    fn one_proof_is_taken_and_two_are_refused_by_name() {
        assert!(Proof::parse(&NONE) == Ok(Proof::None));
        assert!(Proof::parse(&Given { password: "p", ..NONE }) == Ok(Proof::Password("p".into())));
        assert!(Proof::parse(&Given { token: "t", ..NONE }) == Ok(Proof::Token("t".into())));
        assert!(Proof::parse(&Given { nkey_seed: SEED, ..NONE }) == Ok(Proof::Nkey(SEED.into())));
        let both = Given { password: "p", nkey_seed: SEED, ..NONE };
        assert!(Proof::parse(&both) == Err(InvalidCredentials::Two("nats_password", "nats_nkey_seed")));
    }

    #[test]
    fn a_creds_file_holds_a_jwt_and_a_seed() {
        let parsed = Proof::parse(&Given { credentials: &file("e.y.J"), ..NONE });
        assert!(parsed == Ok(Proof::Jwt { jwt: "e.y.J".into(), seed: SEED.into() }));
        for text in ["x", &file("").replace(SEED, ""), &file("e.y.J").replace(SEED, "SUA")] {
            assert!(
                Proof::parse(&Given { credentials: text, ..NONE }) == Err(InvalidCredentials::File),
                "{text}"
            );
        }
    }

    #[test]
    fn a_seed_that_is_none_is_refused_without_being_repeated() {
        let Err(error) = Proof::parse(&Given { nkey_seed: "SUAsecret", ..NONE }) else { panic!() };
        assert_eq!(error, InvalidCredentials::Seed);
        assert!(!error.to_string().contains("secret"));
    }

    #[test]
    fn a_refusal_names_what_to_mend() {
        let refused = |proof| {
            Credentials { user: "function".into(), proof }
                .refused("authorization violation".into(), 1_000_000)
                .to_string()
        };
        assert!(refused(Proof::Password("p".into())).contains("nats_password"));
        let public = KeyPair::from_seed(SEED).unwrap().public_key();
        assert!(refused(Proof::Nkey(SEED.into())).contains(&public));
        let expired = Proof::Jwt { jwt: jwt(r#"{"exp":740800}"#), seed: SEED.into() };
        assert!(refused(expired).contains("expired 3 days ago"));
        for claims in [r#"{"exp":1000001}"#, "{}", "nonsense"] {
            let text = refused(Proof::Jwt { jwt: jwt(claims), seed: SEED.into() });
            assert!(!text.contains("expired"), "{text}");
        }
    }

    #[test]
    fn what_is_signed_can_be_verified() {
        let pair = KeyPair::from_seed(SEED).unwrap();
        let signature = sign(&pair, Some("nonce")).unwrap();
        let signature = BASE64URL_NOPAD.decode(signature.as_bytes()).unwrap();
        assert!(pair.verify(b"nonce", &signature).is_ok());
        assert_eq!(sign(&pair, None), Err(InvalidCredentials::NoNonce));
    }
}
