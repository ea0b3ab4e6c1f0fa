//! Plans as bytes: the region's `plan` file (layout: `zhuque_abi::sites`).
//!
//! Key functions: [`encode`], [`decode`]. Neighbour: `cache` stores a single plan in the same form.

use zhuque_abi::sites::{LibraryPlan, PLAN_MAGIC, PLAN_VERSION, PlanHeader, SITE_BYTES, Site};

use crate::Plan;
use crate::body::SYSCALL;
use crate::headers::{half, word};

const HEADER: usize = size_of::<PlanHeader>();
const LIBRARY: usize = size_of::<LibraryPlan>();
const SITE: usize = size_of::<Site>();

/// The bytes of a plan file: header, libraries, sites. Sets `first` and `count` of each library.
pub fn encode(plans: &[Plan]) -> Vec<u8> {
    let total: usize = plans.iter().map(|plan| plan.sites.len()).sum();
    let mut body = Vec::with_capacity(plans.len() * LIBRARY + total * SITE);
    let mut first = 0;
    for plan in plans {
        let count = plan.sites.len() as u32;
        let library = LibraryPlan { first, count, ..plan.library };
        write_library(&mut body, &library);
        first += count;
    }
    for site in plans.iter().flat_map(|plan| &plan.sites) {
        write_site(&mut body, site);
    }
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend(PLAN_MAGIC.to_le_bytes());
    bytes.extend(PLAN_VERSION.to_le_bytes());
    bytes.extend((plans.len() as u32).to_le_bytes());
    bytes.extend(first.to_le_bytes());
    bytes.extend(crc32fast::hash(&body).to_le_bytes());
    bytes.extend(body);
    bytes
}

/// Reads what [`encode`] wrote; `None` if it is damaged or of another version. `unplanned` is not in there and zero.
pub fn decode(bytes: &[u8]) -> Option<Vec<Plan>> {
    let header = bytes.get(..HEADER)?;
    let body = &bytes[HEADER..];
    let sound =
        word(header, 0) == PLAN_MAGIC && half(header, 8) == PLAN_VERSION && half(header, 20) == crc32fast::hash(body);
    let (libraries, sites) = (half(header, 12) as usize, half(header, 16) as usize);
    let split = libraries.checked_mul(LIBRARY)?;
    if !sound || body.len() != split.checked_add(sites.checked_mul(SITE)?)? {
        return None;
    }
    let (libraries, sites) = body.split_at(split);
    let sites: Vec<Site> = sites.chunks_exact(SITE).map(read_site).collect();
    let libraries = libraries.chunks_exact(LIBRARY).map(read_library);
    let plans = libraries.map(|library| {
        let end = library.first.checked_add(library.count)?;
        let sites = sites.get(library.first as usize..end as usize)?.to_vec();
        well_formed(&sites, library.size).then_some(Plan { library, sites, unplanned: 0 })
    });
    plans.collect()
}

/// Whether the sites could belong to a file of this size: in order, apart, and each around a `syscall`.
fn well_formed(sites: &[Site], size: u64) -> bool {
    let mut floor = 0;
    sites.iter().all(|site| {
        let (before, length) = (usize::from(site.before), usize::from(site.length));
        let ordered = site.file_offset >= floor;
        floor = site.file_offset.saturating_add(length as u64);
        let shaped = (5..=SITE_BYTES).contains(&length) && before + SYSCALL.len() <= length;
        ordered
            && shaped
            && floor <= size
            && site.original[before..before + SYSCALL.len()] == SYSCALL
            && site.original[length..].iter().all(|&byte| byte == 0)
    })
}

fn write_library(bytes: &mut Vec<u8>, library: &LibraryPlan) {
    bytes.extend(library.device.to_le_bytes());
    bytes.extend(library.inode.to_le_bytes());
    bytes.extend(library.size.to_le_bytes());
    bytes.extend(library.first.to_le_bytes());
    bytes.extend(library.count.to_le_bytes());
    bytes.extend(library.build_id);
}

fn read_library(bytes: &[u8]) -> LibraryPlan {
    let mut build_id = [0; 32];
    build_id.copy_from_slice(&bytes[32..64]);
    LibraryPlan {
        device: word(bytes, 0),
        inode: word(bytes, 8),
        size: word(bytes, 16),
        first: half(bytes, 24),
        count: half(bytes, 28),
        build_id,
    }
}

fn write_site(bytes: &mut Vec<u8>, site: &Site) {
    bytes.extend(site.file_offset.to_le_bytes());
    bytes.extend([site.before, site.length]);
    bytes.extend(site.reserved);
    bytes.extend(site.original);
}

fn read_site(bytes: &[u8]) -> Site {
    let mut reserved = [0; 6];
    reserved.copy_from_slice(&bytes[10..16]);
    let mut original = [0; SITE_BYTES];
    original.copy_from_slice(&bytes[16..16 + SITE_BYTES]);
    Site { file_offset: word(bytes, 0), before: bytes[8], length: bytes[9], reserved, original }
}
