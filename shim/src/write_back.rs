//! Writing the region's files back, on stores where a power failure would take what has not been: a disk, and on DAX what
//! only the file system knows. Neighbour: `save`, which does so before it commits.

use zhuque_abi::layout::CONTROL_BYTES;
use zhuque_abi::life::Life;
use zhuque_sys::{fs, mm};

/// Writes every file of the region back.
pub fn region(life: &Life) {
    for &fd in &life.descriptors.slices {
        let _ = fs::sync_data(fd);
    }
    control();
}

/// Writes back what the file system knows of the region: holes that were punched, whose content would be back after the
/// power failure, and names of files that are kept alive. What has changed the directory last stands in the file system's
/// journal behind all of that.
pub fn metadata(life: &Life) {
    let directory = life.descriptors.directory;
    if fs::touch(directory).and_then(|()| fs::sync_all(directory)).is_err() {
        // The program has given up the rights to its region.
        for &fd in &life.descriptors.slices {
            let _ = fs::sync_data(fd);
        }
    }
}

/// Writes the control file back, by its mapping.
pub fn control() {
    let _ = mm::sync(crate::control::base(), CONTROL_BYTES);
}
