//! The subcommands that a person or a script uses against a running node.
//!
//! They speak the public HTTP contract and nothing else: this module knows nothing of the server but the names in `wire` of what it shows, and
//! works against any node of any cluster. Exit codes are the same for all: 0 done, 1 the answer is no (absent key,
//! unhealthy node, a line that failed, a view change that did not finish), 2 wrong usage, 3 anything else that went wrong. Each gives up
//! after a time (`waiting`), and each prints words or JSON (`answer`).

mod address;
mod answer;
mod audit;
mod client;
mod count;
mod export;
mod failure;
#[cfg(test)]
mod fake_node;
mod health;
mod import;
mod inspect;
mod interrupts;
mod key;
mod list;
mod manual;
mod output;
mod pair;
mod recover;
mod seconds;
mod status;
#[cfg(test)]
mod tests;
mod token;
mod view;
mod view_change;
mod waiting;
mod watch;
mod watch_line;

use std::process::ExitCode;

use failure::{DONE, NO};

/// What to ask a running node.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Print the value of a key
    Get(pair::GetArgs),
    /// Store a value under a key
    Put(pair::PutArgs),
    /// Delete a key
    Delete(pair::DeleteArgs),
    /// Print the keys in their order, one a line
    List(list::ListArgs),
    /// Write all pairs to a file, those of each shard as of one moment
    Export(export::ExportArgs),
    /// Print what is done to keys, as it is done
    Watch(watch::WatchArgs),
    /// Print how many pairs every shard holds, and their sum
    Count(count::CountArgs),
    /// Print which shard owns what, and on which nodes
    View(view::ViewArgs),
    /// Print how everything is: what is wrong and what to do, nodes, shards, the last view changes
    Status(status::StatusArgs),
    /// Change the nodes of the cluster, with exactly even shards afterwards, and follow it to its end
    ViewChange(view_change::ViewChangeArgs),
    /// Count and sum up every shard, and say whether all is as it must be
    Audit(audit::AuditArgs),
    /// Go on with what is left after most of the nodes that hold the view were lost for good
    Recover(recover::RecoverArgs),
    /// Ask whether a node is ready to serve; made for health checks
    Health(health::HealthArgs),
    /// Store every line of a file as a pair
    Import(import::ImportArgs),
    /// Print what is in the folder of a node that does not run, its `DATA_DIR`, and whether it is whole
    #[command(about = "Print what is in the DATA_DIR of a node that does not run, and whether it is whole")]
    Inspect(inspect::InspectArgs),
    /// Print what a shell completes command lines by
    Completions(manual::CompletionsArgs),
    /// Print the page of the manual, or write all of its pages
    Man(manual::ManArgs),
    /// Draw a token for who asks nodes that want one; all other commands show the one in the variable `EVENKV_TOKEN`
    Token(token::TokenArgs),
}

/// Does what `command` of a program says, with its output on standard output and its errors on standard error.
pub fn run(command: Command, program: fn() -> clap::Command) -> ExitCode {
    let result = match command {
        Command::Get(args) => pair::get(&args),
        Command::Put(args) => pair::put(&args),
        Command::Delete(args) => pair::delete(&args),
        Command::List(args) => list::list(&args),
        Command::Export(args) => export::export(&args),
        Command::Watch(args) => watch::watch(&args),
        Command::Count(args) => count::count(&args),
        Command::View(args) => view::view(&args),
        Command::Status(args) => status::status(&args),
        Command::ViewChange(args) => view_change::view_change(&args),
        Command::Audit(args) => audit::audit(&args),
        Command::Recover(args) => recover::recover(&args),
        Command::Health(args) => health::health(&args),
        Command::Import(args) => import::import(&args),
        Command::Inspect(args) => inspect::inspect(&args),
        Command::Completions(args) => manual::completions(&args, program()),
        Command::Man(args) => manual::man(&args, program()),
        Command::Token(args) => token::token(&args),
    };
    match result {
        Ok(true) => ExitCode::from(DONE),
        Ok(false) => ExitCode::from(NO),
        Err(failure) => {
            eprintln!("evenkv: {failure}{}", failure.advice());
            ExitCode::from(failure.exit_code())
        }
    }
}
