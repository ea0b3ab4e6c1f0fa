//! Clients of memcached and redis that remember what the server has promised to keep.
//!
//! A client owns its keys and writes growing versions to them. When the connection breaks, the version under way may or
//! may not have been stored; every version that was acknowledged must be there, or a later one that was sent.

use crate::random::Random;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// The two servers' protocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// memcached's text protocol.
    Memcached,
    /// RESP.
    Redis,
}

/// One connection.
pub struct Connection {
    protocol: Protocol,
    stream: BufReader<TcpStream>,
}

impl Connection {
    /// Connects to a server on this machine.
    pub fn open(protocol: Protocol, port: u16) -> io::Result<Connection> {
        let address = (Ipv4Addr::LOCALHOST, port).into();
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        stream.set_write_timeout(Some(Duration::from_secs(20)))?;
        Ok(Connection { protocol, stream: BufReader::new(stream) })
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 || !line.ends_with("\r\n") {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        line.truncate(line.len() - 2);
        Ok(line)
    }

    fn body(&mut self, bytes: usize) -> io::Result<Vec<u8>> {
        let mut body = vec![0; bytes + 2];
        self.stream.read_exact(&mut body)?;
        if body.split_off(bytes) != b"\r\n" {
            return Err(wrong("a body without an end"));
        }
        Ok(body)
    }

    /// Stores a value; `Ok` only if the server said so.
    pub fn set(&mut self, key: &str, value: &[u8]) -> io::Result<()> {
        let head = match self.protocol {
            Protocol::Memcached => format!("set {key} 0 0 {}\r\n", value.len()),
            Protocol::Redis => format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${}\r\n", key.len(), value.len()),
        };
        self.send(&[head.as_bytes(), value, b"\r\n"].concat())?;
        let answer = self.line()?;
        match (self.protocol, answer.as_str()) {
            (Protocol::Memcached, "STORED") | (Protocol::Redis, "+OK") => Ok(()),
            _ => Err(wrong(&format!("set answered {answer}"))),
        }
    }

    /// The value of a key, if there is one.
    pub fn get(&mut self, key: &str) -> io::Result<Option<Vec<u8>>> {
        match self.protocol {
            Protocol::Memcached => {
                self.send(format!("get {key}\r\n").as_bytes())?;
                let answer = self.line()?;
                if answer == "END" {
                    return Ok(None);
                }
                let words: Vec<&str> = answer.split(' ').collect();
                if words.len() != 4 || words[0] != "VALUE" || words[1] != key {
                    return Err(wrong(&format!("get answered {answer}")));
                }
                let value = self.body(number(words[3])?)?;
                if self.line()? == "END" { Ok(Some(value)) } else { Err(wrong("get without END")) }
            }
            Protocol::Redis => {
                self.send(format!("*2\r\n$3\r\nGET\r\n${}\r\n{key}\r\n", key.len()).as_bytes())?;
                match self.line()?.as_str() {
                    "$-1" => Ok(None),
                    answer if answer.starts_with('$') => self.body(number(&answer[1..])?).map(Some),
                    answer => Err(wrong(&format!("get answered {answer}"))),
                }
            }
        }
    }
}

fn wrong(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.to_string())
}

fn number(text: &str) -> io::Result<usize> {
    text.parse().map_err(|_| wrong(&format!("not a number: {text}")))
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("its number").port()
}

/// What one client's key holds at a version: it tells the version and is as long as that makes it.
pub fn value(client: u64, key: u64, version: u64) -> Vec<u8> {
    let mut value = format!("{client}/{key}/{version}:").into_bytes();
    let mut random = Random::from_seed(client << 40 ^ key << 20 ^ version);
    let fill = random.below(200);
    value.extend((0..fill).map(|_| b'a' + (random.bits() % 26) as u8));
    value
}

/// One client's keys and what is known of them.
pub struct Client {
    number: u64,
    protocol: Protocol,
    port: u16,
    /// Per key the last version that was acknowledged, and the last that was sent; 0: none.
    keys: Vec<(u64, u64)>,
    random: Random,
    /// Requests that the server has answered.
    pub answered: u64,
}

