//! Compiled grammars by what they were compiled from.
//!
//! Whoever asks first compiles, everybody else who asks for the same waits for it. What was used last stays, within a bound of
//! bytes. What fails for its own sake is remembered too: a wrong schema sent again and again is refused without work.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use sha2::{Digest, Sha256};

use crate::limits::Budget;
use crate::{Compiler, Grammar, GrammarError, Source};

type Key = [u8; 32];
type Outcome = Result<Arc<Grammar>, GrammarError>;

/// What an entry takes beside its grammar, in bytes.
const ENTRY_BYTES: usize = 1 << 10;

pub struct Cache {
    state: Mutex<State>,
    limit_bytes: usize,
}

#[derive(Default)]
struct State {
    entries: HashMap<Key, Entry>,
    bytes: usize,
    /// Counts uses; the entry with the lowest was used longest ago.
    clock: u64,
}

struct Entry {
    outcome: Arc<OnceLock<Outcome>>,
    used: u64,
    /// Zero while it is being compiled.
    bytes: usize,
}

impl Cache {
    pub fn new(limit_bytes: usize) -> Self {
        Self { state: Mutex::default(), limit_bytes }
    }

    /// The grammar of a source, compiled now if it is not there.
    pub fn get(&self, compiler: &Compiler, source: &Source, budget: &Budget) -> Outcome {
        let key = key(compiler, source);
        loop {
            let slot = self.slot(key);
            let mut mine = false;
            let outcome = slot.get_or_init(|| {
                mine = true;
                compiler.compile(source, budget)
            });
            let passing =
                matches!(outcome, Err(GrammarError::Deadline | GrammarError::Cancelled | GrammarError::Internal(_)));
            if mine || passing {
                self.settle(key, &slot, outcome, passing);
            }
            // Somebody else's time ran out, not ours.
            if mine || !passing {
                return outcome.clone();
            }
            budget.check_clock()?;
        }
    }

    /// What the grammars that are kept take, in bytes.
    pub fn bytes(&self) -> usize {
        self.lock().bytes
    }

    /// How many sources are known.
    pub fn len(&self) -> usize {
        self.lock().entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(&self, key: Key) -> Arc<OnceLock<Outcome>> {
        let mut state = self.lock();
        state.clock += 1;
        let used = state.clock;
        let entry = state.entries.entry(key).or_insert_with(|| Entry { outcome: Arc::default(), used, bytes: 0 });
        entry.used = used;
        entry.outcome.clone()
    }

    /// Counts what was compiled, forgets what only failed this time, and makes room.
    fn settle(&self, key: Key, slot: &Arc<OnceLock<Outcome>>, outcome: &Outcome, passing: bool) {
        let mut state = self.lock();
        let State { entries, bytes, .. } = &mut *state;
        match entries.get_mut(&key) {
            Some(entry) if Arc::ptr_eq(&entry.outcome, slot) => {
                if passing {
                    entries.remove(&key);
                } else if entry.bytes == 0 {
                    entry.bytes = ENTRY_BYTES + outcome.as_ref().map_or(0, |grammar| grammar.bytes());
                    *bytes += entry.bytes;
                }
            }
            _ => {}
        }
        while *bytes > self.limit_bytes {
            let oldest = entries.iter().filter(|(_, entry)| entry.bytes > 0).min_by_key(|(_, entry)| entry.used);
            let Some(oldest) = oldest.map(|(key, _)| *key) else { break };
            *bytes -= entries.remove(&oldest).map_or(0, |entry| entry.bytes);
        }
    }
}

/// What makes a grammar the same: its source, in its own order of members, and the tokens.
fn key(compiler: &Compiler, source: &Source) -> Key {
    let mut hash = Sha256::new();
    hash.update(compiler.vocabulary().digest());
    hash.update((compiler.vocabulary().rows() as u64).to_le_bytes());
    hash.update(serde_json::to_vec(source).unwrap_or_default());
    hash.finalize().into()
}
