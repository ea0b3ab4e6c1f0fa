//! The mapping table: which addresses the program has mapped, and as what.
//!
//! One search tree over disjoint runs of addresses. Neighbouring runs that are the same thing are always one run, so
//! the table's size follows what the program can tell apart and not how it got there. The tree is a treap: a node's
//! priority is a hash of its index and [`TreeHead::seed`], so nothing about the balance is stored, and its shape is
//! that of a random tree whatever the order of the calls. Every operation visits O(log n) nodes, plus those that it
//! removes or changes.
//!
//! The nodes are elements of an array linked by index, since they lie in a region, which is mapped by a later life
//! and by other processes. No recursion and no allocation: it runs on the shim's small stack.
//!
//! * [`MapTree`]: the table, to be changed
//! * [`MapView`] (`view`): the table, to be read; all queries, the search for holes (`gap`), the check (`check`)
//! * [`Mapping`], [`Attr`]: a run and what it is
//! * `treap`: node supply, split and merge
//!
//! The bytes are fixed by `zhuque_abi::maps`. Users: the shim's memory calls, save, restore's plan.
//!
//! **Garbage.** A region is untrusted input. Call [`MapView::check`] once before trusting a table that was loaded.
//! All other functions give nonsense on a table that would fail it, but neither panic nor loop for ever.
//!
//! **Units.** Nothing here knows the page size: callers pass page-aligned addresses.

use core::fmt;
use zhuque_abi::maps::{Kind, Node, TreeHead, flag};

mod check;
mod gap;
#[cfg(test)]
mod steps;
mod treap;
mod view;

pub use view::{Iter, MapView};

/// No descent visits more nodes than this.
///
/// A treap of 2^20 nodes is deeper with probability below 10^-35. The limit exists so that cycles in a garbage table
/// end, and so that paths fit on the stack.
pub const MAX_DEPTH: usize = 128;

/// The node array has no room for what the operation needs. Nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full;

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the mapping table is full")
    }
}

impl core::error::Error for Full {}

/// What a run of addresses is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attr {
    /// What backs the run. [`Kind::Free`] stands for "nothing": setting it is clearing.
    pub kind: Kind,
    /// PROT_* bits as the program asked for.
    pub prot: u8,
    /// See [`flag`].
    pub flags: u16,
    /// Index into the file table if [`Attr::has_file`]; otherwise stored as 0.
    pub file: u32,
    /// Offset in the file of the run's first byte if [`Attr::has_file`]; otherwise stored as 0.
    pub offset: u64,
}

impl Attr {
    /// Whether `file` and `offset` mean something: the offset advances along the run, and only runs with contiguous
    /// offsets merge.
    pub const fn has_file(&self) -> bool {
        self.kind.is_file() || self.flags & flag::FROM_FILE != 0
    }

    /// The attributes with meaningless fields zero, so that they never keep neighbours from merging.
    const fn normal(mut self) -> Attr {
        if !self.has_file() {
            self.file = 0;
            self.offset = 0;
        }
        self
    }

    /// The attributes `bytes` further into the run.
    const fn advanced(mut self, bytes: u64) -> Attr {
        if self.has_file() {
            self.offset = self.offset.wrapping_add(bytes);
        }
        self
    }
}

/// A run of addresses with the same attributes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// First address behind the run.
    pub end: u64,
    /// What it is.
    pub attr: Attr,
}

impl Mapping {
    /// Length in bytes.
    pub const fn bytes(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// The part of the run inside `start..end` with its own file offset; `None` when they have nothing in common.
    pub fn part(&self, start: u64, end: u64) -> Option<Mapping> {
        let start = start.max(self.start);
        let end = end.min(self.end);
        (start < end).then(|| Mapping { start, end, attr: self.attr.advanced(start - self.start) })
    }

    /// Whether `next` continues this run, so that both must be one.
    pub fn joins(&self, next: &Mapping) -> bool {
        self.end == next.start && self.attr.advanced(self.bytes()) == next.attr
    }

    /// The run that `node` holds, if it is a node of a tree at all.
    fn of(node: &Node) -> Option<Mapping> {
        let kind = Kind::from_raw(node.kind).filter(|k| *k != Kind::Free)?;
        (node.start < node.end).then_some(Mapping {
            start: node.start,
            end: node.end,
            attr: Attr { kind, prot: node.prot, flags: node.flags, file: node.file, offset: node.offset },
        })
    }
}

/// Joins runs that arrive in order of address, and so hands out maximal ones.
#[derive(Default)]
struct Joiner {
    pending: Option<Mapping>,
}

impl Joiner {
    /// Takes the next run; gives back the one before it when that is complete. A `Free` run is nothing, but ends the
    /// one before it by not being adjacent to what follows.
    fn push(&mut self, next: Mapping) -> Option<Mapping> {
        if next.attr.kind == Kind::Free {
            return None;
        }
        match &mut self.pending {
            Some(m) if m.joins(&next) => {
                m.end = next.end;
                None
            }
            pending => pending.replace(next),
        }
    }
}

/// The mapping table, open for changes. See the [module](self).
pub struct MapTree<'a> {
    head: &'a mut TreeHead,
    nodes: &'a mut [Node],
}

