//! The pool of cache blocks: which are in use, and which of the others form the prefix cache.
//!
//! A full block whose keys and values are computed can be registered under what they were computed
//! from ([`BlockKey`]): the tokens in it, its salt, and by way of its parent all tokens before them. A
//! later sequence that begins the same way finds and shares it. Tokens are compared in full, not by a
//! digest, so no prompt is ever given another prompt's blocks. A block without users keeps its entry
//! until no free block is left; then the ones released first are evicted first.

use std::collections::{BTreeMap, HashMap};

use emberline_kernels::BLOCK_SIZE;

use super::cache_salt::CacheSalt;

/// All tokens from the beginning of a sequence to the end of a registered block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Prefix {
    /// No tokens.
    Empty,
    /// A number is never used again, so blocks whose parent was evicted are never found.
    Numbered(u64),
}

/// What a full block's keys and values were computed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockKey {
    /// The tokens before the block.
    pub parent: Prefix,
    /// What the block depends on besides tokens.
    pub salt: CacheSalt,
    /// The tokens in the block.
    pub tokens: [u32; BLOCK_SIZE],
}

/// The blocks of a cache, by number.
#[derive(Debug)]
pub struct BlockPool {
    blocks: Vec<Block>,
    /// Neither in use nor registered.
    free: Vec<u32>,
    /// Registered but not in use, by the time of their release.
    evictable: BTreeMap<u64, u32>,
    registered: HashMap<BlockKey, u32>,
    next_prefix: u64,
    clock: u64,
}

#[derive(Debug, Clone, Default)]
struct Block {
    /// Sequences that have it in their tables.
    users: u32,
    entry: Option<Entry>,
    /// Its key in `evictable`.
    evictable_since: u64,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    key: BlockKey,
    prefix: Prefix,
}

impl BlockPool {
    /// A pool of `count` free blocks.
    pub fn new(count: usize) -> Self {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        Self {
            blocks: vec![Block::default(); count as usize],
            // The last is taken first.
            free: (0..count).rev().collect(),
            evictable: BTreeMap::new(),
            registered: HashMap::new(),
            next_prefix: 0,
            clock: 0,
        }
    }

    /// All blocks.
    pub fn total(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that [`Self::allocate`] can give out.
    pub fn available(&self) -> usize {
        self.free.len() + self.evictable.len()
    }

    /// Takes a block for one user; its content is lost.
    pub fn allocate(&mut self) -> Option<u32> {
        let number = self.free.pop().or_else(|| self.evict())?;
        self.block(number).users = 1;
        Some(number)
    }

    /// Evicts all blocks that are not in use.
    pub fn clear_prefix_cache(&mut self) {
        while let Some(number) = self.evict() {
            self.free.push(number);
        }
    }

    /// Removes the entry of the block that was released first.
    fn evict(&mut self) -> Option<u32> {
        let (_, number) = self.evictable.pop_first()?;
        if let Some(entry) = self.block(number).entry.take() {
            self.registered.remove(&entry.key);
        }
        Some(number)
    }

    /// Adds a user to a block that is registered or in use.
    pub fn retain(&mut self, number: u32) {
        let block = self.block(number);
        block.users += 1;
        if block.users == 1 {
            let since = block.evictable_since;
            self.evictable.remove(&since);
        }
    }

    /// Removes a user. A registered block without users can still be found.
    pub fn release(&mut self, number: u32) {
        let clock = self.clock;
        let block = self.block(number);
        debug_assert!(block.users > 0, "block {number} is released twice");
        block.users = block.users.saturating_sub(1);
        if block.users > 0 {
            return;
        }
        if block.entry.is_some() {
            block.evictable_since = clock;
            self.evictable.insert(clock, number);
            self.clock += 1;
        } else {
            self.free.push(number);
        }
    }

    /// Whether more than one sequence uses a block, so that none may write to it.
    pub fn is_shared(&self, number: u32) -> bool {
        self.blocks.get(number as usize).is_some_and(|block| block.users > 1)
    }

    /// Registers a full block under `key`. If another block is registered there already, that one
    /// stays. Returns the prefix that ends with the block.
    pub fn register(&mut self, number: u32, key: BlockKey) -> Prefix {
        if let Some((_, prefix)) = self.find(&key) {
            return prefix;
        }
        let prefix = Prefix::Numbered(self.next_prefix);
        self.next_prefix += 1;
        self.block(number).entry = Some(Entry { key, prefix });
        self.registered.insert(key, number);
        prefix
    }

    /// The block that is registered for `key`, and the prefix that ends with it.
    pub fn find(&self, key: &BlockKey) -> Option<(u32, Prefix)> {
        let number = *self.registered.get(key)?;
        let entry = self.blocks.get(number as usize)?.entry?;
        Some((number, entry.prefix))
    }

    /// `number` must come from this pool.
    fn block(&mut self, number: u32) -> &mut Block {
        &mut self.blocks[number as usize]
    }

    /// Checks that each block has as many users as the block tables say, and that none is lost or listed
    /// twice.
    #[cfg(test)]
    pub(super) fn check<'a>(&self, tables: impl Iterator<Item = &'a [u32]>) {
        let mut users = vec![0; self.blocks.len()];
        tables.flatten().for_each(|block| users[*block as usize] += 1);
        let counted: Vec<u32> = self.blocks.iter().map(|block| block.users).collect();
        assert_eq!(users, counted, "users by table and by count");

        let mut unused: Vec<u32> = self.free.iter().chain(self.evictable.values()).copied().collect();
        unused.sort_unstable();
        let expected: Vec<u32> =
            (0..).zip(&users).filter(|(_, users)| **users == 0).map(|(n, _)| n).collect();
        assert_eq!(unused, expected, "each unused block is free or evictable, once");

        assert!(self.free.iter().all(|n| self.blocks[*n as usize].entry.is_none()));
        assert!(self.evictable.iter().all(|(since, n)| self.blocks[*n as usize].evictable_since == *since));
        let entries = (0..).zip(&self.blocks).filter_map(|(n, block)| Some((block.entry?.key, n)));
        assert_eq!(entries.collect::<HashMap<_, _>>(), self.registered);
        assert!(self.evictable.values().all(|n| self.blocks[*n as usize].entry.is_some()));
    }
}

#[cfg(test)]
#[path = "block_pool_tests.rs"]
mod tests;
