//! Runs every scenario: save, resume, and resume a second time from the same journal; with and without kcmp(2), and
//! without privileges where there are any.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// How an actor runs.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Plain,
    NoKcmp,
    Unprivileged,
}

struct Stage {
    directory: PathBuf,
    scenario: &'static str,
    way: Way,
    environment: Vec<(&'static str, String)>,
}

impl Stage {
    fn new(scenario: &'static str, way: Way) -> Stage {
        let directory =
            std::env::temp_dir().join(format!("zhuque-family-{}-{scenario}-{}", std::process::id(), way as u8));
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir(&directory).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).unwrap();
        Stage { directory, scenario, way, environment: Vec::new() }
    }

    fn act(&self, side: &str) -> Output {
        let actor = env!("CARGO_BIN_EXE_family-actor");
        let mut command = Command::new(actor);
        if self.way == Way::Unprivileged {
            command = Command::new("setpriv");
            command.args([
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
                "--bounding-set=-all",
                "--inh-caps=-all",
            ]);
            command.arg(actor);
        }
        if self.way == Way::NoKcmp {
            command.env("NO_KCMP", "1");
        }
        command.args([side, self.scenario]).arg(&self.directory).envs(self.environment.clone());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap()
    }

    fn save(&self) {
        let output = self.act("save");
        assert_eq!(output.status.code(), Some(75), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn resume(&self) {
        let output = self.act("resume");
        let text = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&text));
    }

