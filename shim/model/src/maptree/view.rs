//! Reading the mapping table: lookups and iteration.
//!
//! [`MapView`] borrows the table without the right to change it, so that a region mapped read-only can be looked at.
//! It is also the only way in which this module reads links: [`MapView::node`] treats every index that is not one as
//! "none". `gap` and `check` add further methods.

use super::{MAX_DEPTH, Mapping};
use zhuque_abi::maps::{Node, TreeHead};

/// The mapping table, for reading. See the [module](super).
#[derive(Clone, Copy)]
pub struct MapView<'a> {
    pub(super) head: &'a TreeHead,
    pub(super) nodes: &'a [Node],
}

impl<'a> MapView<'a> {
    /// Looks at the table that `head` and `nodes` hold.
    pub fn new(head: &'a TreeHead, nodes: &'a [Node]) -> Self {
        MapView { head, nodes }
    }

    /// The node with index `link`; `None` for 0 and for what is no index.
    pub(super) fn node(&self, link: u32) -> Option<&'a Node> {
        #[cfg(test)]
        super::steps::count();
        if link == 0 {
            return None;
        }
        self.nodes.get(link as usize)
    }

    /// The run that contains `addr`.
    pub fn find(&self, addr: u64) -> Option<Mapping> {
        self.at_or_after(addr).filter(|m| m.start <= addr)
    }

    /// The first run that ends behind `addr`: the one that contains it, or else the next one.
    pub fn at_or_after(&self, addr: u64) -> Option<Mapping> {
        let mut best = None;
        let mut link = self.head.root;
        for _ in 0..MAX_DEPTH {
            let Some(n) = self.node(link) else { break };
            if n.end > addr {
                best = Some(n);
                link = n.left;
            } else {
                link = n.right;
            }
        }
        best.and_then(Mapping::of)
    }

    /// The last run that starts below `addr`.
    pub fn last_below(&self, addr: u64) -> Option<Mapping> {
        let mut best = None;
        let mut link = self.head.root;
        for _ in 0..MAX_DEPTH {
            let Some(n) = self.node(link) else { break };
            if n.start < addr {
                best = Some(n);
                link = n.right;
            } else {
                link = n.left;
            }
        }
        best.and_then(Mapping::of)
    }

    /// Whether there is nothing in `start..end`. True for an empty range.
    pub fn is_free(&self, start: u64, end: u64) -> bool {
        start >= end || self.at_or_after(start).is_none_or(|m| m.start >= end)
    }

    /// All runs in order of address. Each step costs O(log n).
    pub fn iter(&self) -> Iter<'a> {
        self.range(0, u64::MAX)
    }

    /// The runs that have something in common with `start..end`, in order of address and whole: see
    /// [`Mapping::part`] for cutting them.
    pub fn range(&self, start: u64, end: u64) -> Iter<'a> {
        Iter { view: *self, next: start, end, fuel: self.nodes.len() }
    }

    /// Number of runs.
    pub fn len(&self) -> usize {
        self.head.count as usize
    }

    /// Whether there are no runs.
    pub fn is_empty(&self) -> bool {
        self.head.count == 0
    }

    /// Number of nodes that are free.
    pub fn spare(&self) -> usize {
        self.nodes.len().saturating_sub(1).saturating_sub(self.len())
    }
}

impl<'a> IntoIterator for MapView<'a> {
    type Item = Mapping;
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

/// Iterator over runs, see [`MapView::range`].
///
/// It remembers an address and no path: that needs no memory that grows with the depth, and a garbage table cannot
/// send it back.
#[derive(Clone)]
pub struct Iter<'a> {
    view: MapView<'a>,
    next: u64,
    end: u64,
    /// Runs that may still come. Only a garbage table has more runs than nodes.
    fuel: usize,
}

impl Iterator for Iter<'_> {
    type Item = Mapping;

    fn next(&mut self) -> Option<Mapping> {
        if self.next >= self.end {
            return None;
        }
        self.fuel = self.fuel.checked_sub(1)?;
        let found = self.view.at_or_after(self.next);
        let run = found.filter(|m| m.start < self.end);
        // The end of an exhausted iterator is final even if asked again.
        self.next = run.map_or(u64::MAX, |m| m.end);
        run
    }
}

impl core::iter::FusedIterator for Iter<'_> {}
