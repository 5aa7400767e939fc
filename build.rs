//! Tells the program which commit it is built of, as `EVENKV_COMMIT`.
//!
//! It is what the environment variable of this name says; else the commit of the checkout, with `-dirty` where what is built differs from it; else
//! `unknown`. Only a build that is optimised wholly asks git: this script runs again whenever the commit changes, and then all of the crate is
//! built again, which test builds are spared.

use std::env;
use std::path::Path;
use std::process::Command;

/// What is built, and where it differs from the commit.
const SOURCES: [&str; 4] = ["src", "build.rs", "Cargo.toml", "Cargo.lock"];
/// Digits of a commit that are shown.
const DIGITS: usize = 12;

fn main() {
    println!("cargo:rerun-if-env-changed=EVENKV_COMMIT");
    println!("cargo:rerun-if-changed=build.rs");
    let commit = given().or_else(|| if is_optimised() { of_checkout() } else { None });
    println!("cargo:rustc-env=EVENKV_COMMIT={}", commit.as_deref().unwrap_or("unknown"));
}

/// What whoever builds says: letters, digits and what stands in names of versions.
fn given() -> Option<String> {
    let given = env::var_os("EVENKV_COMMIT")?.into_string().ok()?;
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "-._+".contains(letter);
    assert!(
        given.len() <= 64 && given.chars().all(is_plain),
        "EVENKV_COMMIT is {given:?}: at most 64 letters, digits and -._+"
    );
    Some(given).filter(|given| !given.is_empty())
}

fn is_optimised() -> bool {
    env::var_os("OPT_LEVEL").is_some_and(|level| level == "3")
}

/// The commit, where this is a checkout of the project and not a copy within another one.
fn of_checkout() -> Option<String> {
    let top = git(&["rev-parse", "--show-toplevel"])?;
    let here = env::var_os("CARGO_MANIFEST_DIR")?;
    if Path::new(&top).canonicalize().ok()? != Path::new(&here).canonicalize().ok()? {
        return None;
    }
    let commit = git(&["rev-parse", "--verify", "HEAD"])?;
    watch();
    let mut changes = vec!["--no-optional-locks", "status", "--porcelain", "--untracked-files=no", "--"];
    changes.extend(SOURCES);
    let suffix = if git(&changes)?.is_empty() { "" } else { "-dirty" };
    Some(format!("{}{suffix}", commit.get(..DIGITS)?))
}

/// Has this script run again when another commit is checked out or made, or a source changes.
fn watch() {
    let mut watched: Vec<String> = SOURCES.map(str::to_owned).into();
    let branch = git(&["symbolic-ref", "--quiet", "HEAD"]);
    for name in ["HEAD", "logs/HEAD", "packed-refs"].into_iter().chain(branch.as_deref()) {
        watched.extend(git(&["rev-parse", "--git-path", name]));
    }
    // What is not there would count as changed each time.
    for path in watched.iter().filter(|path| Path::new(path).exists()) {
        println!("cargo:rerun-if-changed={path}");
    }
}

/// What git prints; nothing where there is no git, or it refuses.
fn git(arguments: &[&str]) -> Option<String> {
    let output =
        Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim_end().to_owned())
}
