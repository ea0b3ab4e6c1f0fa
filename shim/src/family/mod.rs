//! # Families: one kind of kernel-resident state each
//!
//! What the gate records while the program runs (memory, signals, threads, ...) has a file of its own here; what is
//! only asked of the kernel at save, everything behind a descriptor number, is [`descriptors`].

pub mod advice;
pub mod ahead;
pub mod clocks;
pub mod content;
pub mod descriptors;
pub mod exec;
pub mod exec_check;
pub mod fork_child;
pub mod ids;
pub mod limits;
pub mod mapped_files;
pub mod memory;
pub mod memory_files;
pub mod memory_map;
pub mod memory_move;
pub mod owners;
pub mod processes;
pub mod recovery;
pub mod robust;
pub mod select_sets;
pub mod signals;
pub mod spares;
pub mod threads;
pub mod timers;

pub use descriptors::{
    Capture, Failure, Revival, TIMER_PATIENCE_NS, capture, revive, revive_thread_files, stdio_identity,
};
