//! Block tables, and what is found of them.

use super::*;
use crate::kv::LayerGroup;

fn pool(num_blocks: usize) -> BlockPool {
    BlockPool::new(num_blocks, &[LayerGroup { block_len: 4, window: None }])
}

/// One whose queries see so many tokens.
fn window_pool(num_blocks: usize, window: usize) -> BlockPool {
    BlockPool::new(num_blocks, &[LayerGroup { block_len: 4, window: Some(window) }])
}

/// Reserves as the scheduler does: only when enough blocks are free.
fn check_reserve(table: &mut BlockTable, pool: &mut BlockPool, start: usize, len: usize) -> Option<BlockCopy> {
    let (free, missing) = (pool.num_free(), table.num_missing(pool, start, len));
    assert!(missing <= free);
    let copy = table.reserve(pool, start, len);
    assert_eq!(pool.num_free(), free - missing);
    copy
}

#[test]
fn a_write_to_a_shared_block_copies_it_once() {
    let mut pool = pool(8);
    let mut a = BlockTable::default();
    assert_eq!(check_reserve(&mut a, &mut pool, 0, 6), None);
    let mut b = a.fork(&mut pool, 6);
    assert_eq!(pool.num_used(), 2);
    let copy = check_reserve(&mut b, &mut pool, 6, 1).expect("the last block is shared");
    assert_eq!(copy.src, a.blocks()[1]);
    assert_eq!(copy.dst, b.blocks()[1]);
    assert_eq!(check_reserve(&mut a, &mut pool, 6, 1), None);
    assert_eq!(a.blocks()[0], b.blocks()[0]);
    a.release(&mut pool);
    b.release(&mut pool);
    assert_eq!(pool.num_used(), 0);
}

#[test]
fn what_was_given_back_is_neither_shared_nor_given_back_again() {
    let mut pool = window_pool(8, 4);
    let mut a = BlockTable::default();
    check_reserve(&mut a, &mut pool, 0, 18);
    let mut before = a.fork(&mut pool, 18);
    // Queries from 14 on see the tokens from 11 on.
    a.release_unseen(&mut pool, 14);
    assert_eq!((a.num_released(), a.blocks().len(), pool.num_used()), (2, 5, 5), "the fork still holds all");
    let mut after = a.fork(&mut pool, 18);
    assert_eq!((after.num_released(), after.blocks()), (2, a.blocks()));
    before.release(&mut pool);
    assert_eq!(pool.num_used(), 3);
    a.release_unseen(&mut pool, 6);
    assert_eq!(a.num_released(), 2, "what is released stays so");
    check_reserve(&mut after, &mut pool, 18, 3);
    assert_eq!((after.blocks().len(), pool.num_used()), (6, 5), "a copy and a new block");
    a.release(&mut pool);
    assert_eq!((a.num_released(), a.blocks().len(), pool.num_used()), (0, 0, 4));
    after.release_unseen(&mut pool, 1000);
    after.release(&mut pool);
    assert_eq!(pool.num_used(), 0);
}

#[test]
fn full_blocks_are_found_until_they_are_handed_out_the_oldest_first() {
    let tokens: Vec<u32> = (0..12).collect();
    let mut pool = pool(6).with_prefix_cache();
    let mut a = BlockTable::default();
    check_reserve(&mut a, &mut pool, 0, 11);
    a.cache_full_blocks(&mut pool, PrefixId::EMPTY, &tokens[..11]);
    let found = |pool: &mut BlockPool, tokens: &[u32]| {
        let found = pool.find_prefix(PrefixId::EMPTY, tokens);
        found.blocks(0, pool.group(0)).0
    };
    assert_eq!(found(&mut pool, &tokens), a.blocks()[..2], "the third is not full");
    assert_eq!(found(&mut pool, &tokens[..7]), a.blocks()[..1]);
    assert!(found(&mut pool, &tokens[4..]).is_empty(), "the same tokens at another place");
    let blocks = a.blocks().to_vec();
    a.release(&mut pool);
    assert_eq!((pool.num_used(), found(&mut pool, &tokens)), (0, blocks[..2].to_vec()));

    // Held by one who found it, and by two.
    let cached = pool.find_prefix(PrefixId::EMPTY, &tokens);
    let mut b = BlockTable::of_cached(&mut pool, 0, &cached);
    assert_eq!((pool.num_used(), b.blocks()), (2, &blocks[..2]));
    let cached = pool.find_prefix(PrefixId::EMPTY, &tokens[..4]);
    let mut c = BlockTable::of_cached(&mut pool, 0, &cached);
    assert!(pool.is_shared(blocks[0]) && !pool.is_shared(blocks[1]));
    c.release(&mut pool);
    b.release(&mut pool);

    // Blocks that cannot be found go first, then the end of the chain.
    let mut d = BlockTable::default();
    check_reserve(&mut d, &mut pool, 0, 16);
    assert_eq!(found(&mut pool, &tokens), blocks[..2]);
    check_reserve(&mut d, &mut pool, 16, 4);
    assert_eq!(found(&mut pool, &tokens), blocks[..1]);
    check_reserve(&mut d, &mut pool, 20, 4);
    assert!(found(&mut pool, &tokens).is_empty());
    d.release(&mut pool);
    assert_eq!(pool.num_used(), 0);
}