    fn refused(&self) -> String {
        let output = self.act("resume");
        assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn times(&self) {
        let ns = |name: &str| fs::read_to_string(self.path(name)).unwrap().parse::<u64>().unwrap() / 1000;
        println!("{}: save {} us, resume {} us", self.scenario, ns("save_ns"), ns("resume_ns"));
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn ways() -> Vec<Way> {
    // SAFETY: no memory involved.
    let root = unsafe { libc::geteuid() } == 0;
    let mut ways = vec![Way::Plain, Way::NoKcmp];
    let reachable = Path::new(env!("CARGO_BIN_EXE_family-actor"))
        .ancestors()
        .skip(1)
        .all(|p| fs::metadata(p).is_ok_and(|m| m.permissions().mode() & 1 != 0));
    if root && reachable {
        ways.push(Way::Unprivileged);
    }
    ways
}

fn run(scenario: &'static str) {
    for way in ways() {
        let stage = Stage::new(scenario, way);
        stage.save();
        stage.resume();
        stage.times();
        // The same journal once more: a resume that failed late must leave everything for the next.
        stage.resume();
    }
}

macro_rules! scenarios {
    ($($function:ident $name:literal,)*) => {$(
        #[test]
        fn $function() {
            run($name);
        }
    )*};
}

scenarios! {
    plain "plain",
    deleted "deleted",
    memfd "memfd",
    devices "devices",
    stdio "stdio",
    locks "locks",
    many "many",
    many_written "many-written",
    again "again",
    pty "pty",
    pipes "pipes",
    pipe_packets "pipe-packets",
    fifo "fifo",
    epoll "epoll",
    epoll_many "epoll-many",
    eventfd "eventfd",
    timerfd "timerfd",
    signalfd "signalfd",
    inotify "inotify",
    pidfd "pidfd",
    tcp_listen "tcp-listen",
    tcp_states "tcp-states",
    udp "udp",
    netlink "netlink",
    unix_listen "unix-listen",
    unix_pairs "unix-pairs",
    unix_many "unix-many",
    unix_datagram "unix-datagram",
}

#[test]
fn peers_see_a_reset() {
    for way in ways() {
        let mut stage = Stage::new("tcp-reset", way);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        stage.environment.push(("PEER", listener.local_addr().unwrap().port().to_string()));
        let peers = std::thread::spawn(move || {
            let greet = |_| {
                let mut peer = listener.accept().unwrap().0;
                peer.write_all(b"unread data").unwrap();
                peer
            };
            let peers: Vec<_> = (0..3).map(greet).collect();
            for mut peer in peers {
                let mut buffer = [0; 10];
                assert_eq!(peer.read(&mut buffer).map_err(|e| e.kind()), Err(ErrorKind::ConnectionReset));
            }
        });
        stage.save();
        peers.join().unwrap();
        stage.resume();
        stage.resume();
    }
}

#[test]
fn a_thousand_connections() {
    let mut stage = Stage::new("tcp-many", Way::Plain);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    stage.environment.push(("PEER", listener.local_addr().unwrap().port().to_string()));
    let peers = std::thread::spawn(move || (0..1000).map(|_| listener.accept().unwrap().0).collect::<Vec<_>>());
    stage.save();
    stage.resume();
    stage.times();
    drop(peers.join().unwrap());
}

#[test]
fn unix_connection_to_outside() {
    for way in ways() {
        let mut stage = Stage::new("unix-outside", way);
        let path = stage.path("peer");
        let listener = UnixListener::bind(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        stage.environment.push(("PEER_PATH", path.to_str().unwrap().to_string()));
        let peer = std::thread::spawn(move || listener.accept().unwrap().0);
        stage.save();
        stage.resume();
        drop(peer.join().unwrap());
    }
}

#[test]
fn a_log_may_have_grown() {
    let stage = Stage::new("append", Way::Plain);
    stage.save();
    let mut log = fs::OpenOptions::new().append(true).open(stage.path("log")).unwrap();
    log.write_all(b"two\n").unwrap();
    stage.resume();
    assert_eq!(fs::read(stage.path("log")).unwrap(), b"one\ntwo\nthree\n");
    fs::write(stage.path("log"), b"o").unwrap();
    assert!(stage.refused().contains("log: changed since it was saved (size 1, was 4)"));
}

#[test]
fn a_mapped_file_may_have_another_time() {
    let stage = Stage::new("mapped", Way::Plain);
    stage.save();
    std::thread::sleep(std::time::Duration::from_millis(20));
    fs::OpenOptions::new().write(true).open(stage.path("m")).unwrap().write_all(b"CONTENT").unwrap();
    stage.resume();
}

#[test]
fn changed_files_are_refused_by_name() {
    let stage = Stage::new("changed", Way::Plain);
    stage.save();
    let path = stage.path("c");
    fs::write(&path, b"longer content").unwrap();
    assert!(stage.refused().contains("/c: changed since it was saved (size 14, was 7)"));
    fs::write(&path, b"CONTENT").unwrap();
    assert!(stage.refused().contains("it was written later"));
    fs::rename(&path, stage.path("c2")).unwrap();
    assert!(stage.refused().contains("/c: no such file or directory"));
    fs::write(&path, b"content").unwrap();
    assert!(stage.refused().contains("it is another file"));
    assert!(stage.act("force").status.success());
}

#[test]
fn what_cannot_be_revived_is_named() {
    let stage = Stage::new("unsupported", Way::Plain);
    stage.save();
    let message = stage.refused();
    assert!(message.contains("cannot re-create an open /"), "{message}");
    assert!(message.contains("gone (deleted) (descriptor 20)"), "{message}");
    let stage = Stage::new("unix-in-flight", Way::Plain);
    stage.save();
    assert!(stage.refused().contains("with descriptors in flight"));
}

#[test]
fn a_stale_socket_file_is_taken_over_and_a_served_one_is_not() {
    let stage = Stage::new("unix-listen", Way::Plain);
    stage.save();
    // Somebody else serves the path meanwhile.
    fs::remove_file(stage.path("socket")).unwrap();
    let other = UnixListener::bind(stage.path("socket")).unwrap();
    assert!(stage.refused().contains("/socket: address already in use"));
    drop(other);
    stage.resume();
    // No file at all, as after a reboot with /run in memory.
    fs::remove_file(stage.path("socket")).unwrap();
    stage.resume();
    // No socket: not ours to delete.
    fs::remove_file(stage.path("socket")).unwrap();
    fs::write(stage.path("socket"), b"precious").unwrap();
    assert!(stage.refused().contains("/socket: address already in use"));
    assert_eq!(fs::read(stage.path("socket")).unwrap(), b"precious");
}

#[test]
fn a_port_in_use_is_named() {
    let stage = Stage::new("tcp-listen", Way::Plain);
    stage.save();
    let port = fs::read_to_string(stage.path("four")).unwrap();
    let other = TcpListener::bind(format!("127.0.0.1:{port}")).unwrap();
    let message = stage.refused();
    assert!(message.contains(&format!("127.0.0.1:{port}: address already in use")), "{message}");
    drop(other);
    stage.resume();
}

#[test]
fn damaged_journals_are_refused() {
    let stage = Stage::new("plain", Way::Plain);
    stage.save();
    let whole = fs::read(stage.path("journal")).unwrap();
    fs::write(stage.path("journal"), &whole[..whole.len() - 3]).unwrap();
    assert!(stage.refused().contains("journal is damaged"));
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    fs::write(stage.path("journal"), &flipped).unwrap();
    assert!(stage.refused().contains("journal is damaged"));
    fs::write(stage.path("journal"), &whole).unwrap();
    stage.resume();
}
