//! Tables that no operation left behind: nothing may panic or hang, and the check has to find them.

use crate::model::{BASE, Model, Op, PAGE, Rng, Table, ZERO, attr, compare, file};
use proptest::prelude::*;
use zhuque_abi::maps::{Kind, Node, TreeHead};
use zhuque_model::maptree::{Full, MAX_DEPTH, MapTree, MapView};

/// Uses everything on a table that may be garbage: it has to come back, that is all.
fn exercise(head: &TreeHead, nodes: &[Node], a: u64, len: u64) {
    let view = MapView::new(head, nodes);
    let _ = view.check();
    assert!(view.iter().count() <= nodes.len());
    assert!(view.range(a, a.saturating_add(len)).count() <= nodes.len());
    let b = a.saturating_add(len);
    let _ = (view.find(a), view.at_or_after(a), view.last_below(a), view.is_free(a, b));
    let _ = (view.len(), view.spare());
    for (align, low, high) in [(1, 0, u64::MAX), (PAGE, 0, b), (1 << 21, a, u64::MAX), (3, a, b)] {
        let _ = view.gap_below(len, align, low, high);
        let _ = view.gap_above(len, align, low, high);
    }
    type Change = fn(&mut MapTree, u64, u64) -> Result<(), Full>;
    let changes: [Change; 4] = [
        |t, a, b| t.set(a, b, attr(Kind::Region, 3)),
        |t, a, b| t.set(a, b, file(Kind::FileShared, 1, u64::MAX - 5)),
        |t, a, b| t.clear(a, b),
        |t, a, b| t.update(a, b, |x| x.prot ^= 1),
    ];
    for change in changes {
        let (mut head, mut nodes) = (*head, nodes.to_vec());
        let mut tree = MapTree::new(&mut head, &mut nodes);
        let _ = change(&mut tree, a, b);
        let _ = change(&mut tree, 0, u64::MAX);
        let _ = change(&mut tree, a, b);
        let _ = tree.check();
    }
}

fn any_node(links: u32) -> impl Strategy<Value = Node> {
    // Small numbers so that things meet; the odd extreme.
    let number = || prop_oneof![8 => 0..64u64, 1 => any::<u64>(), 1 => Just(u64::MAX)];
    let link = move || prop_oneof![12 => 0..links, 1 => any::<u32>()];
    let places = (number(), number(), number(), number(), number(), number());
    let rest = (link(), link(), 0..2u32, 0..64u16, 0..2u8, 0..9u8);
    (places, rest).prop_map(|(p, r)| Node {
        start: p.0,
        end: p.1,
        offset: p.2,
        max_gap: p.3,
        min_start: p.4,
        max_end: p.5,
        left: r.0,
        right: r.1,
        file: r.2,
        flags: r.3,
        prot: r.4,
        kind: r.5,
    })
}

fn any_head(links: u32) -> impl Strategy<Value = TreeHead> {
    let link = move || prop_oneof![12 => 0..links, 1 => any::<u32>()];
    (link(), link(), link(), link(), any::<u64>()).prop_map(|(root, free, used, count, seed)| TreeHead {
        root,
        free,
        used,
        count,
        seed,
    })
}

