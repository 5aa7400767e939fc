//! Load on a main directly, through a follower in front of it, and through nginx in front of it where that is installed.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::fill;
use crate::process::{Process, START, free_addresses};
use crate::report::{self, Series, compare};
use crate::system::System;
use crate::wrk::{self, KEYS, Kind, Load};

/// What a follower's rate is to be of its main's.
const MAIN_TARGET: f64 = 0.55;
/// The same of that of nginx before the same main.
const NGINX_TARGET: f64 = 0.9;

const MAIN: &str = "main";
const FOLLOWER: &str = "follower";
const NGINX: &str = "nginx";

/// Measures and prints; whether all targets were met. A round has this length.
pub(crate) fn measure(length: Duration, rounds: u64) -> io::Result<bool> {
    let addresses = free_addresses(3)?;
    let mut main = Process::node(addresses[0], &[])?;
    main.wait_until_ready("/readyz", START)?;
    fill::put_all(System::Evenkv, main.address, KEYS)?;
    let forwarding = ["--forwarding-address".to_owned(), main.address.to_string()];
    let mut follower = Process::node(addresses[1], &forwarding)?;
    follower.wait_until_ready("/readyz", START)?;
    let folder = TempDir::new()?;
    let nginx = if is_nginx_installed() {
        Some(start_nginx(&folder, addresses[2], main.address)?)
    } else {
        println!("nginx: not on this machine, so it was not measured");
        None
    };
    // Both the one that is asked and the main work for it.
    let mut processes = vec![follower];
    processes.extend(nginx);
    processes.push(main);
    let names = if processes.len() == 3 { &[FOLLOWER, NGINX, MAIN][..] } else { &[FOLLOWER, MAIN] };
    let mut all = Vec::new();
    for kind in [Kind::Get, Kind::Put] {
        println!("{}: {rounds} rounds of {length:?} against each in turn ...", kind.method());
        let mut series: Vec<_> =
            names.iter().map(|server| Series { server, kind, rounds: Vec::new() }).collect();
        for _ in 0..rounds {
            for (process, series) in processes.iter().zip(&mut series) {
                let asked = vec![process.address];
                let load = Load { system: System::Evenkv, processes: &processes, asked, kind };
                series.rounds.push(wrk::run(&load, length)?);
            }
        }
        all.append(&mut series);
    }
    println!();
    report::print_table(&all, MAIN);
    println!("CPU: of whoever is asked and of the main.");
    println!();
    let verdicts = [Kind::Get, Kind::Put].map(|kind| {
        let of_main = compare(&all, kind, [FOLLOWER, MAIN], MAIN_TARGET);
        compare(&all, kind, [FOLLOWER, NGINX], NGINX_TARGET) && of_main
    });
    Ok(verdicts.iter().all(|is_met| *is_met))
}

fn is_nginx_installed() -> bool {
    Command::new("nginx").arg("-v").output().is_ok_and(|output| output.status.success())
}

/// nginx as docs/API.md says that a proxy is set up, with connections to the main that are kept. One process, which ends with this one.
fn start_nginx(folder: &TempDir, address: SocketAddr, main: SocketAddr) -> io::Result<Process> {
    let place = folder.path().display();
    let file = folder.path().join("nginx.conf");
    let settings = format!(
        "daemon off; master_process off; pid {place}/pid; error_log {place}/errors;
        events {{ worker_connections 4096; }}
        http {{
            access_log off; keepalive_requests 1000000000; client_body_temp_path {place}/body; proxy_temp_path {place}/proxy;
            fastcgi_temp_path {place}/fastcgi; uwsgi_temp_path {place}/uwsgi; scgi_temp_path {place}/scgi;
            upstream main {{ server {main}; keepalive 128; keepalive_requests 1000000000; }}
            server {{
                listen {address};
                location / {{ proxy_pass http://main; proxy_http_version 1.1; proxy_set_header Connection \"\"; }}
            }}
        }}"
    );
    fs::write(&file, settings)?;
    let mut command = Command::new("nginx");
    command.arg("-c").arg(&file);
    let mut nginx = Process::spawn(command, address)?;
    nginx.wait_until_ready("/readyz", START)?;
    Ok(nginx)
}
