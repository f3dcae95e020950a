//! Which adapters are in which slots of a model, within a budget of bytes.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use model::{AdapterImage, Executor, Slot};
use platform::Digest;

#[derive(Debug)]
struct Resident {
    slot: Slot,
    bytes: usize,
    /// Running sequences that read it.
    pins: u32,
    used: u64,
}

/// What became of a wish to use an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup {
    Ready(Slot),
    /// It is on its way.
    Coming,
    /// Nobody has asked for it yet.
    Absent,
    /// It is here, but every slot or all memory is in use.
    NoRoom,
}

#[derive(Debug)]
pub struct Residency {
    resident: HashMap<Digest, Resident>,
    free: Vec<Slot>,
    /// Asked for, not here yet.
    coming: HashSet<Digest>,
    /// Here, but without a slot.
    arrived: HashMap<Digest, Arc<AdapterImage>>,
    budget: usize,
    clock: u64,
}

impl Residency {
    pub fn new(slots: u32, budget: usize) -> Self {
        Self {
            resident: HashMap::new(),
            free: (1..=slots).rev().map(Slot).collect(),
            coming: HashSet::new(),
            arrived: HashMap::new(),
            budget,
            clock: 0,
        }
    }

    pub fn count(&self) -> usize {
        self.resident.len()
    }

    /// Size of a resident adapter, in bytes.
    pub fn bytes(&self, digest: Digest) -> usize {
        self.resident.get(&digest).map_or(0, |resident| resident.bytes)
    }

    /// Finds the adapter's slot, giving it one where there is room.
    pub fn lookup(&mut self, digest: Digest, executor: &mut dyn Executor) -> Result<Lookup, String> {
        if let Some(resident) = self.resident.get(&digest) {
            return Ok(Lookup::Ready(resident.slot));
        }
        let Some(image) = self.arrived.get(&digest).cloned() else {
            return Ok(if self.coming.contains(&digest) { Lookup::Coming } else { Lookup::Absent });
        };
        if image.bytes() > self.budget {
            self.arrived.remove(&digest);
            return Err(format!("adapter {digest} has {} bytes, more than all memory for adapters", image.bytes()));
        }
        let Some(slot) = self.make_room(image.bytes(), executor) else { return Ok(Lookup::NoRoom) };
        self.arrived.remove(&digest);
        let bytes = image.bytes();
        if let Err(error) = executor.bind(slot, image) {
            self.free.push(slot);
            return Err(error.to_string());
        }
        self.resident.insert(digest, Resident { slot, bytes, pins: 0, used: 0 });
        Ok(Lookup::Ready(slot))
    }

    /// Frees a slot and `bytes` of the budget, least recently used adapters first; never one that is in use.
    fn make_room(&mut self, bytes: usize, executor: &mut dyn Executor) -> Option<Slot> {
        loop {
            let used: usize = self.resident.values().map(|resident| resident.bytes).sum();
            if used + bytes <= self.budget
                && let Some(slot) = self.free.pop()
            {
                return Some(slot);
            }
            let idle = self.resident.iter().filter(|(_, resident)| resident.pins == 0);
            let oldest = idle.min_by_key(|(_, resident)| resident.used).map(|(&digest, _)| digest)?;
            if let Some(resident) = self.resident.remove(&oldest) {
                executor.unbind(resident.slot);
                self.free.push(resident.slot);
            }
        }
    }

    pub fn pin(&mut self, digest: Digest) {
        self.clock += 1;
        if let Some(resident) = self.resident.get_mut(&digest) {
            resident.pins += 1;
            resident.used = self.clock;
        }
    }

    pub fn unpin(&mut self, digest: Digest) {
        if let Some(resident) = self.resident.get_mut(&digest) {
            resident.pins -= 1;
        }
    }

    /// Notes that somebody fetches it now.
    pub fn expect(&mut self, digest: Digest) {
        self.coming.insert(digest);
    }

    /// Takes in an image that was fetched, or that it could not be.
    pub fn arrive(&mut self, digest: Digest, image: Option<Arc<AdapterImage>>) {
        self.coming.remove(&digest);
        if let Some(image) = image {
            self.arrived.insert(digest, image);
        }
    }

    /// Drops images that came for nobody: all who waited for them have left.
    pub fn keep_wanted(&mut self, wanted: impl Fn(&Digest) -> bool) {
        self.arrived.retain(|digest, _| wanted(digest));
    }

    /// Forgets an adapter that nobody uses.
    pub fn forget(&mut self, digest: Digest, executor: &mut dyn Executor) {
        if self.resident.get(&digest).is_some_and(|resident| resident.pins == 0)
            && let Some(resident) = self.resident.remove(&digest)
        {
            executor.unbind(resident.slot);
            self.free.push(resident.slot);
        }
    }
}
