//! The naive model, random calls, and the comparison of the table with the model.

use zhuque_abi::maps::{Kind, Node, TreeHead, flag};
use zhuque_model::maptree::{Attr, Full, MapTree, MapView, Mapping};

pub const PAGE: u64 = 4096;
pub const BASE: u64 = 0x7f00_0000_0000;

pub const ZERO: Node = Node {
    start: 0,
    end: 0,
    offset: 0,
    max_gap: 0,
    min_start: 0,
    max_end: 0,
    left: 0,
    right: 0,
    file: 0,
    flags: 0,
    prot: 0,
    kind: 0,
};

pub fn attr(kind: Kind, prot: u8) -> Attr {
    Attr { kind, prot, flags: 0, file: 0, offset: 0 }
}

pub fn file(kind: Kind, file: u32, offset: u64) -> Attr {
    Attr { file, offset, ..attr(kind, 5) }
}

fn normal(mut a: Attr) -> Attr {
    if !a.has_file() {
        a.file = 0;
        a.offset = 0;
    }
    a
}

/// A small generator, for long runs that need no shrinking.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }
}

/// The table and its memory.
pub struct Table {
    pub head: TreeHead,
    pub nodes: Vec<Node>,
}

impl Table {
    pub fn new(runs: usize, seed: u64) -> Self {
        let head = TreeHead { seed, ..TreeHead::default() };
        Table { head, nodes: vec![ZERO; runs + 1] }
    }

    pub fn tree(&mut self) -> MapTree<'_> {
        MapTree::new(&mut self.head, &mut self.nodes)
    }

    pub fn view(&self) -> MapView<'_> {
        MapView::new(&self.head, &self.nodes)
    }

    pub fn height(&self) -> usize {
        let mut stack = vec![(self.head.root, 1)];
        let mut height = 0;
        while let Some((link, depth)) = stack.pop() {
            if link != 0 {
                height = height.max(depth);
                let n = &self.nodes[link as usize];
                stack.extend([(n.left, depth + 1), (n.right, depth + 1)]);
            }
        }
        height
    }
}

/// What each page is; the offset is the page's own.
#[derive(Clone)]
pub struct Model(Vec<Option<Attr>>);

impl Model {
    pub fn new(pages: u64) -> Self {
        Model(vec![None; pages as usize])
    }

    pub fn addr(page: u64) -> u64 {
        BASE + page * PAGE
    }

    pub fn set(&mut self, from: u64, to: u64, attr: Attr) {
        let attr = normal(attr);
        for page in from..to {
            let mut a = attr;
            if a.has_file() {
                a.offset += (page - from) * PAGE;
            }
            self.0[page as usize] = Some(a).filter(|a| a.kind != Kind::Free);
        }
    }

    pub fn clear(&mut self, from: u64, to: u64) {
        self.0[from as usize..to as usize].fill(None);
    }

    /// `f` must not depend on the offset nor change it: it is called for each page here.
    pub fn update(&mut self, from: u64, to: u64, f: impl Fn(&mut Attr)) {
        for slot in &mut self.0[from as usize..to as usize] {
            if let Some(mut a) = *slot {
                f(&mut a);
                *slot = Some(normal(a)).filter(|a| a.kind != Kind::Free);
            }
        }
    }

    pub fn runs(&self) -> Vec<Mapping> {
        let mut runs: Vec<Mapping> = Vec::new();
        for (page, slot) in (0u64..).zip(&self.0) {
            let Some(attr) = *slot else { continue };
            let start = Self::addr(page);
            let end = start + PAGE;
            match runs.last_mut() {
                Some(last) if last.end == start && same(last, start, attr) => last.end = end,
                _ => runs.push(Mapping { start, end, attr }),
            }
        }
        runs
    }

    pub fn free(&self, page: u64) -> bool {
        self.0.get(page as usize).is_none_or(Option::is_none)
    }

    /// All addresses at which `len` pages fit, by trying each, within the modelled pages.
    pub fn gaps(&self, len: u64, align: u64, low: u64, high: u64) -> impl DoubleEndedIterator<Item = u64> {
        let last = high.checked_sub(len);
        (low..=last.unwrap_or(0))
            .filter(move |_| last.is_some())
            .filter(move |p| Self::addr(*p).is_multiple_of(align * PAGE))
            .filter(move |p| (*p..p + len).all(|p| self.free(p)))
            .map(Self::addr)
    }
}

fn same(run: &Mapping, at: u64, attr: Attr) -> bool {
    let mut expected = run.attr;
    if expected.has_file() {
        expected.offset += at - run.start;
    }
    expected == attr
}

/// Everything that can be asked about the table, compared with the model.
pub fn compare(table: &Table, model: &Model) {
    let view = table.view();
    view.check().unwrap();
    let runs = model.runs();
    assert_eq!(view.iter().collect::<Vec<_>>(), runs);
    assert_eq!(view.len(), runs.len());
    assert_eq!(view.is_empty(), runs.is_empty());
    assert_eq!(view.spare(), table.nodes.len() - 1 - runs.len());
}

