//! The mapping table against a naive model with one entry for each page.
//!
//! * `model`: the model, random calls, the comparison
//! * `garbage`: damaged and random tables

use model::{BASE, Model, Op, PAGE, Rng, Table, attr, compare_lookups, file, step};
use proptest::prelude::*;
use zhuque_abi::maps::{Kind, TreeHead, flag};
use zhuque_model::maptree::{Full, MapTree};

#[path = "maptree/garbage.rs"]
mod garbage;
#[path = "maptree/model.rs"]
mod model;

#[test]
fn long_random_sequences_agree_with_the_model() {
    for (seed, pages) in [(1u64, 64), (2, 64), (3, 40), (4, 300)] {
        let mut rng = Rng(seed.wrapping_mul(0x1234_5678_9abc_def1));
        let mut table = Table::new(400, seed);
        let mut model = Model::new(pages);
        for _ in 0..12_000 {
            let op = Op::random(&mut rng, pages);
            step(&mut table, &mut model, &op).unwrap();
            compare_lookups(&table, &model, &mut rng);
        }
    }
}

#[test]
fn a_full_table_refuses_exactly_what_does_not_fit() {
    let mut refused = [0; 3];
    for room in [0, 1, 2, 3, 5, 9, 17] {
        let mut rng = Rng(room as u64 + 77);
        let mut table = Table::new(room, 5);
        let mut model = Model::new(64);
        for _ in 0..8_000 {
            let op = Op::random(&mut rng, 64);
            if step(&mut table, &mut model, &op).is_err() {
                refused[match op {
                    Op::Set(..) => 0,
                    Op::Clear(..) => 1,
                    _ => 2,
                }] += 1;
            }
        }
    }
    assert!(refused.iter().all(|n| *n > 100), "{refused:?}");
}

#[test]
fn a_full_table_can_be_emptied() {
    let mut table = Table::new(4, 0);
    let mut tree = table.tree();
    for i in 0..4 {
        let start = BASE + 4 * i * PAGE;
        tree.set(start, start + 3 * PAGE, attr(Kind::Region, 3)).unwrap();
    }
    assert_eq!(tree.spare(), 0);
    // A hole in the middle of a run needs a node; cutting off an end or removing a run does not.
    assert_eq!(tree.clear(BASE + PAGE, BASE + 2 * PAGE), Err(Full));
    tree.clear(BASE, BASE + PAGE).unwrap();
    tree.update(BASE, BASE + 4 * PAGE, |a| a.prot = 1).unwrap();
    let mut called = false;
    let cut = tree.update(BASE + PAGE, BASE + 2 * PAGE, |_| called = true);
    assert_eq!((cut, called), (Err(Full), false));
    // Setting what is there already, replacing a whole run, and closing a hole between equals: no node.
    let two = BASE + 4 * PAGE;
    tree.set(two + PAGE, two + 2 * PAGE, attr(Kind::Region, 3)).unwrap();
    tree.set(two, two + 3 * PAGE, attr(Kind::Reserve, 0)).unwrap();
    tree.set(two, two + 4 * PAGE, attr(Kind::Region, 3)).unwrap();
    assert_eq!((tree.len(), tree.spare()), (3, 1));
    tree.clear(0, u64::MAX).unwrap();
    assert!(tree.is_empty());
    tree.check().unwrap();
}

#[test]
fn an_array_without_nodes_is_a_full_table() {
    let mut head = TreeHead::default();
    let mut tree = MapTree::new(&mut head, &mut []);
    tree.check().unwrap();
    assert_eq!(tree.set(0, PAGE, attr(Kind::Region, 3)), Err(Full));
    tree.clear(0, u64::MAX).unwrap();
    assert_eq!(tree.gap_below(PAGE, PAGE, 0, BASE), Some(BASE - PAGE));
}

