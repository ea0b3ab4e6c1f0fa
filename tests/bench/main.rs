//! `zhuque-bench [memcached|python|start|power]...`: what persistence costs, measured against native runs.
//!
//! Native runs and runs under zhuque alternate, so that a machine that grows slower or faster disturbs both alike;
//! medians are compared. Without arguments everything is measured. `ZHUQUE_BENCH_ROUNDS` sets how often (default 7).
#![deny(unsafe_code)]

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use zhuque_tests::command::{PATIENCE, until, wait};
use zhuque_tests::guest::build;
use zhuque_tests::life::Announce;
use zhuque_tests::load::{Connection, Protocol, free_port, ready, value};
use zhuque_tests::{Guest, Life, Random, Store};

/// Requests per run and connection, and connections.
const REQUESTS: u64 = 60_000;
const CONNECTIONS: u64 = 4;

fn main() -> ExitCode {
    let mut wanted: Vec<String> = std::env::args().skip(1).collect();
    if wanted.is_empty() {
        wanted = ["start", "memcached", "python", "power"].map(String::from).to_vec();
    }
    let mut over = 0;
    for name in &wanted {
        over += match name.as_str() {
            "start" => start(),
            "memcached" => memcached(),
            "python" => python(),
            "power" => power(64) + power(4096),
            other => {
                eprintln!("zhuque-bench: {other}: not one of start, memcached, python, power");
                return ExitCode::from(2);
            }
        };
    }
    println!("{over} of the figures are above their limit");
    if over == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn rounds() -> usize {
    std::env::var("ZHUQUE_BENCH_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(7)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Prints one figure with its limit; 1 if it is above.
fn figure(what: &str, found: f64, unit: &str, limit: f64) -> u32 {
    let over = found.is_nan() || found > limit;
    println!("{what:<58} {found:9.3} {unit:<5} limit {limit}{}", if over { "  ABOVE" } else { "" });
    u32::from(over)
}

/// Runs `native` and `persistent` by turns and compares the medians.
fn compare(
    what: &str,
    unit: &str,
    times: usize,
    mut native: impl FnMut() -> f64,
    mut persistent: impl FnMut() -> f64,
) -> (f64, f64) {
    let (mut plain, mut under) = (Vec::new(), Vec::new());
    for _ in 0..times {
        plain.push(native());
        under.push(persistent());
    }
    let (plain, under) = (median(plain), median(under));
    println!("{what}: native {plain:.3} {unit}, under zhuque {under:.3} {unit} (medians of {times})");
    (plain, under)
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// How much later a program starts and ends.
fn start() -> u32 {
    let store = Store::new();
    let guest = Guest::installed("true");
    let dir = store.work_dir("start");
    let native = || {
        let began = Instant::now();
        assert_eq!(guest.finish_natively(&store, &dir).status, 0);
        milliseconds(began)
    };
    let under = || {
        let began = Instant::now();
        let ended = store.call("run", &["-n", "start", "--", &guest.program.to_string_lossy()]);
        assert_eq!(ended.status, 0, "{}", ended.stderr);
        milliseconds(began)
    };
    let (plain, persistent) = compare("/bin/true", "ms", rounds() * 5, native, under);
    figure("start and end of a program, later by", persistent - plain, "ms", 10.0)
}

/// User and system time of a process, s (proc_pid_stat(5), fields 14 and 15, in ticks of 10 ms).
fn processor_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in parentheses may contain anything.
    let behind = stat.rsplit(')').next().unwrap_or_default();
    let fields: Vec<f64> = behind.split_whitespace().map(|field| field.parse().unwrap_or(0.0)).collect();
    fields.get(11..13).map_or(f64::NAN, |ticks| ticks.iter().sum::<f64>() / 100.0)
}

/// A fixed sequence of requests, three gets to one set, from several connections: microseconds of `pid` per request, and
/// requests a second.
fn load(port: u16, pid: u32) -> (f64, f64) {
    let (before, began) = (processor_seconds(pid), Instant::now());
    let clients = (0..CONNECTIONS).map(|number| {
        std::thread::spawn(move || {
            let mut connection = Connection::open(Protocol::Memcached, port).expect("connect");
            let mut random = Random::from_seed(number);
            for _ in 0..REQUESTS {
                let index = random.below(5000);
                let key = format!("key-{number}-{index}");
                if random.below(4) == 0 {
                    connection.set(&key, &value(number, index, 1)).expect("set");
                } else {
                    connection.get(&key).expect("get");
                }
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.join().expect("a client");
    }
    let all = (REQUESTS * CONNECTIONS) as f64;
    ((processor_seconds(pid) - before) * 1e6 / all, all / began.elapsed().as_secs_f64())
}

fn memcached() -> u32 {
    let store = Store::new();
    let guest = |port: u16| {
        let arguments = ["-t", "4", "-m", "1024", "-U", "0", "-l", "127.0.0.1", "-p"];
        Guest::installed("memcached").args(arguments).arg(port.to_string())
    };
    let dir = store.work_dir("native");
    let (mut plain_rates, mut rates) = (Vec::new(), Vec::new());
    let native = || {
        let port = free_port();
        let mut child = guest(port).natively(&store, &dir).spawn().expect("memcached");
        assert!(ready(Protocol::Memcached, port), "memcached does not answer");
        let (cost, rate) = load(port, child.id());
        plain_rates.push(rate);
        let _ = child.kill();
        let _ = wait(&mut child, PATIENCE);
        cost
    };
    let mut number = 0;
    let under = || {
        let port = free_port();
        number += 1;
        let mut life = Life::start(&store, &format!("memcached-{number}"), &guest(port));
        assert!(ready(Protocol::Memcached, port), "memcached does not answer");
        let pid = life.pid().expect("memcached runs");
        let (cost, rate) = load(port, pid as u32);
        rates.push(rate);
        cost
    };
    let (plain, persistent) = compare("memcached, processor time per request", "us", rounds(), native, under);
    // The clients take most of the same processors' time: no limit for it.
    let (plain_rate, rate) = (median(plain_rates), median(rates));
    println!("memcached, requests a second: native {plain_rate:.0}, under zhuque {rate:.0}, {:.3}", rate / plain_rate);
    figure("memcached's processor time per request, ratio", persistent / plain, "", 1.03)
}

fn python() -> u32 {
    let store = Store::new();
    let guest = Guest::python("hashing.py").args(["1000000", "."]).patience(Duration::from_secs(120));
    let mut number = 0;
    let native = || {
        number += 1;
        let dir = store.work_dir(&format!("native-{number}"));
        let began = Instant::now();
        assert_eq!(guest.finish_natively(&store, &dir).status, 0);
        began.elapsed().as_secs_f64()
    };
    let mut life_number = 0;
    let under = || {
        life_number += 1;
        let began = Instant::now();
        let mut life = Life::start(&store, &format!("python-{life_number}"), &guest);
        assert_eq!(life.end().status, 0);
        began.elapsed().as_secs_f64()
    };
    let (plain, persistent) = compare("CPython, hashing a million numbers", "s", rounds(), native, under);
    figure("CPython's time, ratio", persistent / plain, "", 1.05)
}

fn wall_ns() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()
}

/// The first `first NS` after `began` that the guest has written. A busy machine makes it write others before.
fn first_instruction(output: &Path, began: u128) -> Option<u128> {
    let text = fs::read_to_string(output).ok()?;
    let mut times = text.lines().filter_map(|line| line.strip_prefix("first ")?.parse().ok());
    times.find(|time| *time > began)
}

/// How much memory could be used now, MiB.
fn available_mib() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("MemAvailable:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1024
}

/// The time that `zhuque fail` reports, ms: the number in front of the first unit of time in its answer.
fn reported_ms(text: &str) -> Option<f64> {
    let words: Vec<&str> = text.split([' ', '\n', ',', '(', ')']).collect();
    let units = [("ns", 1e-6), ("us", 1e-3), ("µs", 1e-3), ("ms", 1.0), ("s", 1e3)];
    words.iter().enumerate().find_map(|(at, word)| {
        units.iter().find_map(|(unit, factor)| {
            let joined = word.strip_suffix(unit).filter(|number| !number.is_empty());
            let number = joined.or_else(|| (word == unit && at > 0).then(|| words[at - 1]))?;
            number.parse::<f64>().ok().map(|number| number * factor)
        })
    })
}

/// `zhuque fail spin`; what it says. Nothing of the benchmark runs meanwhile, which on few processors would be taken from the
/// save: no new threads that read what comes, no looking every millisecond whether it is there.
fn fail_undisturbed(store: &Store, answer: &Path) -> String {
    let file = fs::File::create(answer).expect("a file for the answer");
    let mut command = store.zhuque("fail");
    command.arg("spin").stderr(file.try_clone().expect("the same")).stdout(file);
    // It has a limit of its own.
    let status = command.status().expect("zhuque fail starts").code();
    let text = fs::read_to_string(answer).unwrap_or_default();
    assert_eq!(status, Some(0), "{text}");
    text
}

/// Save and resume of 64 threads over `mib` of touched memory.
fn power(mib: u64) -> u32 {
    if available_mib() < mib * 3 / 2 {
        println!("power at {mib} MiB: not measured, too little memory is available");
        return 0;
    }
    let store = Store::new();
    let spin = Guest::new(build("spin")).args(["64", &mib.to_string(), "600"]);
    let mut life = Life::start(&store, "spin", &spin);
    let output = life.output_file("out");
    let is_ready = until(PATIENCE, || fs::read_to_string(&output).ok().filter(|text| text.contains("ready")));
    assert!(is_ready.is_some(), "the guest does not start");
    let answer = store.work_dir("answer").join("text");
    let (mut reported, mut whole, mut resumed) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds() * 2 {
        std::thread::sleep(Duration::from_millis(150));
        let began = Instant::now();
        reported.extend(reported_ms(&fail_undisturbed(&store, &answer)));
        whole.push(milliseconds(began));
        life.saved_by_others();
        std::thread::sleep(Duration::from_millis(100));
        let began = wall_ns();
        life.resume();
        let Some(first) = until(PATIENCE, || first_instruction(&output, began)) else { life.wrong("does not go on") };
        resumed.push((first - began) as f64 / 1e6);
    }
    // The last life ends with the region.
    assert!(life.fail(Announce::Fail));
    let at = format!("of 64 threads over {mib} MiB");
    // Mostly the wait for a processor that 64 threads keep busy.
    println!("fail {at}: the whole command {:.1} ms, until the program is gone", median(whole));
    figure(&format!("fail {at}: SIGPWR to SAVED, as it reports"), median(reported), "ms", 2.0)
        + figure(&format!("resume {at}: to the first instruction"), median(resumed), "ms", 20.0)
}
