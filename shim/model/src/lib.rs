//! # zhuque-model: what can be computed without a system call
#![no_std]
#![deny(unsafe_code)]

pub mod calls;
pub mod maptree;
pub mod rewriting;