/// A sound table, to be damaged.
fn sound(seed: u64) -> Table {
    let mut rng = Rng(seed | 1);
    let mut table = Table::new(100, seed);
    let mut model = Model::new(96);
    for _ in 0..120 {
        let op = Op::random(&mut rng, 96);
        op.apply(&mut table.tree()).unwrap();
        op.apply_to_model(&mut model);
    }
    compare(&table, &model);
    table
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn garbage_neither_panics_nor_hangs(
        head in any_head(24),
        nodes in prop::collection::vec(any_node(24), 0..24),
        a in prop_oneof![4 => 0..80u64, 1 => any::<u64>()],
        len in prop_oneof![4 => 0..40u64, 1 => any::<u64>()],
    ) {
        exercise(&head, &nodes, a, len);
    }

    #[test]
    fn damage_is_found_or_harmless(
        seed in any::<u64>(),
        victim in 0usize..101,
        field in 0usize..17,
        value in prop_oneof![2 => 0..101u64, 1 => any::<u64>(), 1 => (0..100u64).prop_map(|p| BASE + p * PAGE)],
    ) {
        let mut table = sound(seed);
        let old = table.nodes[victim];
        let head = table.head;
        let n = &mut table.nodes[victim];
        match field {
            0 => n.start = value,
            1 => n.end = value,
            2 => n.offset = value,
            3 => n.max_gap = value,
            4 => n.min_start = value,
            5 => n.max_end = value,
            6 => n.left = value as u32,
            7 => n.right = value as u32,
            8 => n.file = value as u32,
            9 => n.flags = value as u16,
            10 => n.prot = value as u8,
            11 => n.kind = value as u8,
            12 => table.head.root = value as u32,
            13 => table.head.free = value as u32,
            14 => table.head.used = value as u32,
            15 => table.head.count = value as u32,
            _ => table.head.seed = value,
        }
        let changed = old != table.nodes[victim] || head != table.head;
        let live = old.kind != Kind::Free as u8;
        // Links and summaries of a run, and the links and counts of the head, cannot change unnoticed.
        let vital = match field {
            3..=7 => live,
            12..=15 => true,
            _ => false,
        };
        if changed && vital {
            prop_assert!(table.view().check().is_err());
        }
        // Other damage may make another sound table. What passes has to be one that the operations keep sound.
        if table.view().check().is_ok() {
            prop_assert_eq!(table.view().iter().count(), table.view().len());
            let mut rng = Rng(seed | 1);
            for _ in 0..20 {
                let _ = Op::random(&mut rng, 96).apply(&mut table.tree());
                prop_assert_eq!(table.view().check(), Ok(()));
            }
        }
        exercise(&table.head, &table.nodes, BASE + 7 * PAGE, 20 * PAGE);
    }
}

#[test]
fn cycles_and_shared_nodes_are_found() {
    let run = |start, left, right| Node {
        start,
        end: start + 1,
        max_end: start + 1,
        min_start: start,
        left,
        right,
        kind: 1,
        ..ZERO
    };
    let head = TreeHead { root: 1, used: 3, count: 3, ..TreeHead::default() };
    let cases = [
        // Itself, a ring to the left, a ring to the right, two parents.
        [ZERO, run(5, 1, 0), run(1, 0, 0), run(9, 0, 0)],
        [ZERO, run(5, 2, 0), run(1, 3, 0), run(9, 1, 0)],
        [ZERO, run(5, 0, 2), run(7, 0, 3), run(9, 0, 1)],
        [ZERO, run(5, 2, 2), run(1, 0, 0), run(9, 0, 0)],
    ];
    for nodes in cases {
        assert!(MapView::new(&head, &nodes).check().is_err());
        exercise(&head, &nodes, 0, 100);
    }
}

