//! Servers under load: whatever was acknowledged before a failure is there after it, on the same port.

use std::time::Duration;
use zhuque_tests::life::{Announce, lives};
use zhuque_tests::load::{Client, Load, Protocol, free_port, ready};
use zhuque_tests::{Guest, Life, Random, Store};

/// Fails and resumes `guest` again and again under load of `connections` clients.
fn check_server(name: &str, guest: &Guest, protocol: Protocol, port: u16, failures: u32) {
    let (store, mut random) = (Store::new(), Random::new());
    let mut life = Life::start(&store, name, guest);
    if !ready(protocol, port) {
        life.wrong("does not answer");
    }
    let mut clients: Vec<Client> = (0..6).map(|number| Client::new(protocol, port, number, 2500)).collect();
    for number in 1..=failures {
        let load = Load::start(clients);
        std::thread::sleep(Duration::from_millis(50) + random.time_below(Duration::from_millis(700)));
        let announce = if random.below(4) == 0 { Announce::Signal } else { Announce::Fail };
        if !life.fail(announce) {
            life.wrong("the server ended");
        }
        clients = load.stop().unwrap_or_else(|wrong| life.wrong(&format!("before failure {number}: {wrong}")));
        life.resume();
        if !ready(protocol, port) {
            life.wrong(&format!("does not answer after failure {number}"));
        }
        for client in &mut clients {
            if let Err(wrong) = client.verify() {
                life.wrong(&format!("after failure {number}: {wrong}; ZHUQUE_SEED={}", random.seed()));
            }
        }
    }
    let answered: u64 = clients.iter().map(|client| client.answered).sum();
    let stored: u64 = clients.iter().map(Client::stored).sum();
    println!("{name}: {failures} failures, {answered} requests answered, {stored} keys stored, none lost");
    assert!(answered > u64::from(failures) * 50, "hardly any load: {answered}");
}

#[test]
fn memcached_keeps_what_it_said_was_stored() {
    let port = free_port();
    let arguments = ["-t", "4", "-m", "1024", "-U", "0", "-l", "127.0.0.1", "-p"];
    let guest = Guest::installed("memcached").args(arguments).arg(port.to_string());
    check_server("memcached", &guest, Protocol::Memcached, port, lives(15));
}

#[test]
fn redis_without_persistence_keeps_what_it_said_was_stored() {
    let port = free_port();
    let arguments = ["--save", "", "--appendonly", "no", "--bind", "127.0.0.1", "--port"];
    let guest = Guest::installed("redis-server").args(arguments).arg(port.to_string());
    check_server("redis", &guest, Protocol::Redis, port, lives(8));
}
