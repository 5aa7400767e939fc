//! What a setting is: a flag and an environment variable of the same name.

use std::fmt::Display;
use std::ops::RangeInclusive;

use clap::Arg;

/// A whole number.
pub(super) struct Number<T> {
    /// The name of its variable.
    pub(super) name: &'static str,
    /// What its value is, for the help.
    pub(super) value: &'static str,
    pub(super) help: &'static str,
    /// What it is where it is unset.
    pub(super) default: T,
    pub(super) allowed: RangeInclusive<T>,
}

/// Anything else. A node does without one that is unset.
pub(super) struct Text<T> {
    /// The name of its variable.
    pub(super) name: &'static str,
    /// What its value is, for the help.
    pub(super) value: &'static str,
    pub(super) help: &'static str,
    /// What follows where it is unset, for the help.
    pub(super) unset: &'static str,
    /// Reads it, or says what is allowed.
    pub(super) read: fn(&str) -> Result<T, String>,
}

/// What all settings have.
pub(super) trait Declared {
    fn name(&self) -> &'static str;
    fn value(&self) -> &'static str;
    fn help(&self) -> String;

    /// The flag: the name in lower case, with strokes.
    fn argument(&self) -> Arg {
        let flag = self.name().to_ascii_lowercase().replace('_', "-");
        let argument = Arg::new(self.name()).long(flag).value_name(self.value()).help(self.help());
        argument.env(self.name()).hide_env_values(true)
    }
}

impl<T: Display + PartialOrd> Declared for Number<T> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn value(&self) -> &'static str {
        self.value
    }

    fn help(&self) -> String {
        let Self { help, default, allowed, .. } = self;
        format!("{help} (default {default}, allowed {} to {})", allowed.start(), allowed.end())
    }
}

impl<T> Declared for Text<T> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn value(&self) -> &'static str {
        self.value
    }

    fn help(&self) -> String {
        match self.unset {
            "" => self.help.to_owned(),
            unset => format!("{}; unset: {unset}", self.help),
        }
    }
}

/// Declares settings: each is a constant, and all of them are `ALL`.
macro_rules! declare {
    ($($name:ident: $kind:ident<$type:ty> { $($field:ident: $given:expr,)* })*) => {
        $(pub(super) const $name: $kind<$type> = $kind { name: stringify!($name), $($field: $given,)* };)*

        /// All settings, in the order of the help.
        pub(super) const ALL: &[&dyn Declared] = &[$(&$name),*];
    };
}

pub(super) use declare;