impl Client {
    /// A client with `keys` keys of its own.
    pub fn new(protocol: Protocol, port: u16, number: u64, keys: usize) -> Client {
        Client { number, protocol, port, keys: vec![(0, 0); keys], random: Random::from_seed(number), answered: 0 }
    }

    fn key(&self, index: usize) -> String {
        format!("key-{}-{index}", self.number)
    }

    /// Sets and gets until `stop`, or until something goes wrong with the connection. `Err`: a wrong value.
    pub fn work(&mut self, stop: &AtomicBool, total: &AtomicU64) -> Result<(), String> {
        let Ok(mut connection) = Connection::open(self.protocol, self.port) else {
            return Ok(());
        };
        while !stop.load(Ordering::Relaxed) {
            let index = self.random.below(self.keys.len() as u64) as usize;
            let key = self.key(index);
            if self.random.below(4) == 0 {
                match connection.get(&key) {
                    Ok(found) => self.judge(index, found)?,
                    Err(_) => return Ok(()),
                }
            } else {
                let version = self.keys[index].1 + 1;
                self.keys[index].1 = version;
                if connection.set(&key, &value(self.number, index as u64, version)).is_err() {
                    return Ok(());
                }
                self.keys[index].0 = version;
            }
            self.answered += 1;
            total.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Whether `found` is the last acknowledged value or one sent after it.
    fn judge(&self, index: usize, found: Option<Vec<u8>>) -> Result<(), String> {
        let (stored, sent) = self.keys[index];
        let key = self.key(index);
        match found {
            None if stored == 0 => Ok(()),
            None => Err(format!("{key}: lost, version {stored} had been stored")),
            Some(bytes) => {
                let fits = (stored.max(1)..=sent).any(|version| bytes == value(self.number, index as u64, version));
                let text = String::from_utf8_lossy(&bytes).into_owned();
                if fits { Ok(()) } else { Err(format!("{key}: {text:?}, not version {stored} to {sent}")) }
            }
        }
    }

    /// Asks for every key; the number of those that were there. What is found counts as stored from then on.
    pub fn verify(&mut self) -> Result<u64, String> {
        let broken = |error: io::Error| format!("client {}: {error}", self.number);
        let mut connection = Connection::open(self.protocol, self.port).map_err(broken)?;
        let mut there = 0;
        for index in 0..self.keys.len() {
            if self.keys[index].1 == 0 {
                continue;
            }
            let found = connection.get(&self.key(index)).map_err(broken)?;
            there += found.is_some() as u64;
            self.judge(index, found)?;
        }
        Ok(there)
    }

    /// Keys that the server had acknowledged.
    pub fn stored(&self) -> u64 {
        self.keys.iter().filter(|(stored, _)| *stored > 0).count() as u64
    }
}

/// Clients at work in threads of their own.
pub struct Load {
    stop: Arc<AtomicBool>,
    /// Requests answered so far, by all.
    pub total: Arc<AtomicU64>,
    threads: Vec<std::thread::JoinHandle<(Client, Result<(), String>)>>,
}

impl Load {
    /// Lets every client work until its connection breaks or [`Load::stop`].
    pub fn start(clients: Vec<Client>) -> Load {
        let (stop, total) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let threads = clients.into_iter().map(|mut client| {
            let (stop, total) = (stop.clone(), total.clone());
            std::thread::spawn(move || {
                let result = client.work(&stop, &total);
                (client, result)
            })
        });
        let threads = threads.collect();
        Load { stop, total, threads }
    }

    /// Ends them and gives them back, or what one of them found wrong.
    pub fn stop(self) -> Result<Vec<Client>, String> {
        self.stop.store(true, Ordering::Relaxed);
        let mut clients = Vec::new();
        for thread in self.threads {
            let (client, result) = thread.join().map_err(|_| "a client panicked".to_string())?;
            result?;
            clients.push(client);
        }
        Ok(clients)
    }
}

/// Waits until the server answers on `port`.
pub fn ready(protocol: Protocol, port: u16) -> bool {
    let probe = || Connection::open(protocol, port).and_then(|mut is| is.get("nothing")).ok();
    crate::command::until(crate::command::PATIENCE, probe).is_some()
}
