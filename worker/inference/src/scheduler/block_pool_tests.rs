use super::*;

fn key(parent: Prefix, token: u32) -> BlockKey {
    BlockKey { parent, salt: CacheSalt::NONE, tokens: [token; BLOCK_SIZE] }
}

#[test]
fn there_are_no_more_blocks_than_there_are() {
    let mut pool = BlockPool::new(2);
    let (a, b) = (pool.allocate().unwrap(), pool.allocate().unwrap());
    assert_ne!(a, b);
    assert_eq!((pool.allocate(), pool.available(), pool.total()), (None, 0, 2));
    pool.release(a);
    assert_eq!((pool.available(), pool.allocate()), (1, Some(a)));
}

#[test]
fn a_block_has_as_many_users_as_hold_it() {
    let mut pool = BlockPool::new(1);
    let block = pool.allocate().unwrap();
    assert!(!pool.is_shared(block));
    pool.retain(block);
    assert!(pool.is_shared(block));
    pool.release(block);
    assert!(!pool.is_shared(block));
    assert_eq!(pool.available(), 0);
    pool.release(block);
    assert_eq!(pool.available(), 1);
}

#[test]
fn a_registered_block_is_found_by_its_tokens_and_all_before_them() {
    let mut pool = BlockPool::new(4);
    let blocks: Vec<u32> = (0..3).map(|_| pool.allocate().unwrap()).collect();
    let one = pool.register(blocks[0], key(Prefix::Empty, 1));
    let two = pool.register(blocks[1], key(Prefix::Empty, 2));
    let one_three = pool.register(blocks[2], key(one, 3));
    assert_eq!(pool.find(&key(Prefix::Empty, 1)), Some((blocks[0], one)));
    assert_eq!(pool.find(&key(one, 3)), Some((blocks[2], one_three)));
    assert_eq!(pool.find(&key(two, 3)), None, "the same tokens after others");
    let salted = BlockKey { salt: CacheSalt::of_request(Some("s")), ..key(Prefix::Empty, 1) };
    assert_eq!(pool.find(&salted), None, "the same tokens with another salt");
    let mut other = key(one, 3);
    other.tokens[BLOCK_SIZE - 1] = 4;
    assert_eq!(pool.find(&other), None);
}

#[test]
fn the_first_of_equal_blocks_stays_registered() {
    let mut pool = BlockPool::new(2);
    let (first, second) = (pool.allocate().unwrap(), pool.allocate().unwrap());
    let prefix = pool.register(first, key(Prefix::Empty, 1));
    assert_eq!(pool.register(second, key(Prefix::Empty, 1)), prefix);
    pool.release(second);
    assert_eq!(pool.find(&key(Prefix::Empty, 1)), Some((first, prefix)));
    pool.check([&[first][..]].into_iter());
}

#[test]
fn an_unused_block_is_found_until_it_is_needed() {
    let mut pool = BlockPool::new(1);
    let block = pool.allocate().unwrap();
    let prefix = pool.register(block, key(Prefix::Empty, 1));
    pool.release(block);
    assert_eq!(pool.available(), 1);
    assert_eq!(pool.find(&key(Prefix::Empty, 1)), Some((block, prefix)));
    pool.retain(block);
    assert_eq!((pool.available(), pool.allocate()), (0, None), "found again, it is in use");
    pool.release(block);
    assert_eq!(pool.allocate(), Some(block));
    assert_eq!(pool.find(&key(Prefix::Empty, 1)), None);
}

#[test]
fn unused_blocks_can_be_forgotten_and_used_ones_not() {
    let mut pool = BlockPool::new(2);
    let (used, unused) = (pool.allocate().unwrap(), pool.allocate().unwrap());
    pool.register(used, key(Prefix::Empty, 1));
    pool.register(unused, key(Prefix::Empty, 2));
    pool.release(unused);
    pool.clear_prefix_cache();
    assert!(pool.find(&key(Prefix::Empty, 1)).is_some());
    assert!(pool.find(&key(Prefix::Empty, 2)).is_none());
    pool.check([&[used][..]].into_iter());
}

#[test]
fn blank_blocks_go_first_then_those_that_were_let_go_first() {
    let mut pool = BlockPool::new(4);
    let blocks: Vec<u32> = (0..3).map(|_| pool.allocate().unwrap()).collect();
    for (token, block) in (0..).zip(&blocks) {
        pool.register(*block, key(Prefix::Empty, token));
    }
    for index in [1, 0, 2] {
        pool.release(blocks[index]);
    }
    // Used once more, the oldest is the newest.
    pool.retain(blocks[1]);
    pool.release(blocks[1]);
    let order: Vec<u32> = std::iter::from_fn(|| pool.allocate()).collect();
    assert_eq!(order, [3, blocks[0], blocks[2], blocks[1]]);
}

#[test]
fn what_was_built_on_a_forgotten_block_is_not_found() {
    let mut pool = BlockPool::new(2);
    let (parent, child) = (pool.allocate().unwrap(), pool.allocate().unwrap());
    let prefix = pool.register(parent, key(Prefix::Empty, 1));
    pool.register(child, key(prefix, 2));
    pool.release(parent);
    let other = pool.allocate().unwrap();
    let other_prefix = pool.register(other, key(Prefix::Empty, 9));
    assert_eq!(pool.find(&key(other_prefix, 2)), None);
    pool.release(other);
    let again = pool.allocate().unwrap();
    let again_prefix = pool.register(again, key(Prefix::Empty, 1));
    assert_ne!(again_prefix, prefix);
    assert_eq!(pool.find(&key(again_prefix, 2)), None);
}
