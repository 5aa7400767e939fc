//! One process of the built binary.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use nix::time::ClockId;
use nix::unistd::Pid;

use super::http::Http;
use super::{START_DEADLINE, openapi, ports, wait_until};

/// How much of a node's log a failing test prints.
const LOG_TAIL_LINES: usize = 60;

/// A process of evenkv with settings of its own and nothing from the environment of the tests. It ends
/// with this value; when the test fails its log is printed.
pub(crate) struct Node {
    address: String,
    settings: Vec<(String, String)>,
    /// The network namespace in which it runs, where that is another one than that of the test.
    /// Another program than the one under test.
    program: Option<PathBuf>,
    namespace: Option<String>,
    folder: tempfile::TempDir,
    child: Option<Child>,
    starts: usize,
}

impl Node {
    /// A single node with `ADDRESS` on a free port and further settings, ready to serve.
    pub(crate) fn single(settings: &[(&str, &str)]) -> Self {
        let node = Self::start(&ports::free_address(), settings);
        node.wait_ready();
        node
    }

    /// A follower of `main`, alive.
    pub(crate) fn follower(main: &str, settings: &[(&str, &str)]) -> Self {
        let mut all = vec![("FORWARDING_ADDRESS", main)];
        all.extend_from_slice(settings);
        let node = Self::start(&ports::free_address(), &all);
        node.wait_live();
        node
    }

    /// A process with `ADDRESS` and these settings; it may not listen yet.
    pub(crate) fn start(address: &str, settings: &[(&str, &str)]) -> Self {
        let mut all = vec![("ADDRESS", address)];
        all.extend_from_slice(settings);
        Self::start_reached_at(address, &all)
    }

    /// A process with exactly these settings, which the tests reach at `address`.
    pub(crate) fn start_reached_at(address: &str, settings: &[(&str, &str)]) -> Self {
        let mut node = Self::not_started(address);
        node.settings = owned(settings);
        node.spawn_own();
        node
    }

    /// A process of another program with `ADDRESS` and these settings.
    pub(crate) fn start_program(program: &Path, address: &str, settings: &[(&str, &str)]) -> Self {
        let mut node = Self::not_started(address);
        node.settings = owned(&[("ADDRESS", address)]);
        node.settings.extend(owned(settings));
        node.run_program(Some(program.to_owned()));
        node.spawn_own();
        node
    }

    /// From the next start on another program is run, or the one under test again.
    pub(crate) fn run_program(&mut self, program: Option<PathBuf>) {
        self.program = program;
    }

    /// A process with `ADDRESS` and these settings in a network namespace.
    pub(crate) fn start_in(namespace: &str, address: &str, settings: &[(&str, &str)]) -> Self {
        let mut node = Self::not_started(address);
        node.namespace = Some(namespace.to_owned());
        node.settings = owned(&[("ADDRESS", address)]);
        node.settings.extend(owned(settings));
        node.spawn_own();
        node
    }

