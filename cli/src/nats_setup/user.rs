//! `emberline nats user add`: prints the entry of a new user for the list `users` in nats-server's configuration.
//!
//! The entry has the public key of an NKEY, or a password's bcrypt hash. So the file holds no secret, and
//! `nats-server --signal reload` is enough, which a variable of the environment would not be. An NKEY is the
//! default: the seed stays with the client, which signs what nats-server sends.
//!
//! A password is random and as long as the hash's own key, so no attempt at guessing needs to be slowed down: the
//! cost is the lowest, because nats-server pays it for each connection, and the function makes many.

use std::io;

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use emberline_protocol::jetstream_domain::JetStreamDomain;
use emberline_protocol::permissions::{self, Identity, User, default_users};
use emberline_protocol::subject::model_token;
use rand::TryRng;
use rand::rngs::SysRng;

use crate::key_gen::{Nkey, new_password};
use crate::nats::name::parse_name;

const NO_RANDOM_NUMBERS: &str = "the system gives no random numbers";
/// bcrypt's lowest cost.
const BCRYPT_COST: u32 = 4;

#[derive(Debug, Args)]
pub(super) struct UserArgs {
    #[command(subcommand)]
    command: UserCommand,
}

#[derive(Debug, Subcommand)]
enum UserCommand {
    /// Print a new user's entry for nats-server's configuration, and the seed of its NKEY.
    Add(AddArgs),
    /// Print NKEYs for the users of deploy/nats.conf, as variables of the environment.
    Keys,
}

#[derive(Debug, Args)]
struct AddArgs {
    /// What the user is for
    #[arg(value_enum)]
    role: RoleChoice,
    /// The models whose jobs a worker may take, separated by commas [default: all]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    models: Vec<String>,
    /// The user's name [default: the role, with the models of a worker]
    #[arg(long, value_parser = parse_name)]
    name: Option<String>,
    /// Give it a password, which crosses the wire, instead of an NKEY
    #[arg(long)]
    password: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RoleChoice {
    Function,
    Worker,
    Admin,
}

/// Whether the models don't fit the role.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("--models is for workers; leave it out")]
pub(crate) struct ModelsOfNoWorker;

impl RoleChoice {
    /// The role, of a worker for these models, or for all if there are none.
    pub(crate) fn role(self, models: &[String]) -> Result<permissions::Role, ModelsOfNoWorker> {
        match (self, models) {
            (Self::Function, []) => Ok(permissions::Role::Function),
            (Self::Admin, []) => Ok(permissions::Role::Admin),
            (Self::Worker, []) => Ok(permissions::Role::Worker),
            (Self::Worker, models) => Ok(permissions::Role::WorkerPool(models.to_vec())),
            (Self::Function | Self::Admin, _) => Err(ModelsOfNoWorker),
        }
    }

    /// Its name, which is also that of its user in deploy/nats.conf.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Function => "function",
            Self::Worker => "worker",
            Self::Admin => "admin",
        }
    }
}

impl AddArgs {
    fn name(&self) -> String {
        let role = self.role.name();
        let tokens = self.models.iter().map(|model| model_token(model));
        self.name
            .clone()
            .unwrap_or_else(|| [role.to_owned()].into_iter().chain(tokens).collect::<Vec<_>>().join("-"))
    }
}

pub(super) fn run(args: &UserArgs, domain: &JetStreamDomain) -> anyhow::Result<()> {
    match &args.command {
        UserCommand::Add(args) => add(args, domain),
        UserCommand::Keys => print_keys(),
    }
}

fn add(args: &AddArgs, domain: &JetStreamDomain) -> anyhow::Result<()> {
    let role = args.role.role(&args.models)?;
    let (identity, what, secret) = if args.password {
        let password = new_password().context(NO_RANDOM_NUMBERS)?;
        (Identity::Password(format!("'{}'", hash(&password)?)), "password", password)
    } else {
        let nkey = Nkey::random().context(NO_RANDOM_NUMBERS)?;
        (Identity::Nkey(nkey.public), "NKEY's seed", nkey.seed)
    };
    let user = User { name: args.name(), identity, role, domain: domain.clone() };
    println!("{user}");
    let name = &user.name;
    eprintln!(
        "\nPut this into the list `users` of nats-server's configuration, and have it read again with\n\
         `nats-server --signal reload`. The {what} of {name}, which is secret and not shown again:\n\n{secret}\n\n{}",
        usage(args, name)
    );
    Ok(())
}

/// Where the secret goes.
fn usage(args: &AddArgs, name: &str) -> String {
    let clients = match args.role {
        RoleChoice::Function if args.password => {
            return format!("The function takes it as its variables nats_user={name} and nats_password.");
        }
        RoleChoice::Function => {
            return format!("The function takes it as its variables nats_user={name} and nats_nkey_seed.");
        }
        RoleChoice::Worker => "Workers",
        RoleChoice::Admin => "Commands",
    };
    let variable = if args.password { "EMBERLINE_NATS_PASSWORD" } else { "EMBERLINE_NATS_NKEY_SEED" };
    format!("{clients} take it as EMBERLINE_NATS_USER={name} and {variable}.")
}

/// Lines that shells, Docker's --env-file and systemd's EnvironmentFile read.
fn print_keys() -> anyhow::Result<()> {
    println!("# Public keys for nats-server, and for each a seed, which is secret: of its user alone.");
    for User { name, .. } in default_users() {
        let (name, nkey) = (name.to_uppercase(), Nkey::random().context(NO_RANDOM_NUMBERS)?);
        println!("EMBERLINE_{name}_NKEY={}\nEMBERLINE_{name}_NKEY_SEED={}", nkey.public, nkey.seed);
    }
    Ok(())
}

fn hash(password: &str) -> anyhow::Result<String> {
    let mut salt = [0; 16];
    SysRng.try_fill_bytes(&mut salt).map_err(io::Error::other)?;
    Ok(bcrypt::hash_with_salt(password, BCRYPT_COST, salt)?.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(role: RoleChoice, models: &[&str], name: Option<&str>) -> AddArgs {
        AddArgs {
            role,
            models: models.iter().map(ToString::to_string).collect(),
            name: name.map(str::to_owned),
            password: false,
        }
    }

    #[test]
    fn a_user_is_named_after_its_role_and_models() {
        assert_eq!(args(RoleChoice::Function, &[], None).name(), "function");
        assert_eq!(args(RoleChoice::Worker, &["a", "b.c"], None).name(), "worker-a-b=2Ec");
        assert_eq!(args(RoleChoice::Worker, &["a"], Some("pool")).name(), "pool");
        assert_eq!(RoleChoice::Admin.role(&["a".to_owned()]), Err(ModelsOfNoWorker));
    }

    #[test]
    fn a_password_fits_its_hash_and_no_two_are_alike() {
        let (one, two) = (new_password().unwrap(), new_password().unwrap());
        assert!(one != two && one.len() > 40 && one.starts_with(|c: char| c.is_ascii_alphabetic()));
        let hashed = hash(&one).unwrap();
        assert!(hashed.starts_with("$2b$04$"), "{hashed}");
        assert!(bcrypt::verify(&one, &hashed).unwrap() && !bcrypt::verify(&two, &hashed).unwrap());
    }
}
