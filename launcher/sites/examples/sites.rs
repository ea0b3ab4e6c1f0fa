//! Prints how many `syscall` instructions of each file named on the command line can be rewritten, and how long it
//! took to find out; with `-v` also every site. For people who work on the rules.

use std::path::Path;
use std::time::Instant;

fn main() {
    let mut verbose = false;
    for argument in std::env::args().skip(1) {
        if argument == "-v" {
            verbose = true;
            continue;
        }
        let start = Instant::now();
        match zhuque_sites::plan_file(Path::new(&argument)) {
            Ok(plan) => {
                let forward = plan.sites.iter().filter(|site| site.before == 0).count();
                println!(
                    "{argument}: {} sites ({forward} forward), {} unplanned, {:?}",
                    plan.sites.len(),
                    plan.unplanned,
                    start.elapsed()
                );
                for site in plan.sites.iter().filter(|_| verbose) {
                    let bytes = &site.original[..usize::from(site.length)];
                    let call = site.file_offset + u64::from(site.before);
                    println!("  call {call:#x} run {:#x} {bytes:02x?}", site.file_offset);
                }
            }
            Err(error) => println!("{error}"),
        }
    }
}
