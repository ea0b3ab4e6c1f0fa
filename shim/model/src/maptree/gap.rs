//! Finding free addresses.
//!
//! Each node knows the longest hole inside its subtree, so the highest hole of a wanted length below some address is
//! found in one or two descents ([`Looking::highest`]). Looking for the lowest one is the same thing in a mirror
//! ([`Looking`]): the address `a` becomes `!a`, and left becomes right.

use super::{MAX_DEPTH, MapView};
use zhuque_abi::maps::Node;

/// Holes that are long enough but do not fit, after which the search turns to holes that fit for certain.
///
/// Alignments up to the granule of all addresses (a page) never meet more than the two that the limits cut off. With
/// huge pages the space may be full of holes of the right length at the wrong place, and trying all is linear.
const MISFITS: u32 = 32;

/// Addresses with nothing in them, between two runs or outside of all.
#[derive(Clone, Copy)]
struct Hole {
    start: u64,
    end: u64,
}

impl Hole {
    fn bytes(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }
}

/// Where a hole of the wanted length certainly is.
enum Spot<'a> {
    /// Here.
    At(Hole),
    /// Between two runs of this subtree.
    Within(&'a Node),
}

/// What is wanted, in true addresses.
#[derive(Clone, Copy)]
struct Wish {
    len: u64,
    align: u64,
    low: u64,
    high: u64,
}

/// How a search through the holes ended.
enum Outcome {
    Found(u64),
    Nothing,
    /// Too many misfits; all holes from this (mirrored) address up have been looked at.
    GaveUp(u64),
}

/// The table as seen when looking for the highest hole, or for the lowest one (`mirror`).
#[derive(Clone, Copy)]
struct Looking<'a> {
    view: MapView<'a>,
    mirror: bool,
}

impl<'a> Looking<'a> {
    /// An interval as it appears in the mirror; its own inverse.
    fn flip(&self, start: u64, end: u64) -> Hole {
        if self.mirror { Hole { start: !end, end: !start } } else { Hole { start, end } }
    }

    fn own(&self, n: &Node) -> Hole {
        self.flip(n.start, n.end)
    }

    fn subtree(&self, n: &Node) -> Hole {
        self.flip(n.min_start, n.max_end)
    }

