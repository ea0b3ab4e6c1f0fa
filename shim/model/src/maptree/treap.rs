//! The mechanics of the tree: supply of nodes, split, merge, taking apart.
//!
//! Split and merge walk down once, relinking, and then up the remembered path, recomputing what each node says about
//! its subtree ([`summary`]). Paths have a fixed size, see [`Path`].

use super::{Full, MAX_DEPTH, MapTree, MapView, Mapping};
use zhuque_abi::maps::{Kind, Node};

/// The nodes visited on a way down.
///
/// Merging walks down one side of each of two trees, hence twice the depth of one. In a table that passes the check
/// the space cannot run out (see [`MAX_DEPTH`]); in garbage it does, and the walk ends there.
struct Path {
    len: usize,
    links: [u32; 2 * MAX_DEPTH],
}

impl Path {
    fn new() -> Self {
        Path { len: 0, links: [0; 2 * MAX_DEPTH] }
    }

    /// Remembers `link`; false if there is no space.
    fn push(&mut self, link: u32) -> bool {
        let Some(slot) = self.links.get_mut(self.len) else {
            return false;
        };
        *slot = link;
        self.len += 1;
        true
    }

    /// The links, last one first.
    fn upwards(&self) -> impl Iterator<Item = u32> + '_ {
        self.links.iter().take(self.len).rev().copied()
    }
}

/// Where a subtree is to be hung.
#[derive(Clone, Copy)]
enum Hook {
    Root,
    Left(u32),
    Right(u32),
}

/// A tree that is being taken apart, from its lowest run on.
pub(super) struct Drain {
    root: u32,
    /// Steps that may still be taken; only a cycle needs more than two for each node.
    fuel: usize,
}

impl Drain {
    pub(super) fn new(root: u32, nodes: usize) -> Self {
        Drain { root, fuel: nodes.saturating_mul(2) }
    }
}

/// What a node with these children has to say about its subtree: `max_gap`, `min_start`, `max_end`.
pub(super) fn summary(n: &Node, left: Option<&Node>, right: Option<&Node>) -> (u64, u64, u64) {
    let (mut max_gap, mut min_start, mut max_end) = (0, n.start, n.end);
    if let Some(l) = left {
        max_gap = l.max_gap.max(n.start.saturating_sub(l.max_end));
        min_start = l.min_start;
    }
    if let Some(r) = right {
        max_gap = max_gap.max(r.max_gap).max(r.min_start.saturating_sub(n.end));
        max_end = r.max_end;
    }
    (max_gap, min_start, max_end)
}

