//! How the shim gets hold of the program, and how the program's calls and signals come in.
//!
//! * [`start`], [`adopt`]: at start, before any other code of the program
//! * [`patch`], [`sites`]: rewritten call sites
//! * [`asm`]: the gate's instructions
//! * [`handler`], [`place`]: the kernel-level signal handler, and where it found the thread

pub mod adopt;
pub mod asm;
pub mod entrance;
pub mod handler;
pub mod maps;
pub mod patch;
pub mod place;
pub mod sites;
pub mod start;
pub mod vdso;
