//! # zhuque-shim: the library that zhuque preloads into a program
//!
//! It makes the program's memory the region's, passes every system call through the gate, owns the kernel-level signal
//! handlers, saves the program when power fails, and revives it afterwards. It runs inside somebody else's program: no
//! libc, no thread-local storage of libc's, no allocation, no unwinding, no locks held while the program's code runs.
//!
//! * [`entry`]: adoption, rewriting, the gate's instructions, the signal handler
//! * [`gate`]: what the gate does with a call; [`family`]: by kind of kernel-resident state
//! * [`save`], [`revive`]: the two ends of a failure
//! * [`control`]: where the region's own data lies
#![no_std]
// A failure carries its whole message, since there is no heap to put it in; it is made once, on the way out.
#![allow(clippy::result_large_err)]

pub mod context;
pub mod control;
pub mod credentials;
pub mod die;
pub mod entry;
pub mod family;
pub mod gate;
pub mod journal;
pub mod outside;
pub mod process_state;
pub mod revive;
pub mod runtime;
pub mod save;
pub mod scheduling;
pub mod text;
pub mod user;
pub mod write_back;

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    die::panicked(info)
}
