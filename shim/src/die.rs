//! The end, when zhuque's own code is at fault: one line on stderr, no unwinding, no allocation.
#![allow(unsafe_code)]

use crate::text::Text;
use zhuque_sys::signal::{KernelAction, set_action};
use zhuque_sys::{fs, process};

/// Status with which a program ends that zhuque itself has failed.
pub const STATUS: i32 = 125;

/// Writes `zhuque: ` and `text` as one line to stderr.
pub fn say(text: &Text) {
    let mut line = Text::new();
    line.push(b"zhuque: ").push(text.as_bytes()).push(b"\n");
    let _ = fs::write_all(2, line.as_bytes());
}

/// Says why and ends the process.
pub fn fail(text: &Text) -> ! {
    say(text);
    process::exit_group(STATUS)
}

/// A fault inside the gate: says where and lets the kernel end the process with the signal.
pub fn fault(signal: u32, pc: u64, address: u64) {
    let mut text = Text::new();
    text.push(b"internal fault: signal ").number(u64::from(signal)).push(b" at ").hex(pc);
    text.push(b" (text ").hex(crate::entry::place::text().0).push(b"), address ").hex(address);
    say(&text);
    // SAFETY: the default action runs no code.
    let _ = unsafe { set_action(signal, &KernelAction::default()) };
}

/// Called by rustc's checks. Says where, as far as that is known, and ends the process.
pub fn panicked(info: &core::panic::PanicInfo<'_>) -> ! {
    let mut text = Text::new();
    text.push(b"internal error");
    if let Some(place) = info.location() {
        text.push(b" at ").push(place.file().as_bytes()).push(b":").number(u64::from(place.line()));
    }
    fail(&text)
}
