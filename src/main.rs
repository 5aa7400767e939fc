//! The `evenkv` program.

use std::process::ExitCode;

use clap::Parser;

/// A distributed key-value store over plain HTTP
#[derive(Parser)]
#[command(name = "evenkv", version)]
struct Program {
    #[command(subcommand)]
    command: evenkv::cli::Command,
}

fn main() -> ExitCode {
    evenkv::cli::run(Program::parse().command)
}