impl<'a> MapTree<'a> {
    /// Opens the table that `head` and `nodes` hold. Zeroed memory is an empty table. `nodes[0]` is never used, so
    /// there is room for one run less than there are nodes.
    ///
    /// `head.seed` may be set while the table is empty and never again: the shape of the tree depends on it.
    pub fn new(head: &'a mut TreeHead, nodes: &'a mut [Node]) -> Self {
        MapTree { head, nodes }
    }

    /// The table for reading only.
    pub fn view(&self) -> MapView<'_> {
        MapView::new(self.head, self.nodes)
    }

    /// Makes `start..end` one run with the attributes `attr`, whatever was there. An empty range does nothing.
    /// Needs up to two free nodes, and [`Full`] is only returned if it really does.
    pub fn set(&mut self, start: u64, end: u64, attr: Attr) -> Result<(), Full> {
        if start >= end {
            return Ok(());
        }
        let attr = attr.normal();
        let new = Mapping { start, end, attr };
        if self.find(start).and_then(|m| m.part(start, end)) == Some(new) {
            return Ok(());
        }
        self.replace(new)
    }

    /// Removes everything from `start..end`. Needs a free node only when it makes a hole inside one run.
    pub fn clear(&mut self, start: u64, end: u64) -> Result<(), Full> {
        if self.is_free(start, end) {
            return Ok(());
        }
        let attr = Attr { kind: Kind::Free, prot: 0, flags: 0, file: 0, offset: 0 };
        self.replace(Mapping { start, end, attr })
    }

    /// Lets `f` change the attributes of every run in `start..end`, or of the part of it that lies there, in order of
    /// address. Holes are skipped; what `f` makes [`Kind::Free`] is removed. `f` sees the file offset of the part.
    ///
    /// Needs a free node for each end of the range that lies inside a run, and returns [`Full`] before the first call
    /// of `f` when there are fewer, even if the result would need none: what `f` does cannot be known beforehand.
    pub fn update(&mut self, start: u64, end: u64, mut f: impl FnMut(&mut Attr)) -> Result<(), Full> {
        if self.is_free(start, end) {
            return Ok(());
        }
        let (left, right) = self.touching(start, end);
        let cuts_left = left.is_some_and(|m| m.end > start);
        let cuts_right = right.is_some_and(|m| m.start < end);
        self.reserve(usize::from(cuts_left) + usize::from(cuts_right))?;

        // Mostly it is one run or a part of one: then it is known before the tree is touched what will join.
        let mut runs = self.range(start, end);
        if let (Some(run), None) = (runs.next(), runs.next()) {
            let Some(mut part) = run.part(start, end) else {
                return Ok(()); // only in garbage
            };
            f(&mut part.attr);
            return self.set(part.start, part.end, part.attr);
        }

        let lo = left.map_or(start, |m| m.start);
        let hi = right.map_or(end, |m| m.end);
        let (mut low, mut middle, high) = self.carve(lo, hi);
        let mut joiner = Joiner::default();
        // Each run's node is freed before its parts are stored, so the nodes reserved above suffice at every moment.
        while let Some(run) = self.drain(&mut middle) {
            let inside = run.part(start, end).map(|mut m| {
                f(&mut m.attr);
                m.attr = m.attr.normal();
                m
            });
            let parts = [run.part(0, start), inside, run.part(end, u64::MAX)];
            for part in parts.into_iter().flatten() {
                if let Some(done) = joiner.push(part) {
                    low = self.append(low, &done);
                }
            }
        }
        if let Some(done) = joiner.pending {
            low = self.append(low, &done);
        }
        self.head.root = self.merge(low, high);
        Ok(())
    }

    /// Puts `new` in the place of what is there.
    fn replace(&mut self, new: Mapping) -> Result<(), Full> {
        let (left, right) = self.touching(new.start, new.end);
        let left = left.filter(|m| m.end > new.start || m.joins(&new));
        let right = right.filter(|m| m.start < new.end || new.joins(m));
        let mut pieces = [None; 3];
        let mut len = 0;
        let mut joiner = Joiner::default();
        let left_part = left.and_then(|m| m.part(0, new.start));
        let right_part = right.and_then(|m| m.part(new.end, u64::MAX));
        for part in [left_part, Some(new), right_part].into_iter().flatten() {
            if let Some(done) = joiner.push(part) {
                pieces[len] = Some(done);
                len += 1;
            }
        }
        if joiner.pending.is_some() {
            pieces[len] = joiner.pending;
            len += 1;
        }

        let lo = left.map_or(new.start, |m| m.start);
        let hi = right.map_or(new.end, |m| m.end);
        // More than three runs taken out need no counting: three is the most that is put back.
        let taken = self.view().range(lo, hi).take(pieces.len()).count();
        self.reserve(len.saturating_sub(taken))?;
        if len == 1 && pieces[0].is_some_and(|m| self.repaint(&m)) {
            return Ok(());
        }
        let (mut low, mut middle, high) = self.carve(lo, hi);
        while self.drain(&mut middle).is_some() {}
        for piece in pieces.iter().flatten() {
            low = self.append(low, piece);
        }
        self.head.root = self.merge(low, high);
        Ok(())
    }

    /// The run that ends at or overlaps `start` from below, and the one that begins at or overlaps `end` from above.
    /// They are the same one if it holds the whole range.
    fn touching(&self, start: u64, end: u64) -> (Option<Mapping>, Option<Mapping>) {
        let left = self.last_below(start).filter(|m| m.end >= start);
        let right = self.at_or_after(end).filter(|m| m.start <= end);
        (left, right)
    }

    /// Takes the runs that start in `lo..hi` out of the tree: those before, those, and those behind.
    fn carve(&mut self, lo: u64, hi: u64) -> (u32, treap::Drain, u32) {
        let (low, rest) = self.split(self.head.root, lo);
        let (middle, high) = self.split(rest, hi);
        (low, treap::Drain::new(middle, self.nodes.len()), high)
    }
}

