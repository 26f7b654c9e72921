//! The options, on the command line and in the environment.

use std::ffi::OsString;
use std::path::PathBuf;

use async_nats::ServerAddr;
use clap::Args;

use crate::proof::{NkeySource, Proof, ProofError};
use crate::tls::{ClientCertificate, TlsFiles};
use crate::{AccessError, NatsAccess};

/// The heading of options about NATS in a help text.
pub const NATS_HEADING: &str = "NATS";

/// How to reach nats-server, besides its address. Secrets come from the environment only ([`Secrets`]): a command
/// line can be seen by everyone on the machine.
///
/// Empty values count as absent: that is what a launcher's unset variable expands to.
#[derive(Debug, Clone, Default, Args)]
#[allow(missing_docs, reason = "the help texts say it, and are complete sentences for no one else")]
pub struct NatsArgs {
    /// User name at nats-server; it also names the inboxes, whatever else proves who connects [default: the role's
    /// name]
    #[arg(long, env = "EMBERLINE_NATS_USER", value_name = "NAME", help_heading = NATS_HEADING)]
    pub nats_user: Option<String>,

    /// File with the seed of an NKEY, which proves who connects [or EMBERLINE_NATS_NKEY_SEED, with the seed itself]
    #[arg(long, env = "EMBERLINE_NATS_NKEY_FILE", value_name = "FILE", help_heading = NATS_HEADING)]
    pub nats_nkey_file: Option<OsString>,

    /// Credentials (a .creds file: a JWT and its key), which prove who connects
    #[arg(long, env = "EMBERLINE_NATS_CREDENTIALS", value_name = "FILE", help_heading = NATS_HEADING)]
    pub nats_credentials: Option<OsString>,

    /// CA certificates (PEM) that nats-server's certificate must come from [default: those of this machine]
    #[arg(long, env = "EMBERLINE_NATS_CA", value_name = "FILE", help_heading = NATS_HEADING)]
    pub nats_ca: Option<OsString>,

    /// Certificate (PEM) to show to nats-server
    #[arg(long, env = "EMBERLINE_NATS_CLIENT_CERTIFICATE", value_name = "FILE", help_heading = NATS_HEADING)]
    pub nats_client_certificate: Option<OsString>,

    /// The private key (PEM) of that certificate
    #[arg(long, env = "EMBERLINE_NATS_CLIENT_KEY", value_name = "FILE", help_heading = NATS_HEADING)]
    pub nats_client_key: Option<OsString>,

    /// Begin with TLS, as nats-server's `handshake_first` wants it
    #[arg(long, env = "EMBERLINE_NATS_TLS_FIRST", value_parser = parse_flag, help_heading = NATS_HEADING)]
    pub nats_tls_first: bool,
}

/// A secret and the variable of the environment that had it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    /// The variable's name.
    pub variable: &'static str,
    /// Its text.
    pub text: String,
}

/// Secrets of the environment that prove who connects.
#[derive(Debug, Clone, Default)]
pub struct Secrets {
    /// Of a user.
    pub password: Option<Secret>,
    /// In place of a user.
    pub token: Option<Secret>,
    /// The seed of an NKEY.
    pub nkey_seed: Option<Secret>,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secret({})", self.variable)
    }
}

impl Secret {
    /// The secret in a variable; `None` if it is not set or empty.
    pub fn from_env(variable: &'static str) -> Result<Option<Self>, ProofError> {
        let Some(text) = std::env::var_os(variable).filter(|text| !text.is_empty()) else { return Ok(None) };
        let text = text.into_string().map_err(|_| ProofError::Encoding { variable })?;
        Ok(Some(Self { variable, text }))
    }
}

impl Secrets {
    /// Those of EMBERLINE_NATS_PASSWORD, EMBERLINE_NATS_TOKEN and EMBERLINE_NATS_NKEY_SEED.
    pub fn from_env() -> Result<Self, ProofError> {
        Ok(Self {
            password: Secret::from_env("EMBERLINE_NATS_PASSWORD")?,
            token: Secret::from_env("EMBERLINE_NATS_TOKEN")?,
            nkey_seed: Secret::from_env("EMBERLINE_NATS_NKEY_SEED")?,
        })
    }
}

impl NatsArgs {
    /// Access to `servers`, as `default_user` unless the options name another. All files are read once, to find
    /// mistakes before anything else is done.
    pub fn access(
        self,
        servers: Vec<ServerAddr>,
        secrets: Secrets,
        default_user: &str,
    ) -> Result<NatsAccess, AccessError> {
        let user = self.nats_user.filter(|user| !user.is_empty()).unwrap_or_else(|| default_user.to_owned());
        let seed_file = path(self.nats_nkey_file);
        let credentials = path(self.nats_credentials);
        let given = [
            secrets.password.map(|Secret { variable, text }| (variable, Proof::Password { variable, text })),
            secrets.token.map(|Secret { variable, text }| (variable, Proof::Token { variable, text })),
            secrets.nkey_seed.map(|secret| (secret.variable, Proof::Nkey(NkeySource::Seed(secret)))),
            seed_file.map(|path| ("--nats-nkey-file", Proof::Nkey(NkeySource::File(path)))),
            credentials.map(|path| ("--nats-credentials", Proof::Credentials(path))),
        ];
        let mut given = given.into_iter().flatten();
        let proof = match (given.next(), given.next()) {
            (None, _) => Proof::None,
            (Some((_, proof)), None) => proof,
            (Some((one, _)), Some((other, _))) => return Err(ProofError::Several { one, other }.into()),
        };
        proof.check()?;
        let client = ClientCertificate::of(path(self.nats_client_certificate), path(self.nats_client_key))?;
        let tls = TlsFiles { ca: path(self.nats_ca), client, first: self.nats_tls_first };
        tls.check()?;
        Ok(NatsAccess { servers, user, proof, tls })
    }
}

