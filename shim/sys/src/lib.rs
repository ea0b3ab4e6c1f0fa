//! # zhuque-sys: the only system-call instructions of the guest side
//!
//! Thin wrappers over the kernel's interface, one file per family, without libc, allocation or state. Everything is
//! inlined or compiled into the crate that uses it, so the `syscall` instructions lie in the shim's (or the stub's)
//! own text: the range that Syscall User Dispatch lets pass. Constants and structures come from the `libc` crate,
//! whose functions are never called. This crate knows nothing of regions.
//!
//! * [`raw`]: the instructions; [`Errno`] and results
//! * [`mm`], [`fs`], [`process`], [`signal`], [`time`], [`net`], [`terminal`]: families
//! * [`user`]: access to memory that may fault
#![no_std]

pub mod fs;
pub mod mm;
pub mod net;
pub mod process;
pub mod raw;
pub mod signal;
pub mod terminal;
pub mod time;
pub mod user;

pub use raw::{Errno, check};