#[test]
fn of_two_blocks_with_the_same_tokens_the_first_is_found() {
    let tokens: Vec<u32> = (0..8).collect();
    let mut pool = pool(8).with_prefix_cache();
    let (mut a, mut b) = (BlockTable::default(), BlockTable::default());
    for table in [&mut a, &mut b] {
        check_reserve(table, &mut pool, 0, 8);
        table.cache_full_blocks(&mut pool, PrefixId::EMPTY, &tokens[..4]);
    }
    // The chain goes on after either.
    b.cache_full_blocks(&mut pool, PrefixId::EMPTY, &tokens);
    let found = pool.find_prefix(PrefixId::EMPTY, &tokens);
    assert_eq!(found.blocks(0, pool.group(0)), (vec![a.blocks()[0], b.blocks()[1]], 0));
    a.release(&mut pool);
    b.release(&mut pool);
    assert_eq!((pool.num_used(), pool.find_prefix(PrefixId::EMPTY, &tokens).len()), (0, 8));
}

#[test]
fn what_follows_one_root_is_not_found_after_another() {
    let tokens: Vec<u32> = (0..8).collect();
    let mut pool = pool(8).with_prefix_cache();
    let mut tables = [BlockTable::default(), BlockTable::default()];
    let roots = [PrefixId::EMPTY, PrefixId::empty_of(1)];
    for (table, root) in tables.iter_mut().zip(roots) {
        assert!(pool.find_prefix(root, &tokens).is_empty());
        check_reserve(table, &mut pool, 0, 8);
        table.cache_full_blocks(&mut pool, root, &tokens[..4]);
        table.cache_full_blocks(&mut pool, root, &tokens);
    }
    for (table, root) in tables.iter_mut().zip(roots) {
        let found = pool.find_prefix(root, &tokens);
        assert_eq!(found.blocks(0, pool.group(0)).0, table.blocks());
        table.release(&mut pool);
    }
}

#[test]
fn a_fork_at_a_block_border_copies_nothing() {
    let mut pool = pool(8);
    let mut a = BlockTable::default();
    check_reserve(&mut a, &mut pool, 0, 8);
    let mut b = a.fork(&mut pool, 8);
    assert_eq!(check_reserve(&mut b, &mut pool, 8, 1), None);
    assert_eq!(check_reserve(&mut a, &mut pool, 8, 1), None);
    assert_ne!(a.blocks()[2], b.blocks()[2]);
    a.release(&mut pool);
    b.release(&mut pool);
    assert_eq!(pool.num_free(), 8);
}

/// What is seen of a prefix is enough for it to be found: here of the second group's blocks the last ones.
#[test]
fn a_prefix_is_found_where_both_groups_have_what_is_seen() {
    for lens in [[8, 4], [4, 4], [4, 8]] {
        let [first, second] = lens.map(|block_len| LayerGroup { block_len, window: None });
        let groups = [first, LayerGroup { window: Some(7), ..second }];
        let tokens: Vec<u32> = (0..40).collect();
        let mut pool = BlockPool::new(40, &groups).with_prefix_cache();
        let mut a = crate::kv::SequenceBlocks::default();
        let _ = a.reserve(&mut pool, 0, 40);
        a.cache_full_blocks(&mut pool, PrefixId::EMPTY, &tokens[..18]);
        a.cache_full_blocks(&mut pool, PrefixId::EMPTY, &tokens[..37]);
        a.release_unseen(&mut pool, 37);
        let (whole, seen) = (pool.find_prefix(PrefixId::EMPTY, &tokens), a.table(1).blocks().to_vec());
        let expected = 37 / pool.prefix_unit() * pool.prefix_unit();
        assert_eq!(whole.len(), expected, "{lens:?}");
        let (found, num_unseen) = whole.blocks(1, groups[1]);
        assert_eq!(found[num_unseen..], seen[num_unseen..found.len()], "{lens:?}");
        assert_eq!(pool.find_prefix(PrefixId::EMPTY, &tokens[1..]).len(), 0);

        // Found, it takes what is seen alone, and goes on as the first did.
        let num_used = pool.num_used();
        let mut b = crate::kv::SequenceBlocks::of_cached(&mut pool, &whole);
        assert_eq!(b.table(0).blocks(), &a.table(0).blocks()[..expected / lens[0]]);
        assert_eq!(b.table(1).num_released(), groups[1].first_visible_block(expected));
        assert!(pool.num_used() <= num_used + 2, "{lens:?}");
        let _ = b.reserve(&mut pool, expected, 40 - expected);
        b.cache_full_blocks(&mut pool, PrefixId::EMPTY, &tokens);
        b.release(&mut pool);

        // Those that were given back are handed out: what needs them is not found, what does not is.
        a.release(&mut pool);
        let gone = seen[expected / lens[1] - 1];
        while pool.num_used() < 40 {
            let id = pool.allocate().expect("some are free");
            if id == gone {
                break;
            }
        }
        let found = pool.find_prefix(PrefixId::EMPTY, &tokens).len();
        assert!(found < expected, "{lens:?}: {found}");
    }
}