fn path(text: Option<OsString>) -> Option<PathBuf> {
    text.filter(|text| !text.is_empty()).map(PathBuf::from)
}

fn parse_flag(text: &str) -> Result<bool, &'static str> {
    match text {
        "true" | "1" | "yes" => Ok(true),
        "" | "false" | "0" | "no" => Ok(false),
        _ => Err("must be true or false"),
    }
}

/// Why a text is no address of a nats-server.
#[derive(Debug, thiserror::Error)]
pub enum InvalidServer {
    /// It is no URL.
    #[error("{0}; write nats://HOST:PORT or tls://HOST:PORT")]
    Syntax(#[from] std::io::Error),
    /// A way to speak NATS that is not supported.
    #[error("{0}:// is not supported; write nats://HOST:PORT or tls://HOST:PORT")]
    Scheme(String),
    /// It has a user or a password.
    #[error("an address has no user and no password in it; see --nats-user")]
    User,
}

/// Reads `HOST`, `HOST:PORT`, `nats://HOST:PORT` or `tls://HOST:PORT`.
pub fn parse_server(text: &str) -> Result<ServerAddr, InvalidServer> {
    let address: ServerAddr = text.trim().parse()?;
    if !["nats", "tls"].contains(&address.scheme()) {
        return Err(InvalidServer::Scheme(address.scheme().to_owned()));
    }
    if address.username().is_some() || address.password().is_some() {
        return Err(InvalidServer::User);
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        nats: NatsArgs,
    }

    fn args(args: &[&str]) -> NatsArgs {
        Program::try_parse_from([&["program"], args].concat()).unwrap().nats
    }

    fn secret(variable: &'static str, text: &str) -> Option<Secret> {
        Some(Secret { variable, text: text.to_owned() })
    }

    fn refused(args: NatsArgs, secrets: Secrets) -> String {
        args.access(Vec::new(), secrets, "worker").unwrap_err().to_string()
    }

    #[test]
    fn addresses_are_of_nats_or_tls() {
        for (text, host, port, tls) in [
            ("a", "a", 4222, false),
            (" nats://10.0.0.1:4333", "10.0.0.1", 4333, false),
            ("tls://a.b", "a.b", 4222, true),
            ("[fd00::1]:1", "fd00::1", 1, false),
        ] {
            let address = parse_server(text).unwrap();
            assert_eq!((address.host(), address.port(), address.tls_required()), (host, port, tls));
        }
        for (text, hint) in
            [("ws://a", "ws:// is not supported"), (":x", "write nats://"), ("nats://u:p@a", "--nats-user")]
        {
            let error = parse_server(text).unwrap_err().to_string();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }

    #[test]
    fn one_proof_is_enough_and_empty_values_are_none() {
        let empty = ["--nats-user", "", "--nats-nkey-file", "", "--nats-ca", "", "--nats-credentials", ""];
        let access = args(&empty).access(Vec::new(), Secrets::default(), "worker").unwrap();
        assert!(matches!(access.proof, Proof::None) && access.user() == "worker" && !access.speaks_tls());
        let both = Secrets { password: secret("P", "p"), token: secret("T", "t"), nkey_seed: None };
        assert_eq!(
            refused(args(&[]), both),
            "both P and T are set, and one proves who connects; unset the other"
        );
    }

    #[test]
    fn nothing_secret_is_shown() {
        let seed = nkeys::KeyPair::new_user().seed().unwrap();
        let secrets = Secrets { nkey_seed: secret("S", &seed), ..Secrets::default() };
        let shown = format!("{secrets:?}");
        let access = args(&["--nats-user", "pool"]).access(Vec::new(), secrets, "worker").unwrap();
        assert!(access.user() == "pool" && !format!("{shown} {access:?}").contains(&seed));
        let broken = Secrets { nkey_seed: secret("S", &seed[..57]), ..Secrets::default() };
        let error = refused(args(&[]), broken);
        assert!(
            error.starts_with("S is not the seed of a user's NKEY") && !error.contains(&seed[..57]),
            "{error}"
        );
    }

    #[test]
    fn files_are_read_before_anything_is_done() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(path("empty"), "").unwrap();
        std::fs::write(path("text"), "text").unwrap();
        for (option, file, hint) in [
            ("--nats-nkey-file", "missing", "No such file"),
            ("--nats-nkey-file", "text", "is not the seed of a user's NKEY"),
            ("--nats-credentials", "text", "has no JWT"),
            ("--nats-ca", "missing", "No such file"),
            ("--nats-ca", "empty", "there is no certificate in it"),
            ("--nats-client-certificate", "text", "--nats-client-key"),
        ] {
            let error = refused(args(&[option, &path(file)]), Secrets::default());
            assert!(error.contains(hint) && error.lines().count() == 1, "{option} {file}: {error}");
        }
    }
}
