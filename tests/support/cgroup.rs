//! A control group in which processes may have so much memory, within the one in which the test runs itself.
//!
//! It needs root, or a group that was handed over. All names begin with `evk-`.
#![allow(dead_code, reason = "every test file includes this module and each uses its own part of it")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

static MADE: AtomicU32 = AtomicU32::new(0);

/// The group; it goes with this value, by when nobody may be in it.
pub(crate) struct Cgroup {
    folder: PathBuf,
    is_unified: bool,
}

impl Cgroup {
    /// `Err` says why this machine does not let the test have one.
    pub(crate) fn of(bytes: u64) -> Result<Self, String> {
        let (own, is_unified) = own_group()?;
        let folder = own.join(format!("evk-{}-{}", process::id(), MADE.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let group = Self { folder, is_unified };
        if is_unified {
            group.write("memory.max", bytes)?;
            group.write("memory.swap.max", 0)?;
        } else {
            group.write("memory.limit_in_bytes", bytes)?;
        }
        Ok(group)
    }

    /// Puts a process into it.
    pub(crate) fn take(&self, pid: u32) {
        self.write("cgroup.procs", u64::from(pid))
            .expect("a process of ours can be put into a group of ours");
    }

    /// The most memory that it has taken, with what is cached of files, in bytes.
    pub(crate) fn peak_bytes(&self) -> u64 {
        let name = if self.is_unified { "memory.peak" } else { "memory.max_usage_in_bytes" };
        self.read(name).trim().parse().unwrap_or(0)
    }

    /// How many processes were ended since there was no memory left for them.
    pub(crate) fn killed(&self) -> u64 {
        let name = if self.is_unified { "memory.events" } else { "memory.oom_control" };
        let text = self.read(name);
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.and_then(|count| count.parse().ok()).unwrap_or(0)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.folder.join(name)).unwrap_or_default()
    }

    fn write(&self, name: &str, number: u64) -> Result<(), String> {
        let path = self.folder.join(name);
        fs::write(&path, number.to_string()).map_err(|error| format!("{}: {error}", path.display()))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.folder);
    }
}

/// The group in which this process is, as far as it is about memory, and whether groups are of the unified kind.
fn own_group() -> Result<(PathBuf, bool), String> {
    let text = fs::read_to_string("/proc/self/cgroup").map_err(|error| error.to_string())?;
    let mut unified = None;
    for line in text.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let path = path.trim_start_matches('/');
        if controllers.split(',').any(|controller| controller == "memory") {
            return Ok((Path::new("/sys/fs/cgroup/memory").join(path), false));
        }
        if controllers.is_empty() {
            unified = Some(Path::new("/sys/fs/cgroup").join(path));
        }
    }
    let unified = unified
        .filter(|folder| folder.join("memory.current").exists() || folder.join("cgroup.procs").exists());
    unified.map(|folder| (folder, true)).ok_or_else(|| "no group is about memory".to_owned())
}
