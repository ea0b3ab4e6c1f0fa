//! The scenarios: what a process sets up, and what another one must find.

use crate::stage::Extra;
use std::path::Path;

pub mod events;
pub mod files;
pub mod io;
pub mod pipes;
pub mod sockets;
pub mod unix;

/// One scenario.
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// Sets descriptors up. They stay open.
    pub setup: fn(&Path, &mut Extra),
    /// Checks the revived descriptors.
    pub verify: fn(&Path),
}

/// The scenario called `name`.
pub fn find(name: &str) -> Option<&'static Scenario> {
    [files::ALL, pipes::ALL, events::ALL, sockets::ALL, unix::ALL].into_iter().flatten().find(|s| s.name == name)
}
