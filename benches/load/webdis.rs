//! A Redis server that is asked by HTTP, through webdis, to compare batches with. It keeps its pairs in memory, as ours do.

use std::io;
use std::process::Command;

use tempfile::TempDir;

use crate::process::{Process, free_addresses};

/// Threads of webdis: one for each processor of the smallest machine that is measured on.
const THREADS: usize = 2;

/// Starts a Redis server and webdis before it, which keeps its configuration in the folder and comes first.
///
/// # Errors
/// When one cannot be started.
pub(crate) fn start(folder: &TempDir) -> io::Result<Vec<Process>> {
    let addresses = free_addresses(2)?;
    let (front, behind) = (addresses[0], addresses[1]);
    let mut redis = Command::new("redis-server");
    redis
        .current_dir(folder.path())
        .args(["--bind", &behind.ip().to_string(), "--port", &behind.port().to_string()])
        .args(["--save", "", "--appendonly", "no"]);
    let redis = Process::spawn(redis, behind)?;
    let configuration = folder.path().join("webdis.json");
    let text = serde_json::json!({
        "redis_host": behind.ip(), "redis_port": behind.port(),
        "http_host": front.ip(), "http_port": front.port(),
        "threads": THREADS, "daemonize": false, "verbosity": 0, "logfile": folder.path().join("webdis.log"),
    });
    std::fs::write(&configuration, text.to_string())?;
    let mut webdis = Command::new("webdis");
    webdis.current_dir(folder.path()).arg(configuration);
    Ok(vec![Process::spawn(webdis, front)?, redis])
}
