//! `token`: a new token, and the line that makes it known to nodes. And the token that other commands show.

use super::failure::{Failure, PLAIN_EXIT_CODES};
use super::key::encoded_key;
use super::output::print_more;
use crate::access::{Role, line};
use crate::dice;

/// The variable whose token is shown to nodes. There is no flag for it: other users of a machine see those.
const TOKEN: &str = "EVENKV_TOKEN";
/// By this a token is known for one where it should not be: in a log, or a commit.
const MARK: &str = "evk_";

/// What `token` is told.
#[derive(Debug, clap::Args)]
pub struct TokenArgs {
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Debug, clap::Subcommand)]
enum TokenCommand {
    #[command(
        about = "Draw a token: print it, and on a second line what to add to AUTH_TOKENS_FILE, which does not give it away"
    )]
    New(NewArgs),
}

#[derive(Debug, clap::Args)]
#[command(after_help = PLAIN_EXIT_CODES)]
struct NewArgs {
    /// What it is good for: monitor, read, write or admin
    #[arg(value_name = "ROLE", value_parser = role)]
    role: Role,
    /// Only for the keys that begin with this
    #[arg(long, short, value_name = "TEXT", allow_hyphen_values = true)]
    prefix: Option<String>,
}

fn role(text: &str) -> Result<Role, String> {
    let found = Role::ALL.into_iter().find(|role| role.name() == text);
    found.ok_or_else(|| "allowed are monitor, read, write and admin".to_owned())
}

/// Prints a token and its line.
pub(super) fn token(args: &TokenArgs) -> Result<bool, Failure> {
    let TokenCommand::New(NewArgs { role, prefix }) = &args.command;
    let prefix = prefix.as_deref().unwrap_or_default();
    if *role == Role::Admin && !prefix.is_empty() {
        return Err(Failure::Usage("admin has no prefix: it may do everything".to_owned()));
    }
    let token = draw();
    let prefix = encoded_key(prefix.as_bytes());
    print_more(format!("{token}\n{}", line(&token, *role, &prefix)).as_bytes())?;
    Ok(true)
}

/// 256 random bits.
fn draw() -> String {
    format!("{MARK}{:032x}{:032x}", dice::draw::<u128>(), dice::draw::<u128>())
}

/// The token to show, where there is one.
#[expect(clippy::disallowed_methods, reason = "it is no flag, so it is no setting that clap reads")]
pub(super) fn shown() -> Option<String> {
    std::env::var(TOKEN).ok().map(|token| token.trim().to_owned()).filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Tokens;

    #[test]
    fn a_new_token_is_another_each_time_and_its_line_is_one() {
        let [a, b] = [draw(), draw()];
        assert!(a != b && a.len() == 68 && a.starts_with(MARK), "{a}");
        assert!(Tokens::parse(&line(&a, Role::Read, "a%20b")).is_ok());
    }
}
