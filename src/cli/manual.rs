//! `completions` and `man`: what is made of the description of the command line itself.

use std::io;
use std::path::{Path, PathBuf};

use clap::Command;
use clap_complete::Shell;

use super::failure::Failure;
use super::output::print_bytes;

/// The program, as a shell and a manual know it.
const NAME: &str = "evenkv";

/// What `completions` is told.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  evenkv completions bash > /usr/share/bash-completion/completions/evenkv\n  \
                  evenkv completions zsh > \"${fpath[1]}/_evenkv\"\n  \
                  evenkv completions fish > ~/.config/fish/completions/evenkv.fish"
)]
pub struct CompletionsArgs {
    /// The shell that is to complete
    shell: Shell,
}

/// What `man` is told.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  evenkv man | man -l -\n  evenkv man /usr/local/share/man/man1")]
pub struct ManArgs {
    /// Write the pages into this folder, that of evenkv and one for each subcommand, and print none
    folder: Option<PathBuf>,
}

/// Prints what a shell completes by.
pub(super) fn completions(args: &CompletionsArgs, mut program: Command) -> Result<bool, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut program, NAME, &mut script);
    print_bytes(&script).map(|()| true)
}

/// Prints the page of the manual, or writes all pages.
pub(super) fn man(args: &ManArgs, program: Command) -> Result<bool, Failure> {
    // As the library does it for all pages.
    let mut program = program.disable_help_subcommand(true);
    program.build();
    match &args.folder {
        None => {
            let mut page = Vec::new();
            let written = clap_mangen::Man::new(program).render(&mut page);
            written.map_err(|error| Failure::Local(format!("the page cannot be made: {error}")))?;
            print_bytes(&page)?;
        }
        Some(folder) => {
            clap_mangen::generate_to(program, folder).map_err(|error| cannot_write(folder, &error))?;
        }
    }
    Ok(true)
}

fn cannot_write(folder: &Path, error: &io::Error) -> Failure {
    Failure::Local(format!("cannot write to {}: {error}", folder.display()))
}
