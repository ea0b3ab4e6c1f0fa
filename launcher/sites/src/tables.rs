//! Switch tables: branch targets written as 32-bit distances in read-only data.
//!
//! Key function: [`read_tables`]. Compilers write `lea table(%rip),base; movslq (base,index,4); add base; jmp`, so a
//! table starts where some LEA points, and each entry is a distance from there. Nothing says how long a table is: it
//! is read on as long as entries lead into code. Reading too much only adds targets. Neighbour: `targets`.

use crate::body::Body;
use crate::headers::half;
use crate::image::Image;
use crate::targets::Collector;
use iced_x86::{FlowControl, Instruction, Mnemonic};

/// More entries than any switch has.
const LONGEST_TABLE: usize = 1 << 16;

/// Takes each of `places` (targets of LEAs anywhere in the file) for a table of distances from itself.
pub fn read_tables(image: &Image, bodies: &[Body], places: &[u64], targets: &mut Collector) {
    for &place in places {
        for target in entries(image, place, place).take_while(|&target| image.is_code(target)) {
            // Only an entry that was read beyond the end of its table leads into an instruction.
            if !splits_instruction(bodies, target) {
                targets.add(target);
            }
        }
    }
}

/// The tables of distances from a label (`&&a - &&b` of GNU C, as printf has them): in a body that jumps indirectly,
/// every label whose address it takes is combined with every table whose address it takes.
pub fn read_label_tables(image: &Image, body: &Body, targets: &mut Collector) {
    let jumps = |i: &Instruction| i.flow_control() == FlowControl::IndirectBranch;
    if !body.instructions.iter().any(jumps) {
        return;
    }
    let range = body.function.start..body.function.end;
    let leas = body.instructions.iter();
    let leas = leas.filter(|i| i.mnemonic() == Mnemonic::Lea && i.is_ip_rel_memory_operand());
    let places = leas.map(Instruction::ip_rel_memory_address);
    let (labels, data): (Vec<_>, Vec<_>) = places.partition(|&place| image.is_code(place));
    for &label in labels.iter().filter(|label| range.contains(label)) {
        for &place in &data {
            let entries = entries(image, place, label);
            for target in entries.take_while(|target| range.contains(target)) {
                targets.add(target);
            }
        }
    }
}

/// What the 32-bit distances from `base` that are stored at `place` lead to.
fn entries(image: &Image, place: u64, base: u64) -> impl Iterator<Item = u64> + '_ {
    let entries = image.at(place).chunks_exact(4).take(LONGEST_TABLE);
    entries.map(move |entry| base.wrapping_add_signed(i64::from(half(entry, 0) as i32)))
}

/// Whether `address` lies in the middle of an instruction of a body that is soundly decoded.
fn splits_instruction(bodies: &[Body], address: u64) -> bool {
    let next = bodies.partition_point(|body| body.function.end <= address);
    bodies.get(next).is_some_and(|body| body.sound && body.function.start <= address && !body.starts_at(address))
}
