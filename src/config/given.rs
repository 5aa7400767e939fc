//! The settings as they were given. The flag wins over the environment variable, and an empty one counts as unset.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;

use clap::error::Error;
use clap::{ArgMatches, Args, Command, FromArgMatches};

use super::setting::{Declared, Number, Text};
use super::table::ALL;

/// The settings as they were given.
#[derive(Debug, Clone, Default)]
pub struct Settings(BTreeMap<&'static str, String>);

impl Settings {
    /// Whether a setting is there and not empty.
    pub(super) fn has(&self, setting: &impl Declared) -> bool {
        self.given(setting).is_some()
    }

    fn given(&self, setting: &impl Declared) -> Option<&str> {
        let text = self.0.get(setting.name())?.trim();
        (!text.is_empty()).then_some(text)
    }

    /// The value of a number.
    ///
    /// # Errors
    /// A sentence that says what is allowed.
    pub(super) fn number<T>(&self, setting: &Number<T>) -> Result<T, String>
    where
        T: Copy + Display + FromStr + PartialOrd,
    {
        let Number { name, default, allowed, .. } = setting;
        let Some(text) = self.given(setting) else { return Ok(*default) };
        text.parse().ok().filter(|value| allowed.contains(value)).ok_or_else(|| {
            format!(
                "{name} is '{text}': allowed is a whole number from {} to {}",
                allowed.start(),
                allowed.end()
            )
        })
    }

    /// The value of another setting, where it is given.
    ///
    /// # Errors
    /// A sentence that says what is allowed.
    pub(super) fn text<T>(&self, setting: &Text<T>) -> Result<Option<T>, String> {
        let read = |text| (setting.read)(text).map_err(|error| format!("{}: {error}", setting.name));
        self.given(setting).map(read).transpose()
    }
}

/// Settings by their names, for whoever starts a node without a command line.
impl<V: Into<String>> FromIterator<(&'static str, V)> for Settings {
    fn from_iter<I: IntoIterator<Item = (&'static str, V)>>(pairs: I) -> Self {
        let pairs = pairs.into_iter().inspect(|(name, _)| {
            assert!(ALL.iter().any(|setting| setting.name() == *name), "no setting has the name {name}");
        });
        Self(pairs.map(|(name, value)| (name, value.into())).collect())
    }
}

impl Args for Settings {
    fn augment_args(command: Command) -> Command {
        let command = command.next_help_heading("Settings of the node");
        command.args(ALL.iter().map(|setting| setting.argument()))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Settings {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let given = |name| Some((name, matches.get_one::<String>(name)?.clone()));
        Ok(Self(ALL.iter().filter_map(|setting| given(setting.name())).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
