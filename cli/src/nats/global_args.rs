//! Options that may be given before or after the subcommand.

use clap::error::Error;
use clap::{ArgMatches, Args, Command, FromArgMatches};

/// Options of a command that its subcommands take, too.
#[derive(Debug, Clone)]
pub(crate) struct Global<T>(pub(crate) T);

impl<T: FromArgMatches> FromArgMatches for Global<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        T::from_arg_matches(matches).map(Self)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        self.0.update_from_arg_matches(matches)
    }
}

impl<T: Args> Args for Global<T> {
    fn augment_args(command: Command) -> Command {
        with_global_args(command, &T::augment_args(Command::default()))
    }

    fn augment_args_for_update(command: Command) -> Command {
        with_global_args(command, &T::augment_args_for_update(Command::default()))
    }
}

fn with_global_args(command: Command, own: &Command) -> Command {
    command.args(own.get_arguments().map(|arg| arg.clone().global(true)))
}
