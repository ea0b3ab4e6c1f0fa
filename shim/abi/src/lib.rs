//! # zhuque-abi: the bytes of a region
//!
//! Every type that more than one address space or more than one life of a program reads is defined here, once:
//! layouts are `repr(C)` with named padding and const assertions, and each file of a region starts with a magic and
//! a version. This crate knows no system call and does no I/O.
//!
//! * [`layout`]: where things lie inside the control mapping
//! * [`header`]: the header page, phases and generations
//! * [`slot`]: one thread of the program
//! * [`life`]: what is true for one life only and never saved
//! * [`maps`]: the mapping table's nodes
//! * [`sites`]: the plan of call sites to rewrite
//! * [`journal`], [`codec`]: descriptions of kernel-resident state
#![no_std]
#![deny(unsafe_code)]

pub mod codec;
pub mod header;
pub mod journal;
pub mod layout;
pub mod life;
pub mod maps;
pub mod sites;
pub mod slot;
pub mod timers;