pub fn compare_lookups(table: &Table, model: &Model, rng: &mut Rng) {
    let view = table.view();
    let runs = model.runs();
    let pages = model.0.len() as u64;
    for _ in 0..4 {
        let a = BASE + rng.below(pages * PAGE + PAGE);
        let find = runs.iter().find(|m| m.start <= a && a < m.end).copied();
        assert_eq!(view.find(a), find);
        let next = runs.iter().find(|m| m.end > a).copied();
        assert_eq!(view.at_or_after(a), next);
        let last = runs.iter().rfind(|m| m.start < a).copied();
        assert_eq!(view.last_below(a), last);

        let from = rng.below(pages);
        let to = from + rng.below(pages - from + 1);
        let (start, end) = (Model::addr(from), Model::addr(to));
        let free = (from..to).all(|p| model.free(p));
        assert_eq!(view.is_free(start, end), free);
        let within: Vec<_> = runs.iter().filter(|m| m.start < end && m.end > start && start < end).copied().collect();
        assert_eq!(view.range(start, end).collect::<Vec<_>>(), within);

        let len = 1 + rng.below(6);
        let align = [1, 1, 1, 2, 3, 4, 16][rng.below(7) as usize];
        let below = view.gap_below(len * PAGE, align * PAGE, start, end);
        let above = view.gap_above(len * PAGE, align * PAGE, start, end);
        let mut gaps = model.gaps(len, align, from, to);
        if align == 1 || pages <= 64 {
            // At most 32 holes: the search may not give up.
            assert_eq!(above, gaps.next());
            assert_eq!(below, gaps.next_back().or(above));
        } else {
            let gaps: Vec<_> = gaps.collect();
            assert_eq!(below.is_some(), !gaps.is_empty());
            assert_eq!(above.is_some(), !gaps.is_empty());
            assert!(below.is_none_or(|a| gaps.contains(&a)));
            assert!(above.is_none_or(|a| gaps.contains(&a)));
        }
    }
}

#[derive(Clone, Debug)]
pub enum Op {
    Set(u64, u64, Attr),
    Clear(u64, u64),
    Prot(u64, u64, u8),
    Flag(u64, u64, u16),
    Unflag(u64, u64, u16),
    /// Reservations become region memory.
    Commit(u64, u64),
    /// Removes file mappings only.
    DropFiles(u64, u64),
}

impl Op {
    pub fn random(rng: &mut Rng, pages: u64) -> Op {
        let from = rng.below(pages);
        let most = if rng.below(8) == 0 { pages } else { 6 };
        let to = (from + rng.below(most) + u64::from(rng.below(16) > 0)).min(pages);
        let prot = [1, 3, 3, 5][rng.below(4) as usize];
        let bit = [flag::LOCKED, flag::DONTFORK, flag::FROM_FILE][rng.below(3) as usize];
        let kind = match rng.below(12) {
            0 => Kind::Reserve,
            1 => Kind::Headroom,
            2 => Kind::Control,
            3 => Kind::Volatile,
            4..=5 => Kind::FilePrivate,
            6 => Kind::FileShared,
            7 => Kind::Free,
            _ => Kind::Region,
        };
        // Offsets that fit the address are likely to be contiguous with what other calls set.
        let offset = (from + rng.below(2)) * PAGE;
        let attr =
            Attr { prot, flags: if rng.below(4) == 0 { bit } else { 0 }, ..file(kind, rng.below(2) as u32, offset) };
        match rng.below(16) {
            0..=6 => Op::Set(from, to, attr),
            7..=9 => Op::Clear(from, to),
            10..=11 => Op::Prot(from, to, prot),
            12 => Op::Flag(from, to, bit & !flag::FROM_FILE),
            13 => Op::Unflag(from, to, bit),
            14 => Op::Commit(from, to),
            _ => Op::DropFiles(from, to),
        }
    }

    pub fn range(&self) -> (u64, u64) {
        match *self {
            Op::Set(a, b, _) | Op::Clear(a, b) | Op::Prot(a, b, _) => (a, b),
            Op::Flag(a, b, _) | Op::Unflag(a, b, _) => (a, b),
            Op::Commit(a, b) | Op::DropFiles(a, b) => (a, b),
        }
    }

    pub fn change(&self, a: &mut Attr) {
        match *self {
            Op::Prot(_, _, prot) => a.prot = prot,
            Op::Flag(_, _, bit) => a.flags |= bit,
            Op::Unflag(_, _, bit) => a.flags &= !bit,
            Op::Commit(..) if a.kind == Kind::Reserve => a.kind = Kind::Region,
            Op::DropFiles(..) if a.kind.is_file() => a.kind = Kind::Free,
            _ => {}
        }
    }

    pub fn apply(&self, tree: &mut MapTree) -> Result<(), Full> {
        let (from, to) = self.range();
        let (start, end) = (Model::addr(from), Model::addr(to));
        match *self {
            Op::Set(_, _, attr) => tree.set(start, end, attr),
            Op::Clear(..) => tree.clear(start, end),
            _ => tree.update(start, end, |a| self.change(a)),
        }
    }

    pub fn apply_to_model(&self, model: &mut Model) {
        let (from, to) = self.range();
        match *self {
            Op::Set(_, _, attr) => model.set(from, to, attr),
            Op::Clear(..) => model.clear(from, to),
            _ => model.update(from, to, |a| self.change(a)),
        }
    }
}

/// Applies `op` to both. `Full` has to be right, and to have changed nothing.
pub fn step(table: &mut Table, model: &mut Model, op: &Op) -> Result<(), Full> {
    let before = table.nodes.clone();
    let head = table.head;
    let mut after = model.clone();
    op.apply_to_model(&mut after);
    let room = table.nodes.len() - 1;
    let result = op.apply(&mut table.tree());
    if result.is_ok() {
        *model = after;
    } else {
        assert_eq!(head, table.head);
        assert_eq!(before, table.nodes);
        match op {
            Op::Set(..) | Op::Clear(..) => assert!(after.runs().len() > room, "{op:?}"),
            _ => assert!(model.runs().len() + 2 > room, "{op:?}"),
        }
    }
    compare(table, model);
    result
}
