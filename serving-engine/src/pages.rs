//! KV pages: who holds which, and which can be read again by a request with the same beginning.
//!
//! A page that is full is known by the chain of all tokens up to its end, salted: equal keys mean equal K and V. Pages that
//! nobody holds stay readable until their room is needed, least recently used first.

use std::collections::{BTreeMap, HashMap};

use platform::Digest;

/// A page's identity: SHA-256 over the salt, the adapter and all tokens up to the page's end.
pub type PageKey = Digest;

/// The key before the first page.
pub fn root_key(salt: u64, adapter: Option<Digest>) -> PageKey {
    let mut bytes = [0u8; 41];
    bytes[..8].copy_from_slice(&salt.to_le_bytes());
    if let Some(adapter) = adapter {
        bytes[8] = 1;
        bytes[9..].copy_from_slice(adapter.as_bytes());
    }
    Digest::of(&bytes)
}

/// The key of the page that holds `tokens` after the page of `parent`.
pub fn next_key(parent: PageKey, tokens: &[u32]) -> PageKey {
    let mut bytes = parent.as_bytes().to_vec();
    bytes.extend(tokens.iter().flat_map(|token| token.to_le_bytes()));
    Digest::of(&bytes)
}

#[derive(Debug, Default, Clone)]
struct Page {
    holders: u32,
    key: Option<PageKey>,
    /// When it was released, while nobody holds it.
    released: u64,
}

#[derive(Debug)]
pub struct PagePool {
    pages: Vec<Page>,
    /// Pages with no content.
    free: Vec<u32>,
    /// Pages with content that nobody holds, by the time of their release.
    idle: BTreeMap<u64, u32>,
    known: HashMap<PageKey, u32>,
    clock: u64,
}

impl PagePool {
    pub fn new(pages: u32) -> Self {
        Self {
            pages: vec![Page::default(); pages as usize],
            free: (0..pages).rev().collect(),
            idle: BTreeMap::new(),
            known: HashMap::new(),
            clock: 0,
        }
    }

    pub fn total(&self) -> usize {
        self.pages.len()
    }

    /// Pages that can be taken.
    pub fn available(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    /// Takes an empty page; where it must, one whose content nobody holds, and then says which content was forgotten. It is there until
    /// the page is written.
    pub fn take(&mut self) -> Option<(u32, Option<PageKey>)> {
        let (page, forgotten) = match self.free.pop() {
            Some(page) => (page, None),
            None => {
                let (_, page) = self.idle.pop_first()?;
                (page, self.pages[page as usize].key.take())
            }
        };
        if let Some(key) = &forgotten {
            self.known.remove(key);
        }
        self.pages[page as usize].holders = 1;
        Some((page, forgotten))
    }

    /// Whether the page of that key can be shared.
    pub fn knows(&self, key: &PageKey) -> bool {
        self.known.contains_key(key)
    }

    /// Holds the page of that key, where it is known.
    pub fn share(&mut self, key: &PageKey) -> Option<u32> {
        let page = *self.known.get(key)?;
        let entry = &mut self.pages[page as usize];
        if entry.holders == 0 {
            self.idle.remove(&entry.released);
        }
        entry.holders += 1;
        Some(page)
    }

    /// Makes a full page's content known. If another page has it already, that one stays the known one.
    pub fn publish(&mut self, page: u32, key: PageKey) {
        if self.pages[page as usize].key.is_none() && !self.known.contains_key(&key) {
            self.pages[page as usize].key = Some(key);
            self.known.insert(key, page);
        }
    }

    pub fn release(&mut self, page: u32) {
        let entry = &mut self.pages[page as usize];
        entry.holders -= 1;
        if entry.holders > 0 {
            return;
        }
        if entry.key.is_some() {
            self.clock += 1;
            entry.released = self.clock;
            self.idle.insert(self.clock, page);
        } else {
            self.free.push(page);
        }
    }

    /// Forgets everything: the device lost its contents. Nobody may hold a page.
    pub fn reset(&mut self) {
        *self = Self::new(self.pages.len() as u32);
    }

    /// Every page is in exactly one place, and what is known is what the pages say.
    #[cfg(test)]
    pub fn check(&self) -> Result<(), String> {
        let mut places = vec![0u32; self.pages.len()];
        self.free.iter().chain(self.idle.values()).for_each(|&page| places[page as usize] += 1);
        for (index, page) in self.pages.iter().enumerate() {
            if places[index] + u32::from(page.holders > 0) != 1 {
                return Err(format!("page {index} is in {} lists with {} holders", places[index], page.holders));
            }
            if page.key.is_some_and(|key| self.known.get(&key) != Some(&(index as u32))) {
                return Err(format!("page {index} has a key that leads elsewhere"));
            }
        }
        let keys = self.pages.iter().filter(|page| page.key.is_some()).count();
        if keys == self.known.len() {
            Ok(())
        } else {
            Err(format!("{keys} pages have keys, {} are known", self.known.len()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Random takes, shares, publications and releases against the one rule that matters: a shared page has the content of
    /// its key, and the books balance.
    #[test]
    fn books_balance_under_any_order_of_operations() {
        for seed in 0..50u64 {
            let mut pool = PagePool::new(12);
            let mut held: Vec<u32> = Vec::new();
            let mut content: HashMap<u32, u64> = HashMap::new();
            for step in 0..400u32 {
                let draw = |salt: u32, below: usize| (crate::random::uniform(seed, salt, step) * below as f32) as usize;
                let key = |number: u64| next_key(root_key(0, None), &[number as u32]);
                match draw(0, 4) {
                    0 => {
                        if let Some((page, _)) = pool.take() {
                            assert!(!held.contains(&page), "seed {seed}: a held page was given away");
                            content.remove(&page);
                            held.push(page);
                        }
                    }
                    1 => {
                        let number = draw(1, 20) as u64;
                        if let Some(page) = pool.share(&key(number)) {
                            assert_eq!(content.get(&page), Some(&number), "seed {seed}: wrong content");
                            held.push(page);
                        }
                    }
                    2 if !held.is_empty() => {
                        let page = held[draw(1, held.len())];
                        let number = draw(2, 20) as u64;
                        if !content.contains_key(&page) && pool.share(&key(number)).map(|p| pool.release(p)).is_none() {
                            pool.publish(page, key(number));
                            content.insert(page, number);
                        }
                    }
                    _ if !held.is_empty() => pool.release(held.swap_remove(draw(1, held.len()))),
                    _ => {}
                }
                pool.check().unwrap_or_else(|fault| panic!("seed {seed}, step {step}: {fault}"));
            }
            held.drain(..).for_each(|page| pool.release(page));
            assert_eq!(pool.available(), 12, "seed {seed}: pages leaked");
        }
    }

    #[test]
    fn keys_differ_by_salt_adapter_and_tokens() {
        let adapter = Digest::of(b"a");
        let keys = [
            next_key(root_key(1, None), &[1, 2]),
            next_key(root_key(2, None), &[1, 2]),
            next_key(root_key(1, Some(adapter)), &[1, 2]),
            next_key(root_key(1, None), &[2, 1]),
            next_key(next_key(root_key(1, None), &[1]), &[2]),
        ];
        let distinct: std::collections::HashSet<_> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len());
    }
}
