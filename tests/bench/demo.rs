//! `zhuque-demo`: a program and a server lose power in the middle of their work and go on. See `ci/demo`.
#![deny(unsafe_code)]

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use zhuque_tests::command::{self, PATIENCE};
use zhuque_tests::guest::{example, find};
use zhuque_tests::life::Announce;
use zhuque_tests::load::{Client, Load, Protocol, free_port, ready};
use zhuque_tests::{Guest, Life, Store};

fn main() -> ExitCode {
    let mut compared = Vec::new();
    let store = Store::new();
    println!("\nStore: {}, used by uid {}.\n", store.dir().display(), user(&store));
    for (needed, part) in [("python3", count as fn(&Store) -> Vec<String>), ("memcached", serve)] {
        if find(needed).is_some() {
            compared.extend(part(&store));
        } else {
            println!("{needed} is not installed: this part is left out.\n");
        }
    }
    println!("What was compared:");
    for line in &compared {
        println!("  {line}");
    }
    let wrong = compared.iter().filter(|line| line.starts_with("WRONG")).count();
    if compared.is_empty() || wrong > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn user(store: &Store) -> u32 {
    store.user().unwrap_or_else(|| nix::unistd::geteuid().as_raw())
}

fn say(text: &str) {
    println!("    {text}");
}

/// A result for the summary.
fn verdict(right: bool, what: String) -> String {
    format!("{}{what}", if right { "same:  " } else { "WRONG: " })
}

/// Prints the lines that have been added to `file` since `shown` lines.
fn show_new(file: &Path, shown: &mut usize) {
    let text = fs::read_to_string(file).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    for line in &lines[(*shown).min(lines.len())..] {
        println!("        {line}");
    }
    *shown = lines.len();
}

/// CPython counts aloud and loses power twice.
fn count(store: &Store) -> Vec<String> {
    println!("1. A Python program, unmodified, that keeps everything in a dict\n");
    say(&format!("$ zhuque run -n counting -- python3 {} 40", example("counting.py").display()));
    let guest = Guest::python("counting.py").arg("40");
    let mut life = Life::start(store, "counting", &guest);
    let (output, mut shown) = (life.output_file("out"), 0);
    for (announce, how) in [
        (Announce::Fail, "$ zhuque fail counting      # the power fails: every process of the machine is gone"),
        (Announce::Signal, "$ kill -PWR $(pidof python3)     # the power fails again, announced by init this time"),
    ] {
        std::thread::sleep(Duration::from_millis(1100));
        let failed = life.fail(announce);
        show_new(&output, &mut shown);
        say(how);
        if !failed {
            life.wrong("ended too early");
        }
        let region = store.find("counting");
        let state = region.map_or("?".to_string(), |is| format!("{}, {} bytes", is.state, is.bytes));
        say(&format!("(zhuque ended with 75; the region is {state}; nothing of it runs)"));
        std::thread::sleep(Duration::from_millis(700));
        say("$ zhuque resume counting");
        life.resume();
    }
    let end = life.end();
    show_new(&output, &mut shown);
    let native = guest.finish_natively(store, &store.work_dir("counting.native"));
    let same = end.status == 0 && end.stdout == native.stdout;
    println!();
    vec![verdict(
        same,
        format!("{} bytes of output, two failures in them, and those of an uninterrupted run", end.stdout.len()),
    )]
}

/// memcached loses power three times under load.
fn serve(store: &Store) -> Vec<String> {
    println!("2. memcached under load\n");
    let port = free_port();
    let arguments = ["-t", "4", "-m", "1024", "-U", "0", "-l", "127.0.0.1", "-p"];
    let guest = Guest::installed("memcached").args(arguments).arg(port.to_string());
    say(&format!("$ zhuque run -n memcached -- memcached {} {port}", arguments.join(" ")));
    let mut life = Life::start(store, "memcached", &guest);
    if !ready(Protocol::Memcached, port) {
        life.wrong("does not answer");
    }
    let mut clients: Vec<Client> = (0..4).map(|number| Client::new(Protocol::Memcached, port, number, 5000)).collect();
    let (mut kept, mut checked) = (true, 0);
    for _ in 0..3 {
        say("4 clients set and get, and note every STORED that they receive");
        let load = Load::start(clients);
        std::thread::sleep(Duration::from_millis(1200));
        say("$ zhuque fail memcached     # in the middle of it");
        if !life.fail(Announce::Fail) {
            life.wrong("the server ended");
        }
        clients = load.stop().unwrap_or_else(|wrong| life.wrong(&wrong));
        say(&format!(
            "{} keys had been STORED; the connections are reset",
            clients.iter().map(Client::stored).sum::<u64>()
        ));
        say("$ zhuque resume memcached");
        life.resume();
        if !ready(Protocol::Memcached, port) {
            life.wrong("does not answer any more");
        }
        let mut there = 0;
        for client in &mut clients {
            match client.verify() {
                Ok(found) => there += found,
                Err(wrong) => {
                    say(&wrong);
                    kept = false;
                }
            }
        }
        checked += there;
        say(&format!("same port, and {there} keys are there, with the values that were stored last\n"));
    }
    let removed = store.call("rm", &["memcached"]);
    say(&format!("$ zhuque rm memcached  (status {})\n", removed.status));
    let unlisted = command::until(PATIENCE, || store.find("memcached").is_none().then_some(())).is_some();
    vec![
        verdict(
            kept,
            format!("{checked} keys of memcached after three failures, and what its clients had been promised"),
        ),
        verdict(unlisted, "the list of regions after `rm`, and an empty one".to_string()),
    ]
}
