//! What every test here needs: the `zhuque` command, a store of its own, guests, and lives with power failures in them.
//!
//! * [`command`]: finds and runs `zhuque`, every wait bounded
//! * [`store`]: a temporary store, owned by the ordinary user that the tests run as
//! * [`guest`]: a program to run, built from `examples/` where it is C
//! * [`life`]: one region from `run` to its end, with failures and resumes
//! * [`digest`]: what a region holds, byte by byte, to find out whether anything changed
//! * [`tracer`]: a failure at a chosen system call
//! * [`outside`]: a save from outside, of a program whose threads are all stopped
//! * [`points`]: a failure from outside at one instruction, and what has to follow
//! * [`scan`]: every instruction of the gate that a program comes through
//! * [`load`]: clients of memcached and redis that remember what was promised to them
//! * [`random`]: a seeded generator; a failing test prints its seed
//!
//! Environment: `ZHUQUE_BIN` (the command), `ZHUQUE_LIVES` (multiplies the number of lives), `ZHUQUE_SEED` (repeats a
//! run), `ZHUQUE_TEST_DIR` (where stores are made), `ZHUQUE_TEST_KEEP` (keeps them), `ZHUQUE_TEST_ROOT` (run everything
//! as root where one is root; otherwise the guests run as an ordinary user without capabilities), `ZHUQUE_PYTHON`.
#![deny(unsafe_code)]

pub mod command;
pub mod digest;
pub mod guest;
pub mod life;
pub mod load;
pub mod outside;
pub mod points;
pub mod random;
pub mod scan;
pub mod store;
pub mod tracer;

pub use command::Finished;
pub use guest::Guest;
pub use life::{Life, check_lives, lives};
pub use random::Random;
pub use store::Store;
