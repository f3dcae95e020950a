//! Answers that a grammar steers: what may come next is worked out on a thread of its own, while the step that needs it is computed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use grammar::{Grammar, MatchError, Matcher};
use model::Mask;

/// The place of one answer in its grammar.
#[derive(Clone)]
pub struct Steering {
    grammar: Arc<Grammar>,
    /// Made when it is needed first, on the thread of the masks: a grammar may take long to copy.
    matcher: Arc<Mutex<Option<Matcher>>>,
}

impl Steering {
    pub fn new(grammar: Arc<Grammar>) -> Self {
        Self { grammar, matcher: Arc::default() }
    }

    /// Takes a token that was drawn. True where nothing but the answer's end can follow.
    pub fn accept(&self, token: u32) -> Result<bool, MatchError> {
        self.with(|matcher| matcher.accept(token).map(|()| matcher.finished()))
    }

    fn with<T>(&self, change: impl FnOnce(&mut Matcher) -> T) -> T {
        let mut matcher: MutexGuard<'_, Option<Matcher>> = self.matcher.lock().unwrap_or_else(PoisonError::into_inner);
        change(matcher.get_or_insert_with(|| self.grammar.matcher()))
    }

    /// What may come next. Where that cannot be said, the answer's end: taking it fails, and says why.
    fn bits(&self) -> Box<[u32]> {
        let vocabulary = self.grammar.vocabulary();
        let mut bits = vec![0; vocabulary.mask_words()].into_boxed_slice();
        if self.with(|matcher| matcher.mask(&mut bits)).is_err() {
            bits.fill(0);
            vocabulary.ends().iter().for_each(|&end| bits[end as usize / 32] |= 1 << (end % 32));
        }
        bits
    }
}

/// The thread that makes masks. It ends with this.
pub struct Masks(Sender<(Steering, Mask)>);

impl Masks {
    pub fn start() -> Self {
        let (jobs, waiting) = channel::<(Steering, Mask)>();
        std::thread::Builder::new()
            .name("masks".into())
            .spawn(move || {
                for (steering, mask) in waiting {
                    // Whoever draws waits for it, whatever happens. With everything allowed, taking the token says what is wrong.
                    let bits = catch_unwind(AssertUnwindSafe(|| steering.bits()));
                    mask.set(
                        bits.unwrap_or_else(|_| vec![u32::MAX; steering.grammar.vocabulary().mask_words()].into()),
                    );
                }
            })
            .expect("the operating system gives a thread");
        Self(jobs)
    }

    /// What an answer's next draw may take; made from now on.
    pub fn of(&self, steering: &Steering) -> Mask {
        let mask = Mask::default();
        if self.0.send((steering.clone(), mask.clone())).is_err() {
            // The thread is gone: it is made here.
            mask.set(steering.bits());
        }
        mask
    }
}
