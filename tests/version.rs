//! Which commit a program says that it was built of. The build script is built and run here as cargo does it, in checkouts that the tests make.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::node::{Node, evenkv};

/// What a wholly optimised build has.
const RELEASE: (&str, &str) = ("OPT_LEVEL", "3");

/// The build script as a program, in a folder that stands for a crate.
struct Crate {
    folder: tempfile::TempDir,
    script: PathBuf,
}

impl Crate {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let script = folder.path().join("build-script");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("build.rs");
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let built = Command::new(rustc).args(["--edition=2024", "-o"]).arg(&script).arg(source).status();
        assert!(built.expect("the compiler runs").success());
        let own = Self { folder, script };
        for name in ["build.rs", "Cargo.toml", "Cargo.lock", "src/main.rs"] {
            own.write(name, "one");
        }
        own
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("crate")
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(path, text).expect("written");
    }

    fn git(&self, arguments: &[&str]) -> String {
        let output = self.command(Path::new("git")).args(arguments).output().expect("git is there");
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).expect("text").trim().to_owned()
    }

    fn commit(&self) -> String {
        self.git(&["init", "--quiet"]);
        self.git(&["add", "."]);
        self.git(&["-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message", "one"]);
        self.git(&["rev-parse", "HEAD"])
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.path()).env_clear().env("CARGO_MANIFEST_DIR", self.path());
        command.env("PATH", std::env::var_os("PATH").expect("a path")).env("GIT_CONFIG_GLOBAL", "/dev/null");
        command
    }

    /// What the script prints with these variables, by its names; those of which there are several are joined.
    fn run(&self, variables: &[(&str, &str)]) -> Option<BTreeMap<String, String>> {
        let output = self.command(&self.script).envs(variables.iter().copied()).output().expect("it runs");
        let text = String::from_utf8(output.stdout).expect("text");
        let mut printed: BTreeMap<String, String> = BTreeMap::new();
        for line in text.lines() {
            let (name, value) =
                line.strip_prefix("cargo:").and_then(|line| line.split_once('=')).expect("a line for cargo");
            printed.entry(name.to_owned()).or_default().extend([value, "\n"]);
        }
        output.status.success().then_some(printed)
    }

    fn shown(&self, variables: &[(&str, &str)]) -> Option<String> {
        let printed = self.run(variables)?;
        Some(printed["rustc-env"].strip_prefix("EVENKV_COMMIT=").expect("the variable").trim_end().to_owned())
    }
}

#[test]
fn a_build_names_the_commit_and_whether_its_sources_differ() {
    let own = Crate::new();
    let commit = own.commit();
    let short = &commit[..12];
    assert_eq!(own.shown(&[RELEASE]).as_deref(), Some(short));
    own.write("README.md", "no source");
    assert_eq!(own.shown(&[RELEASE]).as_deref(), Some(short));
    own.write("src/main.rs", "two");
    assert_eq!(own.shown(&[RELEASE]), Some(format!("{short}-dirty")));
    own.git(&["add", "src"]);
    assert_eq!(own.shown(&[RELEASE]), Some(format!("{short}-dirty")));
    let next = own.commit();
    assert_ne!(next, commit);
    assert_eq!(own.shown(&[RELEASE]).as_deref(), Some(&next[..12]));
}

#[test]
fn the_script_runs_again_for_another_commit_where_that_is_shown_and_only_there() {
    let own = Crate::new();
    own.commit();
    let watched = own.run(&[RELEASE]).expect("it ends well")["rerun-if-changed"].clone();
    let branch = own.git(&["symbolic-ref", "HEAD"]);
    for path in ["src", "Cargo.lock", ".git/HEAD", &format!(".git/{branch}")] {
        assert!(watched.lines().any(|line| line == path), "{path}: {watched}");
    }
    assert!(watched.lines().all(|line| own.path().join(line).exists()), "it would run each time: {watched}");
    for variables in [&[("OPT_LEVEL", "1")][..], &[]] {
        let printed = own.run(variables).expect("it ends well");
        assert_eq!(printed["rerun-if-changed"], "build.rs\n");
        assert_eq!(printed["rustc-env"], "EVENKV_COMMIT=unknown\n");
    }
}

#[test]
fn outside_of_a_checkout_it_is_what_the_environment_says_or_unknown() {
    let own = Crate::new();
    assert_eq!(own.shown(&[RELEASE]).as_deref(), Some("unknown"));
    assert_eq!(own.shown(&[RELEASE, ("EVENKV_COMMIT", "")]).as_deref(), Some("unknown"));
    assert_eq!(own.shown(&[RELEASE, ("EVENKV_COMMIT", "v1.2-3_a+b")]).as_deref(), Some("v1.2-3_a+b"));
    assert_eq!(own.shown(&[RELEASE, ("PATH", "/nowhere")]).as_deref(), Some("unknown"));
    let commit = own.commit();
    assert_eq!(own.shown(&[RELEASE, ("EVENKV_COMMIT", "given")]).as_deref(), Some("given"));
    assert_eq!(own.shown(&[("EVENKV_COMMIT", "given")]).as_deref(), Some("given"));
    for wrong in ["a b", "\"", "a\nb", &"x".repeat(65)] {
        assert_eq!(own.shown(&[("EVENKV_COMMIT", wrong)]), None, "{wrong}");
    }
    // A copy within somebody else's checkout is not that.
    fs::rename(own.path().join(".git"), own.folder.path().join(".git")).expect("moved");
    assert_eq!(own.git(&["rev-parse", "HEAD"]), commit);
    assert_eq!(own.shown(&[RELEASE]).as_deref(), Some("unknown"));
}

#[test]
fn the_program_says_its_commit_where_it_is_asked_in_its_log_and_in_its_figures() {
    let output = evenkv().arg("--version").output().expect("it runs");
    let full = String::from_utf8(output.stdout).expect("text").trim_end().to_owned();
    let (version, commit) = full.split_once(" (commit ").expect("both");
    assert_eq!(version, concat!("evenkv ", env!("CARGO_PKG_VERSION")));
    let commit = commit.strip_suffix(')').expect("a whole sentence");
    let short = evenkv().arg("-V").output().expect("it runs");
    assert_eq!(String::from_utf8(short.stdout).expect("text").trim_end(), version);

    let node = Node::single(&[]);
    node.wait_logged(&format!("{full} is {}", node.address()));
    let info =
        format!("evenkv_build_info{{commit=\"{commit}\",version=\"{}\"}} 1", env!("CARGO_PKG_VERSION"));
    let figures = node.http().get("/metrics").text();
    assert!(figures.lines().any(|line| line == info), "{info}\n{figures}");
}
