//! The journal's records, for people: what `inspect` and `ls` show of them.
//!
//! Records are turned into JSON by serde, and byte strings into text or hexadecimal digits by the names of their
//! fields, so a new record needs nothing here.

use std::mem::offset_of;

use anyhow::anyhow;
use serde_json::{Map, Value};
use zhuque_abi::codec::Records;
use zhuque_abi::header::Phase;
use zhuque_abi::journal::{Object, Record};

use crate::control::Summary;
use crate::region::Region;
use crate::{failure, process, render};

/// Byte strings that are text.
const TEXT: [&str; 6] = ["exe", "cwd", "path", "kept", "what", "name"];
/// Byte strings that are shown in hexadecimal digits.
const BYTES: [&str; 6] = ["termios", "data", "local", "peer", "options", "affinity"];
/// So many bytes of these are shown.
const SHOWN: usize = 64;

/// The records of a saved region.
pub fn journal(region: &Region, summary: &Summary) -> anyhow::Result<Vec<u8>> {
    let name = region.name();
    if summary.phase != Phase::Saved {
        return Err(anyhow!("{name}: there is no journal: it is written by a save, and the program is not saved"));
    }
    let journal = region.control().journal(summary);
    journal.map_err(|error| anyhow!("{name}: damaged: {error}"))
}

/// Decodes a journal; with what is wrong, if it does not end as it should.
pub fn records(journal: &[u8]) -> (Vec<Record<'_>>, Option<String>) {
    let mut all = Vec::new();
    for record in Records::new(journal) {
        match record {
            Ok(record) => all.push(record),
            Err(error) => {
                let why = format!("record {} of the journal: {error}", all.len() + 1);
                return (all, Some(why));
            }
        }
    }
    (all, None)
}

/// The command line of a saved program.
pub fn saved_command(region: &Region, summary: &Summary) -> Option<String> {
    let journal = journal(region, summary).ok()?;
    Records::new(&journal).flatten().find_map(|record| match record {
        Record::Process(process) => {
            let line = process::arguments(process.arguments);
            let exe = || failure::one_line(&String::from_utf8_lossy(process.exe));
            Some(if line.is_empty() { exe() } else { line })
        }
        _ => None,
    })
}

/// A record as JSON, with readable byte strings.
pub fn json(record: &Record<'_>) -> Value {
    // The types have no maps with keys other than strings, which is all that could fail.
    let value = serde_json::to_value(record).unwrap_or(Value::Null);
    readable("", value)
}

/// Replaces byte strings by text.
fn readable(name: &str, value: Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(
            fields
                .into_iter()
                .map(|(name, value)| {
                    let value = readable(&name, value);
                    (name, value)
                })
                .collect(),
        ),
        Value::Array(items) => {
            let bytes = || -> Vec<u8> {
                let byte = |item: &Value| item.as_u64().unwrap_or(0) as u8;
                items.iter().map(byte).collect()
            };
            if name == "arguments" {
                Value::String(process::arguments(&bytes()))
            } else if TEXT.contains(&name) {
                Value::String(failure::one_line(&String::from_utf8_lossy(&bytes())))
            } else if BYTES.contains(&name) {
                Value::String(render::hex(&bytes(), SHOWN))
            } else {
                Value::Array(items)
            }
        }
        other => other,
    }
}

/// A record in one line: `EpollEntry epoll=3 fd=7 ...`.
pub fn line(record: &Record<'_>) -> String {
    let mut words = Vec::new();
    flatten(&mut words, None, &json(record));
    words.join(" ")
}

/// Puts a JSON value into words. An object with one capitalised field is an enum's variant.
fn flatten(words: &mut Vec<String>, name: Option<&str>, value: &Value) {
    let prefix = name.map_or_else(String::new, |name| format!("{name}="));
    match value {
        Value::Object(fields) => match variant(fields) {
            Some((variant, inner)) => {
                words.push(format!("{prefix}{variant}"));
                flatten(words, None, inner);
            }
            None => fields.iter().for_each(|(name, value)| flatten(words, Some(name), value)),
        },
        Value::String(text) if text.is_empty() => {}
        Value::String(text) if text.contains(' ') => words.push(format!("{prefix}{text:?}")),
        Value::String(text) => words.push(format!("{prefix}{text}")),
        other => words.push(format!("{prefix}{other}")),
    }
}