    /// A process with `ADDRESS` and these settings whose standard error is not the log that the tests read; it cannot be restarted.
    pub(crate) fn start_with_errors(address: &str, settings: &[(&str, &str)], errors: Stdio) -> Self {
        let mut node = Self::not_started(address);
        let mut command = evenkv();
        command.env("ADDRESS", address).envs(settings.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
        node.child = Some(command.spawn().expect("the built binary starts"));
        node
    }

    /// A process of this command, which listens at `address`; it cannot be restarted.
    pub(crate) fn start_command(address: &str, command: Command) -> Self {
        let mut node = Self::not_started(address);
        node.spawn(command);
        node
    }

    fn not_started(address: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder for the log");
        let (address, settings) = (address.to_owned(), Vec::new());
        Self { address, settings, program: None, namespace: None, folder, child: None, starts: 0 }
    }

    fn spawn_own(&mut self) {
        self.spawn(match (&self.namespace, &self.program) {
            (None, None) => evenkv(),
            (None, Some(program)) => clean(Command::new(program)),
            (Some(namespace), _) => evenkv_in(namespace),
        });
    }

    fn spawn(&mut self, mut command: Command) {
        self.starts += 1;
        self.leave_out_others();
        let log = File::create(self.log_path()).expect("a file for the log");
        let errors = log.try_clone().expect("the log a second time");
        command.envs(self.settings.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        self.child = Some(command.spawn().expect("the built binary starts"));
    }

    /// What comes through a node from a main made by hand, or out of a cluster with an older version in it, is not held against the document of this version.
    fn leave_out_others(&self) {
        let setting = |name: &str| self.settings.iter().find(|(known, _)| known == name);
        if setting("FORWARDING_ADDRESS").is_some_and(|(_, main)| openapi::is_left_out(main)) {
            openapi::leave_out(&self.address);
        }
        if self.program.is_some() {
            let view = setting("VIEW").map_or("", |(_, view)| view);
            view.split(',').chain([self.address.as_str()]).for_each(openapi::leave_out);
        }
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// A new client of this node.
    pub(crate) fn http(&self) -> Http {
        Http::new(&self.address)
    }

    /// What the process has logged since its last start.
    pub(crate) fn log(&self) -> String {
        let bytes = fs::read(self.log_path()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until the process has logged something: a thread of its own writes what is logged, in a while.
    pub(crate) fn wait_logged(&self, text: &str) {
        wait_until(&format!("{} logs {text:?}", self.address), START_DEADLINE, || self.log().contains(text));
    }

    /// Copies the logs of all starts into this folder.
    pub(crate) fn keep_logs(&self, to: &Path) {
        fs::create_dir_all(to).expect("the folder for logs can be made");
        for start in 1..=self.starts {
            let name = format!("log.{start}");
            fs::copy(self.folder.path().join(&name), to.join(&name)).expect("a log can be copied");
        }
    }

    fn log_path(&self) -> std::path::PathBuf {
        self.folder.path().join(format!("log.{}", self.starts))
    }

    /// Waits until `/readyz` says that the node serves.
    pub(crate) fn wait_ready(&self) {
        self.wait_for_200("/readyz");
    }

    /// Waits until the process answers at all.
    pub(crate) fn wait_live(&self) {
        self.wait_for_200("/livez");
    }

    fn wait_for_200(&self, path: &str) {
        let what = format!("{} answers {path} with 200", self.address);
        wait_until(&what, START_DEADLINE, || {
            let answer = Http::unchecked(&self.address).try_request("GET", path, &[], b"");
            answer.is_ok_and(|answer| answer.status == 200)
        });
    }

    /// Ends the process at once, as a crash does. Nobody listens on its port when this returns.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("a child of ours can be killed");
            child.wait().expect("a child of ours can be waited for");
        }
    }

    /// Ends all of these processes at one moment, as far as that can be done.
    pub(crate) fn kill_all(nodes: &mut [Self]) {
        for node in &mut *nodes {
            if let Some(child) = &mut node.child {
                child.kill().expect("a child of ours can be killed");
            }
        }
        nodes.iter_mut().for_each(Self::kill);
    }

    /// Starts a new process with the same settings on the same port, after the old one was killed.
    pub(crate) fn restart(&mut self) {
        self.kill();
        self.spawn_own();
    }

    /// The same with other settings beside `ADDRESS`.
    pub(crate) fn restart_with(&mut self, settings: &[(&str, &str)]) {
        self.kill();
        self.settings.retain(|(name, _)| name == "ADDRESS");
        self.settings.extend(owned(settings));
        self.spawn_own();
    }

    /// Stops the process where it stands; connections to it are still taken by the system.
    pub(crate) fn pause(&self) {
        self.signal("STOP");
        wait_until("the process stands still", START_DEADLINE, || {
            self.status_line("State").is_some_and(|state| state.starts_with('T'))
        });
    }

    /// Whether the process stands still or has ended, by whatever cause.
    pub(crate) fn has_halted(&self) -> bool {
        self.status_line("State").is_none_or(|state| state.starts_with(['T', 'Z']))
    }

    /// Lets a paused process go on.
    pub(crate) fn resume(&self) {
        self.signal("CONT");
    }

    /// Asks the process to end.
    pub(crate) fn terminate(&self) {
        self.signal("TERM");
    }

    /// Tells the process that its terminal is gone.
    pub(crate) fn hang_up(&self) {
        self.signal("HUP");
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("sh")
            .args(["-c", "kill -s \"$0\" \"$1\"", name, &self.pid().to_string()])
            .status()
            .expect("a shell runs");
        assert!(sent.success(), "SIG{name} could not be sent to {}", self.address);
    }

    /// Waits until the process has ended by itself.
    pub(crate) fn wait_exit(&mut self, deadline: Duration) -> ExitStatus {
        let what = format!("{} has ended", self.address);
        let child = self.child.as_mut().expect("the process was not killed before");
        let mut status = None;
        wait_until(&what, deadline, || {
            status = child.try_wait().expect("a child of ours can be asked");
            status.is_some()
        });
        status.expect("waited for")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("the process runs").id()
    }

    /// The memory that the process takes in RAM, in bytes.
    pub(crate) fn resident_bytes(&self) -> u64 {
        let line = self.status_line("VmRSS").expect("Linux tells the resident size");
        let kilobytes = line.trim_end_matches(" kB").trim();
        kilobytes.parse::<u64>().expect("a number of kilobytes") * 1024
    }

    /// The memory that the process has taken at most in RAM, in bytes.
    pub(crate) fn peak_bytes(&self) -> u64 {
        let line = self.status_line("VmHWM").expect("Linux tells the resident size");
        let kilobytes = line.trim_end_matches(" kB").trim();
        kilobytes.parse::<u64>().expect("a number of kilobytes") * 1024
    }

    /// From now on [`Self::peak_bytes`] tells what is taken at most from now on.
    pub(crate) fn reset_peak(&self) {
        fs::write(format!("/proc/{}/clear_refs", self.pid()), "5")
            .expect("Linux forgets the peak of a child");
    }

    /// The CPU time that all threads of the process have used, those that have ended among them.
    pub(crate) fn cpu_time(&self) -> Duration {
        let pid = Pid::from_raw(i32::try_from(self.pid()).expect("a process id"));
        let clock = ClockId::pid_cpu_clock_id(pid).expect("a child of ours has a clock");
        clock.now().expect("it can be read").into()
    }

    pub(crate) fn thread_count(&self) -> usize {
        self.status_line("Threads").and_then(|line| line.parse().ok()).expect("Linux tells the threads")
    }

    /// The threads whose names begin so, of which the system keeps 15 bytes.
    pub(crate) fn threads_named(&self, beginning: &str) -> usize {
        let tasks =
            fs::read_dir(format!("/proc/{}/task", self.pid())).expect("the threads of a child can be listed");
        // One that has just ended has no name any more.
        let names = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
        names.filter(|name| name.starts_with(beginning)).count()
    }

    pub(crate) fn descriptor_count(&self) -> usize {
        let folder = format!("/proc/{}/fd", self.pid());
        fs::read_dir(folder).expect("the descriptors of a child can be listed").count()
    }

    /// A line of `/proc/PID/status`, without its name.
    fn status_line(&self, name: &str) -> Option<String> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid())).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(|line| line.trim().to_owned())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
        self.kill();
        if thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(LOG_TAIL_LINES)..];
            let end = match ended {
                Some(status) => format!(", ended with {:?} (signal {:?})", status.code(), status.signal()),
                None => String::new(),
            };
            eprintln!("--- log of {}{end} {:?}\n{}\n---", self.address, self.settings, tail.join("\n"));
        }
    }
}

fn owned(settings: &[(&str, &str)]) -> Vec<(String, String)> {
    settings.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// The binary under test with an environment in which nothing is set that could change what it does.
pub(crate) fn evenkv() -> Command {
    clean(Command::new(env!("CARGO_BIN_EXE_evenkv")))
}

/// The same in a network namespace: `ip` becomes the program, so the process is the node itself.
fn evenkv_in(namespace: &str) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace, env!("CARGO_BIN_EXE_evenkv")]);
    clean(command)
}

fn clean(mut command: Command) -> Command {
    command.env_clear().env("RUST_LOG", "info");
    for name in ["PATH", "HOME", "TMPDIR", "LLVM_PROFILE_FILE"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
}