/// The priorities are part of the region's format: with others, tables of older regions would be damaged ones.
fn priority(link: u32, seed: u64) -> u64 {
    let mut z = u64::from(link).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(seed);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A tree of which every node is the right (or left) child of the one before, flawless in itself if `sorted`.
fn comb(runs: u32, to_the_right: bool, sorted: bool) -> Table {
    let mut table = Table::new(runs as usize, 11);
    let mut links: Vec<u32> = (1..=runs).collect();
    if sorted {
        links.sort_by_key(|l| std::cmp::Reverse(priority(*l, table.head.seed)));
    }
    let place = |i: usize| {
        let page = if to_the_right { i } else { runs as usize - i };
        BASE + 2 * page as u64 * PAGE
    };
    for (i, link) in links.iter().enumerate() {
        let child = links.get(i + 1).copied().unwrap_or(0);
        let (own, last) = (place(i), place(links.len() - 1));
        table.nodes[*link as usize] = Node {
            start: own,
            end: own + PAGE,
            max_gap: if child == 0 { 0 } else { PAGE },
            min_start: own.min(last),
            max_end: own.max(last) + PAGE,
            left: if to_the_right { 0 } else { child },
            right: if to_the_right { child } else { 0 },
            kind: Kind::Region as u8,
            ..ZERO
        };
    }
    table.head = TreeHead { root: links[0], used: runs, count: runs, ..table.head };
    table
}

#[test]
fn combs_are_found_by_order_or_depth() {
    for to_the_right in [true, false] {
        let deep = MAX_DEPTH as u32;
        comb(deep, to_the_right, true).view().check().unwrap();
        let too_deep = comb(deep + 1, to_the_right, true);
        let error = too_deep.view().check().unwrap_err();
        assert_eq!(error, "mapping table: too deep, or a cycle");
        exercise(&too_deep.head, &too_deep.nodes, BASE + 9 * PAGE, 50 * PAGE);
        let error = comb(20, to_the_right, false).view().check().unwrap_err();
        assert_eq!(error, "mapping table: a node above one of higher priority");
    }
}

#[test]
fn each_defect_has_its_message() {
    // Three runs side by side that differ in protection, and two free nodes.
    let mut table = Table::new(8, 2);
    let mut tree = table.tree();
    for i in 0..5 {
        let start = BASE + i * PAGE;
        tree.set(start, start + PAGE, attr(Kind::Region, i as u8)).unwrap();
    }
    tree.clear(BASE + 3 * PAGE, BASE + 5 * PAGE).unwrap();
    table.view().check().unwrap();
    let at = |t: &Table, page: u64| {
        let start = BASE + page * PAGE;
        t.nodes.iter().position(|n| n.kind != 0 && n.start == start).unwrap()
    };
    let middle = at(&table, 1);
    let free = table.head.free;
    type Damage<'a> = Box<dyn Fn(&mut Table) + 'a>;
    let cases: Vec<(&str, Damage)> = vec![
        ("more nodes used than there are", Box::new(|t| t.head.used = 9)),
        ("more runs than nodes used", Box::new(|t| t.head.count = 6)),
        ("wrong number of runs", Box::new(|t| t.head.count = 2)),
        ("link to a node that was never used", Box::new(|t| t.head.root = 7)),
        ("a node that is no run", Box::new(|t| t.nodes[middle].kind = 9)),
        ("a node that is no run", Box::new(|t| t.nodes[middle].kind = 0)),
        ("a file where there is none", Box::new(|t| t.nodes[middle].file = 1)),
        ("a file where there is none", Box::new(|t| t.nodes[middle].offset = 1)),
        ("neighbours that should be one run", Box::new(|t| t.nodes[middle].prot = 0)),
        ("wrong summary of a subtree", Box::new(|t| t.nodes[middle].max_gap = 1)),
        ("free nodes are missing", Box::new(|t| t.nodes[free as usize].left = 0)),
        ("a free node that is in use", Box::new(|t| t.head.free = middle as u32)),
        ("too many free nodes, or a cycle", Box::new(|t| t.nodes[free as usize].left = free)),
    ];
    for (message, damage) in cases {
        let mut bad = Table { head: table.head, nodes: table.nodes.clone() };
        damage(&mut bad);
        let error = bad.view().check().unwrap_err();
        assert_eq!(error, format!("mapping table: {message}"));
        exercise(&bad.head, &bad.nodes, BASE, 4 * PAGE);
    }
    // Overlap with good summaries: two runs, the lower one with its end in the other.
    let mut table = comb(2, true, true);
    let root = table.head.root as usize;
    table.nodes[root].end += 2 * PAGE;
    table.nodes[root].max_gap = 0;
    let error = table.view().check().unwrap_err();
    assert_eq!(error, "mapping table: runs overlap or are out of order");
}
