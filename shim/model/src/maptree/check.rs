//! Checking a mapping table that comes from outside.
//!
//! A table that passes is one that the operations could have left behind, so they can be trusted with it.

use super::{MAX_DEPTH, MapView, Mapping, treap::summary};
use zhuque_abi::maps::{Kind, Node};

impl MapView<'_> {
    /// Checks everything: links, order, shape, summaries, that neighbours are merged, and the list of free nodes.
    /// Takes O(n) on any input.
    ///
    /// Whether the addresses are page-aligned and sensible is not the tree's business, and not checked.
    pub fn check(&self) -> Result<(), &'static str> {
        let used = self.head.used as usize;
        if used > 0 && used >= self.nodes.len() {
            return Err("mapping table: more nodes used than there are");
        }
        if self.head.count > self.head.used {
            return Err("mapping table: more runs than nodes used");
        }
        self.check_tree()?;
        self.check_free()
    }

    /// The node behind a link that is not 0.
    fn linked(&self, link: u32) -> Result<&Node, &'static str> {
        if link > self.head.used {
            return Err("mapping table: link to a node that was never used");
        }
        self.node(link).ok_or("mapping table: link outside of the table")
    }

    /// Visits the runs in order. No node is visited twice: addresses must rise strictly; a cycle that never gets as
    /// far as a visit exceeds the depth.
    fn check_tree(&self) -> Result<(), &'static str> {
        // The nodes above that are yet to be visited, and the depth of each.
        let mut path = [(0u32, 0usize); MAX_DEPTH];
        let mut len = 0;
        let mut link = self.head.root;
        let mut depth = 0;
        let mut last: Option<Mapping> = None;
        let mut seen = 0u32;
        loop {
            while link != 0 {
                let n = self.linked(link)?;
                depth += 1;
                if depth > MAX_DEPTH {
                    return Err("mapping table: too deep, or a cycle");
                }
                path[len] = (link, depth);
                len += 1;
                link = n.left;
            }
            let Some(above) = len.checked_sub(1) else {
                break;
            };
            len = above;
            let (here, own_depth) = path[len];
            depth = own_depth;
            let n = self.linked(here)?;
            let run = self.check_node(here, n)?;
            if let Some(last) = last {
                if last.end > run.start {
                    return Err("mapping table: runs overlap or are out of order");
                }
                if last.joins(&run) {
                    return Err("mapping table: neighbours that should be one run");
                }
            }
            last = Some(run);
            seen += 1;
            link = n.right;
        }
        if seen != self.head.count {
            return Err("mapping table: wrong number of runs");
        }
        Ok(())
    }

    /// Checks what a node says, given what its children say.
    fn check_node(&self, link: u32, n: &Node) -> Result<Mapping, &'static str> {
        let run = Mapping::of(n).ok_or("mapping table: a node that is no run")?;
        if run.attr != run.attr.normal() {
            return Err("mapping table: a file where there is none");
        }
        for child in [n.left, n.right] {
            if child == 0 {
                continue;
            }
            self.linked(child)?;
            if self.priority(child) >= self.priority(link) {
                return Err("mapping table: a node above one of higher priority");
            }
        }
        let told = (n.max_gap, n.min_start, n.max_end);
        if told != summary(n, self.node(n.left), self.node(n.right)) {
            return Err("mapping table: wrong summary of a subtree");
        }
        Ok(run)
    }

    /// Follows the list of free nodes. Its length is known, which ends cycles; and as its nodes are `Free` and those
    /// of the tree are not, together they are all the nodes ever used.
    fn check_free(&self) -> Result<(), &'static str> {
        let mut link = self.head.free;
        for _ in 0..self.head.used - self.head.count {
            if link == 0 {
                return Err("mapping table: free nodes are missing");
            }
            let n = self.linked(link)?;
            if n.kind != Kind::Free as u8 {
                return Err("mapping table: a free node that is in use");
            }
            link = n.left;
        }
        if link != 0 {
            return Err("mapping table: too many free nodes, or a cycle");
        }
        Ok(())
    }
}