/// The queries of [`MapView`].
impl MapTree<'_> {
    /// See [`MapView::find`].
    pub fn find(&self, addr: u64) -> Option<Mapping> {
        self.view().find(addr)
    }

    /// See [`MapView::at_or_after`].
    pub fn at_or_after(&self, addr: u64) -> Option<Mapping> {
        self.view().at_or_after(addr)
    }

    /// See [`MapView::last_below`].
    pub fn last_below(&self, addr: u64) -> Option<Mapping> {
        self.view().last_below(addr)
    }

    /// See [`MapView::is_free`].
    pub fn is_free(&self, start: u64, end: u64) -> bool {
        self.view().is_free(start, end)
    }

    /// See [`MapView::gap_below`].
    pub fn gap_below(&self, len: u64, align: u64, low: u64, high: u64) -> Option<u64> {
        self.view().gap_below(len, align, low, high)
    }

    /// See [`MapView::gap_above`].
    pub fn gap_above(&self, len: u64, align: u64, low: u64, high: u64) -> Option<u64> {
        self.view().gap_above(len, align, low, high)
    }

    /// See [`MapView::iter`].
    pub fn iter(&self) -> Iter<'_> {
        self.view().iter()
    }

    /// See [`MapView::range`].
    pub fn range(&self, start: u64, end: u64) -> Iter<'_> {
        self.view().range(start, end)
    }

    /// See [`MapView::len`].
    pub fn len(&self) -> usize {
        self.view().len()
    }

    /// See [`MapView::is_empty`].
    pub fn is_empty(&self) -> bool {
        self.view().is_empty()
    }

    /// See [`MapView::spare`].
    pub fn spare(&self) -> usize {
        self.view().spare()
    }

    /// See [`MapView::check`].
    pub fn check(&self) -> Result<(), &'static str> {
        self.view().check()
    }
}
