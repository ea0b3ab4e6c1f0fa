//! # zhuque-restore: from a saved region to the steps of a resume
//!
//! Everything about a resume that can be computed without a system call, over byte slices. A region is untrusted
//! input: nothing here panics, overflows or loops without bound on any bytes.
//!
//! * [`validate`]: is this a saved region that this machine can resume? Gives a [`validate::Saved`]
//! * [`cpu`]: which processor features a saved program needs
//! * [`plan`]: from the mapping table to mapping steps and files to open
//! * [`holes`]: where the stub and the kernel's vdso can be while the program comes back
//! * [`numbers`]: which descriptor numbers a resume uses
//! * [`process`]: reading /proc/PID/maps and the vdso of the process that becomes the program
//! * [`stub_image`]: the stub (`restore/stub`) as flat bytes
//! * [`error`]: everything that can be wrong, one line each
//!
//! The launcher's `resume.rs` and `inject.rs` do what is decided here.
#![forbid(unsafe_code)]

mod bytes;
pub mod cpu;
pub mod error;
pub mod holes;
pub mod numbers;
pub mod plan;
pub mod process;
pub mod stub_image;
mod tables;
pub mod validate;

pub use error::Error;
