//! The secret of a cluster in containers: drawn once, kept from git, and given to every node.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A folder with the script, and what stands for `docker compose` there: it notes the secret that it is given, and fails.
fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["scripts", "compose"] {
        fs::create_dir(folder.path().join(name)).expect("a folder in it");
    }
    let script = folder.path().join("scripts/compose-cluster");
    fs::copy(repository().join("scripts/compose-cluster"), script).expect("the script is there");
    let compose = folder.path().join("compose-stub");
    fs::write(&compose, "#!/bin/sh\nprintf %s \"$CLUSTER_SECRET\" >given\nexit 1\n").expect("written");
    fs::set_permissions(&compose, fs::Permissions::from_mode(0o755)).expect("it can be run");
    (folder, compose)
}

/// The secret that the nodes are given.
fn given((folder, compose): &(tempfile::TempDir, PathBuf), secret: &str) -> String {
    let mut command = Command::new(folder.path().join("scripts/compose-cluster"));
    command.arg("up").env("COMPOSE", compose).env("CLUSTER_SECRET", secret);
    assert!(!command.output().expect("bash runs it").status.success(), "the stub fails");
    fs::read_to_string(folder.path().join("given")).expect("the stub was run")
}

#[test]
fn the_first_start_draws_a_secret_and_later_ones_take_the_same() {
    let folders = [folder(), folder()];
    let drawn = folders.each_ref().map(|folder| given(folder, ""));
    assert_ne!(drawn[0], drawn[1], "each clone draws its own");
    for (folder, drawn) in folders.iter().zip(&drawn) {
        assert!(drawn.len() == 32 && drawn.bytes().all(|byte| byte.is_ascii_hexdigit()), "{drawn}");
        assert_eq!(given(folder, ""), *drawn);
        let kept = folder.0.path().join("compose/.secret");
        let mode = fs::metadata(&kept).expect("it is kept").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "nobody else reads it");
        assert_eq!(given(folder, "own"), "own", "one that is set goes before");
        assert_eq!(fs::read_to_string(&kept).expect("it is kept"), *drawn);
    }
    let ignored = fs::read_to_string(repository().join(".gitignore")).expect("there is one");
    assert!(ignored.lines().any(|line| line == "/compose/.secret"), "{ignored}");
}

#[test]
fn every_node_of_the_compose_files_is_given_the_secret() {
    for (name, nodes) in [("single", 1), ("main-follower", 2), ("cluster", 4), ("replicated", 6)] {
        let text =
            fs::read_to_string(repository().join(format!("compose/{name}.yaml"))).expect("it is there");
        let count = |part: &str| text.matches(part).count();
        let taken = "CLUSTER_SECRET: ${CLUSTER_SECRET:-}";
        // Where the settings are in one place, every node refers to it.
        let given =
            if count("x-settings:") == 0 { count(taken) } else { count(taken) * count("<<: *settings") };
        assert_eq!(given, nodes, "{name}");
    }
}
