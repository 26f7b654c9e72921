//! The pool of cache blocks: who uses which, and which of the others hold what may be wanted again.
//!
//! A full block whose keys and values are computed can be registered under what they were computed
//! from: the 16 tokens in it, and by way of its parent all tokens before them. A later sequence that
//! begins the same way, with the same salt, finds and shares it. Entries are compared in full, not by a digest, so no
//! prompt can be given another prompt's blocks. A block that nobody uses keeps its entry until
//! there is no blank block left; then those that were let go first are taken first.

use std::collections::{BTreeMap, HashMap};

use emberline_kernels::BLOCK_SIZE;
use sha2::{Digest, Sha256};

/// What prompts have in common that may share blocks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Salt(Option<[u8; 32]>);

impl Salt {
    /// That of all prompts which came with this text.
    pub fn of(text: &str) -> Self {
        Self(Some(Sha256::digest(text).into()))
    }
}

/// All tokens from the beginning of a sequence to the end of a registered block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Prefix {
    /// None yet.
    Empty(Salt),
    /// A number is never used again, so what was built on a block that is gone is never found.
    Numbered(u64),
}

impl Prefix {
    /// No tokens, without a salt.
    pub const EMPTY: Self = Self::Empty(Salt(None));
}

/// What a full block's keys and values were computed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Content {
    /// The tokens before the block.
    pub parent: Prefix,
    /// The tokens in the block.
    pub tokens: [u32; BLOCK_SIZE],
}

/// The blocks of a cache, by number.
#[derive(Debug)]
pub struct BlockPool {
    blocks: Vec<Block>,
    /// Neither used nor registered.
    blank: Vec<u32>,
    /// Registered but not used, by the time when they were let go.
    idle: BTreeMap<u64, u32>,
    registered: HashMap<Content, u32>,
    next_prefix: u64,
    clock: u64,
}

#[derive(Debug, Clone, Default)]
struct Block {
    /// Sequences that have it in their tables.
    users: u32,
    entry: Option<Entry>,
    /// Its place in `idle`.
    idle_since: u64,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    content: Content,
    prefix: Prefix,
}

impl BlockPool {
    /// A pool of blank blocks.
    pub fn new(count: usize) -> Self {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        Self {
            blocks: vec![Block::default(); count as usize],
            // The last is taken first.
            blank: (0..count).rev().collect(),
            idle: BTreeMap::new(),
            registered: HashMap::new(),
            next_prefix: 0,
            clock: 0,
        }
    }

    /// Blocks in all.
    pub fn total(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that [`Self::allocate`] can give out.
    pub fn available(&self) -> usize {
        self.blank.len() + self.idle.len()
    }

    /// Takes a block for one user; what it held is lost.
    pub fn allocate(&mut self) -> Option<u32> {
        let number = self.blank.pop().or_else(|| self.evict())?;
        self.block(number).users = 1;
        Some(number)
    }

    /// Forgets what unused blocks hold.
    pub fn forget(&mut self) {
        while let Some(number) = self.evict() {
            self.blank.push(number);
        }
    }

    /// Forgets what the block holds that was let go first.
    fn evict(&mut self) -> Option<u32> {
        let (_, number) = self.idle.pop_first()?;
        if let Some(entry) = self.block(number).entry.take() {
            self.registered.remove(&entry.content);
        }
        Some(number)
    }

    /// Counts another user of a block that is registered or in use.
    pub fn retain(&mut self, number: u32) {
        let block = self.block(number);
        block.users += 1;
        if block.users == 1 {
            let since = block.idle_since;
            self.idle.remove(&since);
        }
    }

    /// Counts one user less. A registered block without users can still be found.
    pub fn release(&mut self, number: u32) {
        let clock = self.clock;
        let block = self.block(number);
        debug_assert!(block.users > 0, "block {number} is released twice");
        block.users = block.users.saturating_sub(1);
        if block.users > 0 {
            return;
        }
        if block.entry.is_some() {
            block.idle_since = clock;
            self.idle.insert(clock, number);
            self.clock += 1;
        } else {
            self.blank.push(number);
        }
    }

    /// Whether more than one sequence uses a block: then none may write to it.
    pub fn is_shared(&self, number: u32) -> bool {
        self.blocks.get(number as usize).is_some_and(|block| block.users > 1)
    }

    /// Makes a full block findable. Where another block is registered for the same content, that
    /// one stays; either way the sequence's prefix is returned.
    pub fn register(&mut self, number: u32, content: Content) -> Prefix {
        if let Some((_, prefix)) = self.find(&content) {
            return prefix;
        }
        let prefix = Prefix::Numbered(self.next_prefix);
        self.next_prefix += 1;
        self.block(number).entry = Some(Entry { content, prefix });
        self.registered.insert(content, number);
        prefix
    }

    /// The block that is registered for `content`, and the prefix that ends with it.
    pub fn find(&self, content: &Content) -> Option<(u32, Prefix)> {
        let number = *self.registered.get(content)?;
        let entry = self.blocks.get(number as usize)?.entry?;
        Some((number, entry.prefix))
    }

    /// Blocks are only ever named by numbers that this pool gave out.
    fn block(&mut self, number: u32) -> &mut Block {
        &mut self.blocks[number as usize]
    }

    /// Checks that blocks have as many users as `tables` says, and that none is lost or twice
    /// where it should be once.
    #[cfg(test)]
    pub(super) fn check<'a>(&self, tables: impl Iterator<Item = &'a [u32]>) {
        let mut users = vec![0; self.blocks.len()];
        tables.flatten().for_each(|block| users[*block as usize] += 1);
        let counted: Vec<u32> = self.blocks.iter().map(|block| block.users).collect();
        assert_eq!(users, counted, "users by table and by count");

        let mut unused: Vec<u32> = self.blank.iter().chain(self.idle.values()).copied().collect();
        unused.sort_unstable();
        let expected: Vec<u32> =
            (0..).zip(&users).filter(|(_, users)| **users == 0).map(|(n, _)| n).collect();
        assert_eq!(unused, expected, "each unused block is blank or idle, once");

        assert!(self.blank.iter().all(|n| self.blocks[*n as usize].entry.is_none()));
        assert!(self.idle.iter().all(|(since, n)| self.blocks[*n as usize].idle_since == *since));
        let entries = (0..).zip(&self.blocks).filter_map(|(n, block)| Some((block.entry?.content, n)));
        assert_eq!(entries.collect::<HashMap<_, _>>(), self.registered);
        assert!(self.idle.values().all(|n| self.blocks[*n as usize].entry.is_some()));
    }
}

#[cfg(test)]
#[path = "blocks_tests.rs"]
mod tests;
