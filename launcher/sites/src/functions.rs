//! Address ranges of functions: the only places where bytes are certain to be instructions.
//!
//! Key types: [`Function`], [`Functions`]. First choice are the FDEs of `.eh_frame` (compilers write one for every
//! function, and one for each cold part); where no FDE reaches, symbols of type function that carry a size, and what
//! those functions call or fall into. Other bytes of `.text` are never decoded for sites. Neighbours: `lsda` (landing
//! pads), `callees`, `gaps`, `body` (decodes a range).

use gimli::{BaseAddresses, CieOrFde, EhFrame, EhFrameHdr, LittleEndian, Pointer, UnwindSection};
use goblin::elf::program_header::PT_GNU_EH_FRAME;
use goblin::elf::sym::{STT_FUNC, STT_GNU_IFUNC};

use crate::callees::follow_calls;
use crate::gaps::fill_gaps;
use crate::image::Image;
use crate::lsda::landing_pads;

/// One contiguous range of instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function {
    /// Address of the first instruction.
    pub start: u64,
    /// Address behind the last one.
    pub end: u64,
    /// No site may be in it: a signal trampoline, or exception tables that could not be read.
    pub barred: bool,
}

/// All that is known of a file's functions.
#[derive(Default)]
pub struct Functions {
    /// Sorted by start, not overlapping, each within one executable segment.
    pub ranges: Vec<Function>,
    /// Landing pads of exceptions.
    pub landing_pads: Vec<u64>,
}

/// Finds the functions of a file.
pub fn find_functions(image: &Image) -> Functions {
    let mut functions = Functions::default();
    read_eh_frame(image, &mut functions);
    tidy(image, &mut functions.ranges);
    let mut by_symbol = sized_symbols(image);
    tidy(image, &mut by_symbol);
    let framed = functions.ranges.len();
    for symbol in by_symbol {
        // An FDE always wins: of the two, it is the one that execution depends on.
        let known = &functions.ranges[..framed];
        let next = known.partition_point(|range| range.end <= symbol.start);
        if known.get(next).is_none_or(|range| range.start >= symbol.end) {
            functions.ranges.push(symbol);
        }
    }
    functions.ranges.sort_by_key(|range| range.start);
    let continued = fill_gaps(image, &functions.ranges);
    functions.ranges.extend(continued);
    functions.ranges.sort_by_key(|range| range.start);
    follow_calls(image, &mut functions.ranges);
    functions
}

/// Sorts, removes duplicates and what is not code, and cuts ranges where the next one starts.
fn tidy(image: &Image, ranges: &mut Vec<Function>) {
    ranges.retain(|f| f.start < f.end && image.is_code(f.start));
    ranges.retain(|f| image.range(f.start, f.end).is_some());
    ranges.sort_by_key(|f| (f.start, f.end));
    ranges.dedup_by(|next, kept| {
        let same = next.start == kept.start;
        kept.barred |= same && next.barred;
        same
    });
    for index in 1..ranges.len() {
        // An instruction across the cut makes the range unsound, see `body`; so a cut is never silently wrong.
        let next = ranges[index].start;
        ranges[index - 1].end = ranges[index - 1].end.min(next);
    }
}

/// The range of every FDE.
fn read_eh_frame(image: &Image, functions: &mut Functions) {
    let Some((address, bytes)) = eh_frame(image) else {
        return;
    };
    let bases = BaseAddresses::default().set_eh_frame(address);
    let mut section = EhFrame::new(bytes, LittleEndian);
    section.set_address_size(8);
    let mut entries = section.entries(&bases);
    // An error ends the walk: what was read until then is still right.
    while let Ok(Some(entry)) = entries.next() {
        let CieOrFde::Fde(partial) = entry else {
            continue;
        };
        let Ok(fde) = partial.parse(EhFrame::cie_from_offset) else {
            continue;
        };
        let start = fde.initial_address();
        let readable = match fde.lsda() {
            None => true,
            Some(Pointer::Direct(area)) => {
                let pads = &mut functions.landing_pads;
                landing_pads(image.at(area), area, start, pads).is_some()
            }
            Some(Pointer::Indirect(_)) => false,
        };
        functions.ranges.push(Function {
            start,
            end: fde.end_address(),
            barred: !readable || fde.is_signal_trampoline(),
        });
    }
}

/// Address and bytes of `.eh_frame`: by section name or, if the section headers are gone, by its index segment.
fn eh_frame(image: &Image) -> Option<(u64, &[u8])> {
    if let Some(section) = image.section(b".eh_frame") {
        let bytes = image.section_bytes(section)?;
        return Some((section.sh_addr, bytes));
    }
    let index = image.elf.segment(PT_GNU_EH_FRAME)?.p_vaddr;
    let bases = BaseAddresses::default().set_eh_frame_hdr(index);
    let parsed = EhFrameHdr::new(image.at(index), LittleEndian).parse(&bases, 8).ok()?;
    match parsed.eh_frame_ptr() {
        Pointer::Direct(address) => Some((address, image.at(address))),
        Pointer::Indirect(_) => None,
    }
}

/// The range of every function symbol that has a size.
fn sized_symbols(image: &Image) -> Vec<Function> {
    let symbols = image.symbols().filter(|symbol| {
        let kind = symbol.st_type();
        (kind == STT_FUNC || kind == STT_GNU_IFUNC) && symbol.st_shndx != 0 && symbol.st_size != 0
    });
    symbols
        .filter_map(|symbol| {
            Some(Function { start: symbol.st_value, end: symbol.st_value.checked_add(symbol.st_size)?, barred: false })
        })
        .collect()
}
