//! Which descriptor numbers a resume uses.
//!
//! Three groups must not meet: the numbers of the program, the block of the region's own descriptors (slices, control,
//! directory, lock), which stays for the whole life, and the helpers of the resume itself, which go when the program's
//! descriptors are back. The region's block belongs where [`own_descriptors`] says, if nothing is there.
//!
//! Neighbours: `validate` says what the journal names; the launcher's `resume.rs` puts descriptors there.

use crate::Error;
use zhuque_abi::layout::{OWN_DESCRIPTORS, SLICES, own_descriptors};
use zhuque_abi::life::RegionDescriptors;

/// The numbers chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbers {
    /// First of the [`OWN_DESCRIPTORS`] numbers of the region.
    pub region: i32,
    /// First helper.
    pub helpers: i32,
    /// One above the last helper.
    pub helpers_end: i32,
}

impl Numbers {
    /// Chooses numbers. `soft` is the program's saved soft limit, `hard` this process's hard limit, `floor` one above
    /// every number that the program had or that is open in this process, `helpers` how many helpers there are, `own`
    /// where the region's have to be, if that is not free to choose.
    pub fn choose(soft: u64, hard: u64, floor: u64, helpers: u64, own: Option<u64>) -> Result<Numbers, Error> {
        let limit = hard.min(i32::MAX as u64);
        let region = own.unwrap_or(own_descriptors(soft, limit).max(floor));
        let region_end = region.saturating_add(OWN_DESCRIPTORS);
        let below = floor.saturating_add(helpers) <= region;
        let first = if below { floor } else { floor.max(region_end) };
        let helpers_end = first.saturating_add(helpers);
        let needed = region_end.max(helpers_end);
        if needed > limit {
            let least = floor.saturating_add(helpers).saturating_add(OWN_DESCRIPTORS);
            let needed = if own.is_some() { needed } else { least };
            return Err(Error::Descriptors { needed, limit });
        }
        // Below `limit`, so they fit.
        Ok(Numbers { region: region as i32, helpers: first as i32, helpers_end: helpers_end as i32 })
    }

    /// The region's descriptors at these numbers.
    pub fn region_descriptors(&self) -> RegionDescriptors {
        let first = self.region;
        let behind = first + SLICES as i32;
        RegionDescriptors {
            slices: core::array::from_fn(|index| first + index as i32),
            control: behind,
            directory: behind + 1,
            lock: behind + 2,
            first,
            end: behind + 3,
        }
    }

    /// Runs of numbers that are in use, as inclusive bounds, in order.
    pub fn used(&self) -> [(u32, u32); 2] {
        let region = (self.region as u32, self.region as u32 + OWN_DESCRIPTORS as u32 - 1);
        let helpers = (self.helpers as u32, (self.helpers_end as u32).saturating_sub(1));
        if region.0 < helpers.0 { [region, helpers] } else { [helpers, region] }
    }
}