/// The variant's name and contents, if the object is one.
fn variant(fields: &Map<String, Value>) -> Option<(&String, &Value)> {
    let (name, value) = fields.iter().next().filter(|_| fields.len() == 1)?;
    name.starts_with(char::is_uppercase).then_some((name, value))
}

/// What a description refers to, as short as possible.
pub fn object(object: &Object<'_>) -> String {
    let text = |bytes: &[u8]| failure::one_line(&String::from_utf8_lossy(bytes));
    match object {
        Object::Stdio { number, .. } => {
            let name = ["stdin", "stdout", "stderr"].get(*number as usize);
            (*name.unwrap_or(&"stdio?")).into()
        }
        Object::File { path, offset, kept: [], .. } => {
            format!("file {} at {offset}", text(path))
        }
        Object::File { path, offset, .. } => {
            format!("file {} (deleted, kept) at {offset}", text(path))
        }
        Object::Directory { path: [], .. } => "directory (removed)".into(),
        Object::Directory { path, .. } => format!("directory {}", text(path)),
        Object::Device { path, .. } => format!("device {}", text(path)),
        Object::Pipe { pipe, write, data, .. } => {
            let end = if *write { "write" } else { "read" };
            format!("pipe {pipe} {end} end, {} unread", data.len())
        }
        Object::Fifo { path, data, .. } => format!("fifo {}, {} unread", text(path), data.len()),
        Object::Socket(socket) => {
            format!("socket domain {} kind {} {:?}{}", socket.domain, socket.kind, socket.state, address(socket.local))
        }
        Object::Epoll => "epoll".into(),
        Object::EventFd { count, .. } => format!("eventfd {count}"),
        Object::TimerFd { value_ns, .. } => format!("timerfd {}", render::nanoseconds(*value_ns)),
        Object::SignalFd { mask } => format!("signalfd {mask:#x}"),
        Object::Inotify => "inotify".into(),
        Object::PidFd { pid } => format!("pidfd {pid}"),
        Object::Unsupported { what } => format!("unsupported: {}", text(what)),
    }
}

/// A socket address as the kernel writes it, with a blank before it.
fn address(bytes: &[u8]) -> String {
    let port = || bytes.get(2..4).map_or(0, |p| u16::from_be_bytes([p[0], p[1]]));
    let family = bytes.get(..2).map_or(0, |f| i32::from(u16::from_le_bytes([f[0], f[1]])));
    match family {
        libc::AF_INET if bytes.len() >= 8 => {
            let ip = std::net::Ipv4Addr::new(bytes[4], bytes[5], bytes[6], bytes[7]);
            format!(" {ip}:{}", port())
        }
        libc::AF_INET6 => {
            let ip = bytes.get(8..24).and_then(|ip| <[u8; 16]>::try_from(ip).ok());
            ip.map_or_else(String::new, |ip| format!(" [{}]:{}", std::net::Ipv6Addr::from(ip), port()))
        }
        libc::AF_UNIX if bytes.len() > 2 => {
            let start = usize::from(bytes[2] == 0);
            let at = if start == 1 { "@" } else { "" };
            format!(" {at}{}", crate::control::text(&bytes[2 + start..]))
        }
        _ => String::new(),
    }
}

/// Offsets in a signal frame's ucontext (asm/ucontext.h, asm/sigcontext.h).
pub mod frame {
    /// Of the stack pointer.
    pub const RSP: u64 = super::offset_of!(libc::ucontext_t, uc_mcontext) as u64 + 8 * libc::REG_RSP as u64;
    /// Of the program counter.
    pub const RIP: u64 = super::offset_of!(libc::ucontext_t, uc_mcontext) as u64 + 8 * libc::REG_RIP as u64;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_readable() {
        let record = Record::InotifyWatch { inotify: 1, watch: 2, mask: 3, path: b"/tmp/a b" };
        assert_eq!(line(&record), "InotifyWatch inotify=1 mask=3 path=\"/tmp/a b\" watch=2");
        assert_eq!(address(&[2, 0, 0x1f, 0x90, 127, 0, 0, 1]), " 127.0.0.1:8080");
        assert_eq!(address(&[1, 0, 0, b'x']), " @x");
        for cut in 0..28 {
            for family in [0u8, 1, 2, 10] {
                let mut bytes = vec![family; cut];
                if let Some(high) = bytes.get_mut(1) {
                    *high = 0;
                }
                address(&bytes);
            }
        }
        assert_eq!((frame::RSP, frame::RIP), (160, 168));
    }
}
