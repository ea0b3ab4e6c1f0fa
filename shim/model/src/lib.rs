//! # zhuque-model: what can be computed without a system call
#![cfg_attr(not(feature = "loom"), no_std)]
#![deny(unsafe_code)]

pub mod calls;
pub mod maptree;
pub mod rewriting;
pub mod sync;
