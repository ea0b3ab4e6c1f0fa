//! What zhuque carries inside, so that one file is all there is to install. Built by `build.rs`.

/// The library that is preloaded into a program.
pub static SHIM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/zhuque-shim.so"));
/// A name that only this shim's content has.
pub const SHIM_HASH: &str = env!("ZHUQUE_SHIM_HASH");
/// The program that rebuilds an address space from within.
pub static STUB: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/zhuque-stub"));