impl MapView<'_> {
    /// The priority of a node: a parent's is higher than its children's. No two nodes have the same one, since each
    /// step (of splitmix64) can be undone.
    pub(super) fn priority(&self, link: u32) -> u64 {
        let mut z = u64::from(link).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(self.head.seed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

impl MapTree<'_> {
    fn node_mut(&mut self, link: u32) -> Option<&mut Node> {
        #[cfg(test)]
        super::steps::count();
        if link == 0 {
            return None;
        }
        self.nodes.get_mut(link as usize)
    }

    /// Makes sure of `wanted` free nodes.
    pub(super) fn reserve(&self, wanted: usize) -> Result<(), Full> {
        if self.view().spare() < wanted {
            return Err(Full);
        }
        Ok(())
    }

    /// Takes a free node: a returned one, else the next that was never used, so that a region's table only ever
    /// occupies as much memory as the program once had mappings.
    fn take(&mut self) -> Option<u32> {
        let link = self.head.free;
        if link != 0 {
            let n = self.view().node(link)?;
            if n.kind != Kind::Free as u8 {
                return None; // garbage: a list of free nodes that leads into the tree
            }
            self.head.free = n.left;
            self.head.count = self.head.count.saturating_add(1);
            return Some(link);
        }
        let link = self.head.used.checked_add(1)?;
        self.nodes.get(link as usize)?;
        self.head.used = link;
        self.head.count = self.head.count.saturating_add(1);
        Some(link)
    }

    /// Gives a node back.
    fn give(&mut self, link: u32) {
        let next = self.head.free;
        if let Some(n) = self.node_mut(link) {
            *n = Node {
                start: 0,
                end: 0,
                offset: 0,
                max_gap: 0,
                min_start: 0,
                max_end: 0,
                left: next,
                right: 0,
                file: 0,
                flags: 0,
                prot: 0,
                kind: Kind::Free as u8,
            };
            self.head.free = link;
            self.head.count = self.head.count.saturating_sub(1);
        }
    }

    /// Recomputes what a node says about its subtree.
    fn pull(&mut self, link: u32) {
        let view = self.view();
        let Some(n) = view.node(link) else { return };
        let (max_gap, min_start, max_end) = summary(n, view.node(n.left), view.node(n.right));
        if let Some(n) = self.node_mut(link) {
            n.max_gap = max_gap;
            n.min_start = min_start;
            n.max_end = max_end;
        }
    }

    /// Hangs the tree `link` (or none) on `hook`.
    fn hang(&mut self, hook: Hook, root: &mut u32, link: u32) {
        match hook {
            Hook::Root => *root = link,
            Hook::Left(parent) => {
                if let Some(n) = self.node_mut(parent) {
                    n.left = link;
                }
            }
            Hook::Right(parent) => {
                if let Some(n) = self.node_mut(parent) {
                    n.right = link;
                }
            }
        }
    }

    /// Divides the tree `root` into the runs that start below `key` and the others.
    pub(super) fn split(&mut self, root: u32, key: u64) -> (u32, u32) {
        let (mut low, mut high) = (0, 0);
        let (mut low_hook, mut high_hook) = (Hook::Root, Hook::Root);
        let mut path = Path::new();
        let mut link = root;
        while let Some(&n) = self.view().node(link) {
            if !path.push(link) {
                break;
            }
            if n.start < key {
                self.hang(low_hook, &mut low, link);
                low_hook = Hook::Right(link);
                link = n.right;
            } else {
                self.hang(high_hook, &mut high, link);
                high_hook = Hook::Left(link);
                link = n.left;
            }
        }
        self.hang(low_hook, &mut low, 0);
        self.hang(high_hook, &mut high, 0);
        for link in path.upwards() {
            self.pull(link);
        }
        (low, high)
    }

    /// Makes one tree of two, all of whose runs lie in order.
    pub(super) fn merge(&mut self, mut low: u32, mut high: u32) -> u32 {
        let mut root = 0;
        let mut hook = Hook::Root;
        let mut path = Path::new();
        loop {
            let view = self.view();
            let (Some(l), Some(h)) = (view.node(low), view.node(high)) else {
                self.hang(hook, &mut root, if low == 0 { high } else { low });
                break;
            };
            if view.priority(low) > view.priority(high) {
                let next = l.right;
                if !path.push(low) {
                    break;
                }
                self.hang(hook, &mut root, low);
                hook = Hook::Right(low);
                low = next;
            } else {
                let next = h.left;
                if !path.push(high) {
                    break;
                }
                self.hang(hook, &mut root, high);
                hook = Hook::Left(high);
                high = next;
            }
        }
        for link in path.upwards() {
            self.pull(link);
        }
        root
    }

    /// Adds a run behind all runs of the tree `root`. Callers have reserved the node.
    pub(super) fn append(&mut self, root: u32, run: &Mapping) -> u32 {
        let Some(link) = self.take() else {
            return root; // only in garbage
        };
        if let Some(n) = self.node_mut(link) {
            *n = Node {
                start: run.start,
                end: run.end,
                offset: run.attr.offset,
                max_gap: 0,
                min_start: run.start,
                max_end: run.end,
                left: 0,
                right: 0,
                file: run.attr.file,
                flags: run.attr.flags,
                prot: run.attr.prot,
                kind: run.attr.kind as u8,
            };
        }
        self.merge(root, link)
    }

    /// Changes only the attributes of the run with the same bounds as `run`; false if there is none. The tree keeps
    /// its shape; whether neighbours join is the caller's concern.
    pub(super) fn repaint(&mut self, run: &Mapping) -> bool {
        let mut link = self.head.root;
        for _ in 0..MAX_DEPTH {
            let Some(n) = self.node_mut(link) else { break };
            if n.start == run.start {
                if n.end != run.end {
                    break;
                }
                n.offset = run.attr.offset;
                n.file = run.attr.file;
                n.flags = run.attr.flags;
                n.prot = run.attr.prot;
                n.kind = run.attr.kind as u8;
                return true;
            }
            link = if run.start < n.start { n.left } else { n.right };
        }
        false
    }

    /// Removes the lowest run of a tree that is being taken apart, and frees its node.
    ///
    /// Rotates it to the top on the way, which spares a stack; all of a tree costs two steps for each node. What the
    /// nodes say about their subtrees is not kept up: none of them survives.
    pub(super) fn drain(&mut self, drain: &mut Drain) -> Option<Mapping> {
        loop {
            drain.fuel = drain.fuel.checked_sub(1)?;
            let root = drain.root;
            let &n = self.view().node(root)?;
            let Some(&l) = self.view().node(n.left) else {
                drain.root = n.right;
                self.give(root);
                return Mapping::of(&n);
            };
            self.hang(Hook::Left(root), &mut drain.root, l.right);
            self.hang(Hook::Right(n.left), &mut drain.root, root);
            drain.root = n.left;
        }
    }
}