    fn left(&self, n: &Node) -> Option<&'a Node> {
        self.view.node(if self.mirror { n.right } else { n.left })
    }

    fn right(&self, n: &Node) -> Option<&'a Node> {
        self.view.node(if self.mirror { n.left } else { n.right })
    }

    /// The hole between the left subtree and the node.
    fn before(&self, n: &Node) -> Option<Hole> {
        self.left(n).map(|l| Hole { start: self.subtree(l).end, end: self.own(n).start })
    }

    /// The hole between the node and the right subtree.
    fn behind(&self, n: &Node) -> Option<Hole> {
        self.right(n).map(|r| Hole { start: self.own(n).end, end: self.subtree(r).start })
    }

    /// The highest place with a hole of `want` bytes in the node's subtree, not looking into the right one.
    fn beside(&self, n: &Node, want: u64) -> Option<Spot<'a>> {
        let long = |h: &Hole| h.bytes() >= want;
        let near = self.behind(n).filter(long);
        if let Some(hole) = near.or_else(|| self.before(n).filter(long)) {
            return Some(Spot::At(hole));
        }
        self.left(n).filter(|l| l.max_gap >= want).map(Spot::Within)
    }

    /// The highest hole of at least `want` bytes (not 0) that starts below `limit`.
    fn highest(&self, limit: u64, want: u64) -> Option<Hole> {
        let root = self.view.node(self.view.head.root);
        let all = root.map_or(Hole { start: 0, end: 0 }, |n| self.subtree(n));
        let fits = |h: &Hole| h.start < limit && h.bytes() >= want;
        let above = Hole { start: all.end, end: u64::MAX };
        if fits(&above) {
            return Some(above);
        }

        // Down to where `limit` lies, remembering the highest spot passed on the left.
        let mut spot = None;
        let mut next = root;
        for _ in 0..MAX_DEPTH {
            let Some(n) = next.filter(|n| n.max_gap >= want) else {
                break;
            };
            if self.own(n).end < limit {
                spot = self.beside(n, want).or(spot);
                next = self.right(n);
            } else if let Some(hole) = self.before(n).filter(fits) {
                return Some(hole);
            } else {
                next = self.left(n);
            }
        }
        match spot {
            Some(Spot::At(hole)) => Some(hole),
            Some(Spot::Within(n)) => self.highest_within(n, want),
            None => Some(Hole { start: 0, end: all.start }).filter(fits),
        }
    }

    /// The highest hole of at least `want` bytes between two runs of a subtree.
    fn highest_within(&self, subtree: &'a Node, want: u64) -> Option<Hole> {
        let mut n = subtree;
        for _ in 0..MAX_DEPTH {
            n = match self.right(n).filter(|r| r.max_gap >= want) {
                Some(r) => r,
                None => match self.beside(n, want)? {
                    Spot::At(hole) => return Some(hole),
                    Spot::Within(l) => l,
                },
            };
        }
        None
    }

    /// The best address for `wish` in a (mirrored) hole.
    fn fit(&self, hole: Hole, wish: Wish) -> Option<u64> {
        let hole = self.flip(hole.start, hole.end);
        let low = hole.start.max(wish.low);
        let last = hole.end.min(wish.high).checked_sub(wish.len)?;
        let addr = if self.mirror { low.checked_next_multiple_of(wish.align)? } else { last - last % wish.align };
        (low <= addr && addr <= last).then_some(addr)
    }

    /// Goes through the holes of at least `want` bytes that start below `limit`, highest first.
    fn search(&self, mut limit: u64, want: u64, wish: Wish, misfits: u32) -> Outcome {
        let floor = self.flip(wish.low, wish.high).start;
        let mut left = misfits;
        while left > 0 {
            let Some(hole) = self.highest(limit, want) else {
                return Outcome::Nothing;
            };
            if let Some(addr) = self.fit(hole, wish) {
                return Outcome::Found(addr);
            }
            // The second condition never holds but in garbage, where it makes sure that this ends.
            if hole.start <= floor || hole.start >= limit {
                return Outcome::Nothing;
            }
            limit = hole.start;
            left -= 1;
        }
        Outcome::GaveUp(limit)
    }

    /// The best address for `wish`.
    fn best(&self, wish: Wish) -> Option<u64> {
        if wish.len == 0 || wish.low > wish.high {
            return None;
        }
        let certain = wish.len.saturating_add(wish.align - 1);
        let limit = self.flip(wish.low, wish.high).end;
        let limit = match self.search(limit, wish.len, wish, MISFITS) {
            Outcome::Found(addr) => return Some(addr),
            Outcome::Nothing => return None,
            Outcome::GaveUp(limit) => limit,
        };
        // Not the best one any more perhaps, but a good one. Failing that, any one before failing the program.
        for want in [certain, wish.len] {
            if let Outcome::Found(addr) = self.search(limit, want, wish, u32::MAX) {
                return Some(addr);
            }
        }
        None
    }
}

impl MapView<'_> {
    /// The highest multiple `a` of `align` for which `a..a + len` is free, `low <= a` and `a + len <= high`.
    ///
    /// Finds one whenever there is one. O(log n) if all runs and limits are multiples of `align`. With a coarser
    /// alignment, after 32 holes (from the top) that are long enough but at the wrong place, holes are preferred in
    /// which every alignment fits, which need not be the highest; only if there is none of these is the time linear.
    pub fn gap_below(&self, len: u64, align: u64, low: u64, high: u64) -> Option<u64> {
        self.gap(false, len, align, low, high)
    }

    /// The lowest such address; otherwise like [`MapView::gap_below`].
    pub fn gap_above(&self, len: u64, align: u64, low: u64, high: u64) -> Option<u64> {
        self.gap(true, len, align, low, high)
    }

    fn gap(&self, mirror: bool, len: u64, align: u64, low: u64, high: u64) -> Option<u64> {
        let looking = Looking { view: *self, mirror };
        looking.best(Wish { len, align: align.max(1), low, high })
    }
}
