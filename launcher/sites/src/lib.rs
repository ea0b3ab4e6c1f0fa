//! # zhuque-sites: finds the system-call instructions of ELF files that can be rewritten
//!
//! Runs in the launcher, before a program starts. For every file that the program will load it finds the `syscall`
//! instructions that have room for a five-byte jump, so that the shim's gate is entered without a signal. A site
//! which is not provably fine is left alone: the net (Syscall User Dispatch) catches it at run time, slower but
//! never wrong. So every rule here errs towards "no site", and nothing here has to be complete.
//!
//! How a file is planned, one module a step:
//! * `image`: the file in memory, addresses to bytes (on top of `headers`, which reads headers only)
//! * `functions`: address ranges of functions, from `.eh_frame` (with `lsda`) and from sized symbols,
//!   what they call (`callees`), and `gaps` between them
//! * `body`: one function decoded
//! * `targets`: everything that may be jumped to, near the sites (with `tables`: switch tables and
//!   `pointers`: relocations, symbols, absolute addresses)
//! * `flags`: whether the status flags are dead behind a call
//! * `runs`: which instructions a jump overwrites
//! * `plan`: puts those together; `encode` and `cache` write the result down
//!
//! About programs rather than sites: `program` (what is this file?) and `libraries` (what will it load? with
//! `ldcache` and `search`).
#![forbid(unsafe_code)]

mod body;
mod cache;
mod callees;
mod encode;
mod error;
mod flags;
mod functions;
mod gaps;
mod headers;
mod image;
mod ldcache;
mod libraries;
mod lsda;
mod plan;
mod pointers;
mod program;
mod runs;
mod search;
mod tables;
mod targets;

pub use cache::cached_plan;
pub use encode::{decode, encode};
pub use error::Error;
pub use headers::build_id;
pub use libraries::libraries;
pub use plan::{Plan, plan_file};
pub use program::{Program, inspect_program};
