//! Descriptors saved by one process and revived by another, without the rest of the shim.
//!
//! The binary `family-actor` plays both: `save SCENARIO DIR` sets descriptors up, captures them and ends; `resume
//! SCENARIO DIR` revives them in a fresh process and checks every property. The scenarios are in [`scenarios`];
//! `tests/scenarios.rs` runs them.

#[path = "../../../shim/src/family/descriptors/mod.rs"]
pub mod descriptors;
pub mod scenarios;
pub mod stage;