#[test]
fn runs_merge_and_split_with_their_offsets() {
    let mut table = Table::new(16, 0);
    let mut tree = table.tree();
    let text = |offset| file(Kind::FilePrivate, 3, offset);
    tree.set(BASE, BASE + 2 * PAGE, text(0)).unwrap();
    tree.set(BASE + 2 * PAGE, BASE + 4 * PAGE, text(2 * PAGE)).unwrap();
    assert_eq!(tree.len(), 1);
    // Same file, but not where the run would go on.
    tree.set(BASE + 4 * PAGE, BASE + 5 * PAGE, text(0)).unwrap();
    assert_eq!(tree.len(), 2);
    tree.clear(BASE + PAGE, BASE + 2 * PAGE).unwrap();
    let right = tree.find(BASE + 3 * PAGE).unwrap();
    assert_eq!((right.start, right.attr.offset), (BASE + 2 * PAGE, 2 * PAGE));

    // Region memory has no offset, unless it came from a file.
    let far = BASE << 1;
    let mut from_file = file(Kind::Region, 3, 8 * PAGE);
    tree.set(far, far + 3 * PAGE, from_file).unwrap();
    assert_eq!(tree.find(far).unwrap().attr, attr(Kind::Region, 5));
    from_file.flags = flag::FROM_FILE;
    tree.set(far, far + 3 * PAGE, from_file).unwrap();
    tree.update(far + PAGE, far + 2 * PAGE, |a| a.prot = 1).unwrap();
    let offsets: Vec<_> = tree.range(far, far + 3 * PAGE).map(|m| m.attr.offset).collect();
    assert_eq!(offsets, [8 * PAGE, 9 * PAGE, 10 * PAGE]);
    tree.update(far, far + 3 * PAGE, |a| a.prot = 5).unwrap();
    assert_eq!(tree.range(far, far + 3 * PAGE).count(), 1);
    tree.check().unwrap();
}

#[test]
fn update_sees_each_part_once_in_order() {
    let mut table = Table::new(16, 0);
    let mut tree = table.tree();
    tree.set(BASE, BASE + 4 * PAGE, file(Kind::FileShared, 1, 0)).unwrap();
    tree.set(BASE + 6 * PAGE, BASE + 9 * PAGE, attr(Kind::Reserve, 0)).unwrap();
    tree.set(BASE + 9 * PAGE, BASE + 10 * PAGE, attr(Kind::Region, 3)).unwrap();
    let mut seen = Vec::new();
    tree.update(BASE + PAGE, BASE + 8 * PAGE, |a| seen.push((a.kind, a.offset))).unwrap();
    assert_eq!(seen, [(Kind::FileShared, PAGE), (Kind::Reserve, 0)]);
    assert_eq!(tree.len(), 3);
}

#[test]
fn gaps_reach_the_ends_of_the_address_space() {
    let mut table = Table::new(4, 0);
    let mut tree = table.tree();
    let end = 1 << 47;
    assert_eq!(tree.gap_below(PAGE, PAGE, 0, end), Some(end - PAGE));
    assert_eq!(tree.gap_above(PAGE, PAGE, 0x10000, end), Some(0x10000));
    assert_eq!(tree.gap_below(end, PAGE, 0, end), Some(0));
    assert_eq!(tree.gap_below(end, PAGE, PAGE, end), None);
    assert_eq!(tree.gap_below(0, PAGE, 0, end), None);
    assert_eq!(tree.gap_below(PAGE, PAGE, end, 0), None);
    assert_eq!(tree.gap_below(PAGE, 0, 0, end), Some(end - PAGE));
    assert_eq!(tree.gap_below(u64::MAX, PAGE, 0, u64::MAX), Some(0));
    assert_eq!(tree.gap_above(PAGE, u64::MAX, 1, u64::MAX), None);
    tree.set(0, PAGE, attr(Kind::Region, 3)).unwrap();
    tree.set(u64::MAX - PAGE, u64::MAX, attr(Kind::Region, 3)).unwrap();
    let rest = u64::MAX - 2 * PAGE;
    assert_eq!(tree.gap_below(rest, 1, 0, u64::MAX), Some(PAGE));
    assert_eq!(tree.gap_above(rest, 1, 0, u64::MAX), Some(PAGE));
    assert_eq!(tree.gap_above(rest + 1, 1, 0, u64::MAX), None);
    tree.set(0, u64::MAX, attr(Kind::Region, 3)).unwrap();
    assert_eq!(tree.len(), 1);
    assert_eq!(tree.gap_below(1, 1, 0, u64::MAX), None);
    tree.check().unwrap();
}

