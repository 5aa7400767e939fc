//! What shells complete by, and the manual.

use std::fs;
use std::process::{Command, Stdio};

use super::{evenkv, text};

/// The names of all subcommands, as the help lists them.
fn subcommands() -> Vec<String> {
    let help = text(&evenkv().arg("--help").output().expect("the built binary runs").stdout);
    let listed = help.split("Commands:\n").nth(1).and_then(|rest| rest.split("\n\n").next());
    let words = listed.expect("a list").lines().filter(|line| !line.starts_with("   "));
    let names: Vec<String> =
        words.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect();
    assert!(names.len() > 14 && names.contains(&"watch".to_owned()), "{names:?}");
    names
}

fn printed(words: &[&str]) -> String {
    let output = evenkv().args(words).output().expect("the built binary runs");
    assert_eq!(output.status.code(), Some(0), "{words:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn shells_complete_every_subcommand() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = printed(&["completions", shell]);
        for name in subcommands() {
            assert!(script.contains(&name), "{shell} does not know {name}");
        }
    }
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("evenkv");
    fs::write(&file, printed(&["completions", "bash"])).expect("written");
    let bash = |script: &str| {
        let output = Command::new("bash").args(["-euc", script, "bash"]).arg(&file).output();
        let output = output.expect("bash is there, as the scripts of this repository need it");
        assert!(output.status.success(), "{script}: {}", text(&output.stderr));
        text(&output.stdout)
    };
    bash("bash -n \"$1\"");
    let complete = "source \"$1\"; COMP_WORDS=(evenkv \"${@:2}\"); COMP_CWORD=$(($# - 1)); _evenkv evenkv \"${@: -1}\" x || true; echo ${COMPREPLY[*]}";
    let completed =
        |words: &str| bash(&complete.replace("; COMP_WORDS", &format!("; set -- x {words}; COMP_WORDS")));
    assert_eq!(completed("wat"), "watch\n");
    assert_eq!(completed("watch --si"), "--since\n");
}

#[test]
fn the_manual_has_a_page_for_every_subcommand() {
    let page = printed(&["man"]);
    let folder = tempfile::tempdir().expect("a folder");
    printed(&["man", folder.path().to_str().expect("a path that is text")]);
    let first = fs::read_to_string(folder.path().join("evenkv.1")).expect("it is there");
    assert!(first == page, "the first page is not the one that is printed");
    for name in subcommands().iter().filter(|name| *name != "help") {
        let shown = name.replace('-', "\\-");
        assert!(page.contains(&format!("evenkv\\-{shown}(1)")), "{name} is not on the first page");
        let own = folder.path().join(format!("evenkv-{name}.1"));
        let own = fs::read_to_string(own).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(own.contains(".SH OPTIONS") && own.contains(&shown), "{own}");
    }
    for file in fs::read_dir(folder.path()).expect("it is there") {
        let file = file.expect("it is there").path();
        let mut man = Command::new("man");
        man.args(["--warnings", "-l"]).arg(&file).env("LC_ALL", "C.UTF-8");
        // It is checked where the program that shows it is there.
        let Ok(shown) = man.stdin(Stdio::null()).output() else { return };
        let said = text(&shown.stderr);
        if shown.status.success() {
            assert_eq!(said, "", "{}", file.display());
        }
    }
}

#[test]
fn what_cannot_be_written_is_said() {
    let output = evenkv().args(["man", "/no/such/folder"]).output().expect("the built binary runs");
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stderr).contains("cannot write to /no/such/folder"), "{}", text(&output.stderr));
}
