//! How many nodes an operation looks at: that the table is logarithmic is counted here, not timed.
//!
//! Everything else about the table is tested from outside, in `tests/maptree.rs`.

extern crate std;

use super::{Attr, MapTree};
use core::cell::Cell;
use std::{thread_local, vec, vec::Vec};
use zhuque_abi::maps::{Kind, Node, TreeHead};

thread_local! {
    static STEPS: Cell<u64> = const { Cell::new(0) };
}

/// Called for every node that is looked at.
pub(super) fn count() {
    STEPS.with(|s| s.set(s.get() + 1));
}

fn steps_of<T>(f: impl FnOnce() -> T) -> u64 {
    STEPS.with(|s| s.set(0));
    f();
    STEPS.with(Cell::get)
}

const PAGE: u64 = 4096;
const BASE: u64 = 1 << 40;
/// As many as Linux allows a process by default, less a few.
const RUNS: u64 = 65_530;

fn attr(prot: u8) -> Attr {
    Attr { kind: Kind::Region, prot, flags: 0, file: 0, offset: 0 }
}

fn table(runs: u64, order: impl Fn(u64) -> u64) -> (TreeHead, Vec<Node>) {
    let mut head = TreeHead::default();
    let zero = Node {
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
    let mut nodes = vec![zero; runs as usize + 16];
    let mut tree = MapTree::new(&mut head, &mut nodes);
    for i in 0..runs {
        let page = order(i);
        let start = BASE + page * PAGE;
        tree.set(start, start + PAGE, attr(1 + (page % 2) as u8)).unwrap();
    }
    assert_eq!(tree.len() as u64, runs);
    tree.check().unwrap();
    (head, nodes)
}

/// The most steps that any kind of call needs on `runs` single pages with alternating attributes.
fn worst(runs: u64, order: impl Fn(u64) -> u64) -> u64 {
    let (mut head, mut nodes) = table(runs, order);
    let mut tree = MapTree::new(&mut head, &mut nodes);
    let top = BASE + runs * PAGE;
    let mut all = [0; 11];
    for i in (0..runs).step_by((runs / 500).max(1) as usize) {
        let a = BASE + i * PAGE;
        let b = a + PAGE;
        let old = tree.find(a).unwrap().attr;
        let now = [
            steps_of(|| tree.find(a)),
            steps_of(|| tree.is_free(a, b)),
            steps_of(|| tree.set(a, b, attr(7))),
            steps_of(|| tree.update(a, b, |x| x.prot = 5)),
            steps_of(|| tree.clear(a, b)),
            steps_of(|| tree.gap_below(PAGE, PAGE, 0, top)),
            steps_of(|| tree.gap_above(PAGE, PAGE, BASE, u64::MAX)),
            steps_of(|| tree.gap_below(2 * PAGE, PAGE, BASE, top)),
            steps_of(|| tree.gap_below(PAGE, PAGE, BASE, a)),
            steps_of(|| tree.gap_above(PAGE, 512 * PAGE, BASE, u64::MAX)),
            steps_of(|| tree.set(a, b, old)),
        ];
        for (worst, steps) in all.iter_mut().zip(now) {
            *worst = steps.max(*worst);
        }
    }
    tree.check().unwrap();
    std::println!("{runs} runs: {all:?}");
    all.into_iter().max().unwrap_or(0)
}

#[test]
fn steps_grow_with_the_logarithm() {
    let shuffled = |i: u64| (i * 48_271) % RUNS;
    let orders: [&dyn Fn(u64) -> u64; 3] = [&|i| i, &|i| RUNS - 1 - i, &shuffled];
    for order in orders {
        let large = worst(RUNS, order);
        std::println!("65530 runs: at most {large} steps");
        // log2(65530) is 16; about 20 descents of 2 log2 n, three looks each.
        assert!(large < 1_200, "{large} steps");
    }
    // A hundred times the runs must cost about twice the steps.
    let small = worst(655, |i| i);
    let large = worst(RUNS, |i| i);
    std::println!("655 runs: at most {small} steps");
    assert!(large < 4 * small, "{small} steps, then {large}");
}

#[test]
fn misaligned_holes_do_not_make_the_search_linear() {
    // Single-page holes at odd pages only: long enough for one page, but none at a multiple of two pages.
    let (mut head, mut nodes) = table(20_000, |i| 2 * i);
    let tree = MapTree::new(&mut head, &mut nodes);
    let top = BASE + 40_000 * PAGE;
    let mut found = None;
    let steps = steps_of(|| found = tree.gap_below(PAGE, 2 * PAGE, 0, top));
    assert_eq!(found, Some(BASE - 2 * PAGE));
    std::println!("misaligned holes: {steps} steps");
    assert!(steps < 6_000, "{steps} steps");
    // There is nothing to fall back on here: all holes are tried, and none fits.
    assert_eq!(tree.gap_below(PAGE, 2 * PAGE, BASE, top), None);
}

#[test]
fn removing_many_runs_is_linear_in_their_number() {
    let (mut head, mut nodes) = table(RUNS, |i| i);
    let mut tree = MapTree::new(&mut head, &mut nodes);
    let steps = steps_of(|| tree.clear(0, u64::MAX));
    assert!(tree.is_empty());
    tree.check().unwrap();
    assert!(steps < 8 * RUNS, "{steps} steps");
}