/// Steps are counted in the crate (`maptree/steps.rs`); here it is the depth and the number of nodes changed.
#[test]
fn many_mappings_stay_shallow() {
    const RUNS: u64 = 65_530;
    type Order = fn(u64) -> u64;
    let orders: [Order; 3] = [|i| i, |i| RUNS - 1 - i, |i| (i * 48_271) % RUNS];
    for (seed, order) in (0u64..).zip(orders) {
        let mut table = Table::new(RUNS as usize + 2, seed * 0x9999);
        let mut tree = table.tree();
        for i in 0..RUNS {
            let page = order(i);
            let prot = 1 + (page % 2) as u8 * 2;
            let start = Model::addr(page);
            tree.set(start, start + PAGE, attr(Kind::Region, prot)).unwrap();
        }
        tree.check().unwrap();
        assert_eq!(tree.len() as u64, RUNS);
        let height = table.height();
        println!("height {height}");
        assert!(height < 60, "height {height}");
        let mut rng = Rng(seed + 1);
        for _ in 0..100 {
            let start = Model::addr(rng.below(RUNS));
            let before = table.nodes.clone();
            let mut tree = table.tree();
            match rng.below(3) {
                0 => tree.set(start, start + PAGE, attr(Kind::Reserve, 0)).unwrap(),
                1 => tree.clear(start, start + PAGE).unwrap(),
                _ => tree.update(start, start + PAGE, |a| a.prot = 7).unwrap(),
            }
            let changed = before.iter().zip(&table.nodes).filter(|(a, b)| a != b).count();
            assert!(changed < 100, "{changed} nodes changed");
        }
        table.view().check().unwrap();
        // Making all the same leaves one run, and its neighbour on the free list is used again.
        let mut tree = table.tree();
        tree.set(BASE, Model::addr(RUNS), attr(Kind::Region, 3)).unwrap();
        assert_eq!(tree.len(), 1);
        tree.check().unwrap();
        tree.update(Model::addr(7), Model::addr(8), |a| a.prot = 1).unwrap();
        assert_eq!(tree.len(), 3);
        tree.check().unwrap();
        assert!(table.head.used as u64 <= RUNS + 2);
    }
}

/// The shim's stack has 32 KiB, and unoptimised code needs the most.
#[test]
fn everything_runs_on_a_small_stack() {
    let mut table = Table::new(4_000, 3);
    let body = move || {
        let mut tree = table.tree();
        for i in 0..4_000 {
            let start = Model::addr(i);
            let prot = 1 + (i % 2) as u8;
            tree.set(start, start + PAGE, attr(Kind::Region, prot)).unwrap();
        }
        let (start, end) = (Model::addr(100), Model::addr(3_000));
        tree.update(start, end, |a| a.flags |= flag::LOCKED).unwrap();
        tree.clear(start, end).unwrap();
        let gap = tree.gap_below(PAGE, 1 << 21, BASE, BASE << 1);
        let count = tree.iter().count();
        (gap.is_some(), count, tree.check())
    };
    let thread = std::thread::Builder::new().stack_size(24 << 10);
    let result = thread.spawn(body).unwrap().join().unwrap();
    assert_eq!(result, (true, 1_100, Ok(())));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn short_random_sequences_agree_with_the_model(seed in 1u64.., room in 1usize..40, steps in 1usize..60) {
        let mut rng = Rng(seed);
        let mut table = Table::new(room, seed);
        let mut model = Model::new(48);
        for _ in 0..steps {
            let op = Op::random(&mut rng, 48);
            let _ = step(&mut table, &mut model, &op);
            compare_lookups(&table, &model, &mut rng);
        }
    }
}
