//! The engine's thread and its handle. Be careful here: the loop below is the heart, and it must stay this small.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use model::{AdapterImage, Executor, ModelShape};
use platform::Digest;
use text::TokenBytes;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::disk::{DiskTier, PageFile};
use crate::job::Reins;
use crate::limits::{Limits, Stats};
use crate::pace::Queue;
use crate::pages::PageKey;
use crate::request::{AdapterImages, Event, Refused, Request};
use crate::worker::{Worker, accepts, context};

/// How often a drain looks whether all requests have ended.
const DRAIN_POLL: Duration = Duration::from_millis(10);
/// How long an answer is taken to be until some have been measured, in tokens.
const ANSWER_TOKENS: u64 = 64;

/// A base model, ready to run.
pub struct BaseModel {
    pub id: Arc<str>,
    pub executor: Box<dyn Executor>,
    pub vocabulary: Arc<TokenBytes>,
    /// Where pages of the prefix cache go that memory has no room for.
    pub page_file: Option<PageFile>,
}

/// What the outside may know of a base model.
#[derive(Debug, Clone)]
pub struct Base {
    pub id: Arc<str>,
    pub shape: ModelShape,
    pub fingerprint: String,
    /// Longest sequence, in tokens: the model's, or the KV pool's where that is smaller.
    pub context: usize,
}

/// A request that was taken in.
pub struct Taken {
    pub request: Request,
    pub events: Sender<Event>,
    pub reins: Arc<Reins>,
}

#[derive(Default)]
struct Inbox {
    requests: VecDeque<(usize, Taken)>,
    images: Vec<(usize, Digest, Result<Arc<AdapterImage>, String>)>,
    /// What was read from disk; nothing where it was damaged.
    pages: Vec<(usize, PageKey, Option<Vec<u8>>)>,
    forgotten: Vec<Digest>,
    /// Something changed that only the workers can see (a cancellation, an allowance).
    woken: bool,
    /// Ends every request with this sentence.
    abort: Option<&'static str>,
    closed: bool,
}

impl Inbox {
    fn is_empty(&self) -> bool {
        self.requests.is_empty()
            && self.images.is_empty()
            && self.pages.is_empty()
            && self.forgotten.is_empty()
            && !self.woken
            && self.abort.is_none()
            && !self.closed
    }
}

struct Shared {
    inbox: Mutex<Inbox>,
    wake: Condvar,
    bases: Vec<Base>,
    limits: Limits,
    draining: AtomicBool,
    /// Requests that were taken in and have not ended.
    open: AtomicU64,
    /// What waits, in the inbox and the workers. Locked after the inbox where both are.
    queue: Mutex<Queue>,
    stats: Mutex<Stats>,
    images: Arc<dyn AdapterImages>,
    runtime: tokio::runtime::Handle,
}

impl Shared {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Puts a request into the inbox unless the queue is full: looked at and changed under one lock, as `count` is.
    fn enqueue(&self, index: usize, taken: Taken) -> Result<(), Refused> {
        let lane = taken.request.lane;
        let mut inbox = self.inbox();
        let mut queue = self.queue();
        if queue.waiting >= self.limits.queue as u64 {
            return Err(Refused::Full { retry_after_ms: queue.retry_after_ms() });
        }
        let most = self.limits.lane_queue as u64;
        if queue.waiting_of(lane) >= most {
            return Err(Refused::LaneFull { most, retry_after_ms: queue.lane_retry_after_ms(lane) });
        }
        queue.add(lane, taken.request.rows(ANSWER_TOKENS));
        drop(queue);
        self.open.fetch_add(1, Ordering::Relaxed);
        inbox.requests.push_back((index, taken));
        drop(inbox);
        self.wake.notify_one();
        Ok(())
    }

    fn wake(&self, change: impl FnOnce(&mut Inbox)) {
        change(&mut self.inbox());
        self.wake.notify_one();
    }
}

/// Handle to the engine. The last one that is dropped ends the thread.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
    _owner: Arc<Owner>,
}

struct Owner(Arc<Shared>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.wake(|inbox| inbox.closed = true);
    }
}

/// A request's events. Dropping it cancels the request.
pub struct Reply {
    events: Receiver<Event>,
    /// Events that were received and not taken yet.
    early: VecDeque<Event>,
    controls: Controls,
}

/// Changes a running request, also while somebody waits for its next event.
#[derive(Clone)]
pub struct Controls {
    reins: Arc<Reins>,
    shared: Arc<Shared>,
}

impl Controls {
    /// Ends the request within one step; `Finished` still comes.
    pub fn cancel(&self) {
        if !self.reins.cancelled.swap(true, Ordering::Relaxed) {
            self.shared.wake(|inbox| inbox.woken = true);
        }
    }

    /// Lets all choices together draw so many tokens, counted from the request's beginning.
    pub fn allow(&self, tokens: u64) {
        self.reins.allowed.fetch_max(tokens, Ordering::Release);
        self.shared.wake(|inbox| inbox.woken = true);
    }

    /// Says that no more will be allowed: where it is used up, choices end with [`crate::FinishReason::Allowance`].
    pub fn allow_no_more(&self) {
        self.reins.no_more.store(true, Ordering::Release);
        self.shared.wake(|inbox| inbox.woken = true);
    }
}

impl Reply {
    /// The next event; `None` after `Finished`.
    pub async fn next(&mut self) -> Option<Event> {
        match self.early.pop_front() {
            Some(event) => Some(event),
            None => self.events.recv().await,
        }
    }

    /// Returns when the engine has something to show, or to say that there will be nothing. Takes no event.
    pub async fn answering(&mut self) {
        while let None | Some(Event::Started { .. }) = self.early.back() {
            match self.events.recv().await {
                Some(event) => self.early.push_back(event),
                None => return,
            }
        }
    }

    pub fn controls(&self) -> Controls {
        self.controls.clone()
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.controls.cancel();
    }
}

impl Engine {
    /// Starts the thread. Must be called within a tokio runtime, on which adapters are fetched.
    pub fn start(models: Vec<BaseModel>, images: Arc<dyn AdapterImages>, limits: Limits) -> Self {
        let bases = models.iter().map(|model| Base {
            id: model.id.clone(),
            shape: model.executor.shape().clone(),
            fingerprint: model.executor.fingerprint().to_owned(),
            context: context(&*model.executor),
        });
        let shared = Arc::new(Shared {
            inbox: Mutex::default(),
            wake: Condvar::new(),
            bases: bases.collect(),
            draining: AtomicBool::new(false),
            open: AtomicU64::new(0),
            queue: Mutex::default(),
            stats: Mutex::default(),
            images,
            runtime: tokio::runtime::Handle::current(),
            limits: limits.clone(),
        });
        let workers = models.into_iter().enumerate().map(|(index, mut model)| {
            let disk = model.page_file.take().and_then(|file| {
                let (shared, page_bytes) = (shared.clone(), model.executor.pool().page_bytes);
                DiskTier::start(file, page_bytes, move |key, bytes| {
                    shared.wake(|inbox| inbox.pages.push((index, key, bytes)));
                })
            });
            Worker::new(model, limits.clone(), disk)
        });
        let workers = workers.collect();
        let owned = shared.clone();
        std::thread::Builder::new()
            .name("engine".into())
            .spawn(move || run(&owned, workers))
            .expect("the operating system gives a thread");
        Self { _owner: Arc::new(Owner(shared.clone())), shared }
    }

    pub fn bases(&self) -> &[Base] {
        &self.shared.bases
    }

    pub fn base(&self, id: &str) -> Option<&Base> {
        self.shared.bases.iter().find(|base| &*base.id == id)
    }

    /// Takes a request in, or says why not. Never waits.
    pub fn submit(&self, request: Request) -> Result<Reply, Refused> {
        let shared = &self.shared;
        if shared.draining.load(Ordering::Relaxed) {
            return Err(Refused::Draining);
        }
        let index = shared.bases.iter().position(|base| base.id == request.base);
        let index = index.ok_or_else(|| Refused::UnknownBase(request.base.to_string()))?;
        let base = &shared.bases[index];
        accepts(base.context, base.shape.vocabulary, &request)?;
        if request.choices > shared.limits.choices {
            return Err(Refused::TooManyChoices { most: shared.limits.choices });
        }
        // Room for every event that the request can have: the engine never waits and never drops one.
        let room = request.choices as usize * (request.max_tokens as usize + 1) + 3;
        let (events, receiver) = channel(room);
        let reins = Arc::new(Reins::new(request.allowance));
        shared.enqueue(index, Taken { request, events, reins: reins.clone() })?;
        Ok(Reply { events: receiver, early: VecDeque::new(), controls: Controls { reins, shared: shared.clone() } })
    }

    pub fn stats(&self) -> Stats {
        *self.shared.stats.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Frees an adapter's slot where nobody uses it.
    pub fn forget(&self, digest: Digest) {
        self.shared.wake(|inbox| inbox.forgotten.push(digest));
    }

    pub fn is_draining(&self) -> bool {
        self.shared.draining.load(Ordering::Relaxed)
    }

    /// Refuses new requests, lets running ones finish until `timeout`, then ends them with an error.
    pub async fn drain(&self, timeout: Duration) {
        self.shared.draining.store(true, Ordering::Relaxed);
        let ended = async {
            while self.shared.open.load(Ordering::Relaxed) > 0 {
                tokio::time::sleep(DRAIN_POLL).await;
            }
        };
        if tokio::time::timeout(timeout, ended).await.is_err() {
            self.shared.wake(|inbox| inbox.abort = Some("the server is shutting down"));
        }
    }
}

/// Takes in, admits, plans, submits, collects, commits; sleeps when there is nothing to do.
fn run(shared: &Arc<Shared>, mut workers: Vec<Worker>) {
    let mut numbers = 0;
    let mut busy = false;
    while let Some(inbox) = next_inbox(shared, busy) {
        take_in(&mut workers, inbox, &mut numbers);
        busy = false;
        for (index, worker) in workers.iter_mut().enumerate() {
            for digest in worker.admit() {
                fetch(shared, index, digest);
            }
        }
        // Before the step too: who hears of an end must find the queue as short as it is.
        count(shared, &workers);
        for worker in &mut workers {
            let plan = worker.plan();
            if plan.is_empty() {
                continue;
            }
            busy = true;
            let (step, began) = (worker.build(&plan), Instant::now());
            match catch_unwind(AssertUnwindSafe(|| {
                let executor = worker.executor();
                executor.submit(step).and_then(|ticket| executor.collect(ticket))
            })) {
                Ok(Ok(outputs)) => worker.commit(&plan, outputs),
                Ok(Err(error)) => worker.device_failed(&error.to_string()),
                Err(_) => worker.device_failed("the model failed in the middle of a step"),
            }
            let rows = plan.iter().map(|(_, rows)| rows).sum();
            shared.queue().pace.learn(rows, began.elapsed().as_secs_f64());
        }
        count(shared, &workers);
    }
    workers.iter_mut().for_each(|worker| worker.fail_all("the engine has stopped"));
}

/// What has come in; waits for something unless there is work. `None` ends the thread.
fn next_inbox(shared: &Shared, busy: bool) -> Option<Inbox> {
    let mut inbox = shared.inbox();
    while !busy && inbox.is_empty() {
        inbox = shared.wake.wait(inbox).unwrap_or_else(|poisoned| poisoned.into_inner());
    }
    if inbox.closed { None } else { Some(std::mem::take(&mut *inbox)) }
}

fn take_in(workers: &mut [Worker], inbox: Inbox, numbers: &mut u64) {
    for (index, taken) in inbox.requests {
        *numbers += 1;
        workers[index].take_in(*numbers, taken);
    }
    for (index, digest, image) in inbox.images {
        workers[index].arrive(digest, image);
    }
    for (index, key, bytes) in inbox.pages {
        workers[index].arrive_page(key, bytes);
    }
    for digest in inbox.forgotten {
        workers.iter_mut().for_each(|worker| worker.forget(digest));
    }
    if let Some(reason) = inbox.abort {
        workers.iter_mut().for_each(|worker| worker.fail_all(reason));
    }
}

/// Fetches an adapter beside the loop; its arrival comes through the inbox.
fn fetch(shared: &Arc<Shared>, index: usize, digest: Digest) {
    let fetched = shared.images.fetch(digest);
    let shared = shared.clone();
    shared.runtime.clone().spawn(async move {
        let image = fetched.await.map_err(|error| error.to_string());
        shared.wake(|inbox| inbox.images.push((index, digest, image)));
    });
}

fn count(shared: &Shared, workers: &[Worker]) {
    let sum = workers.iter().map(Worker::stats).fold(Stats::default(), Stats::plus);
    let answer = sum.generation_tokens.checked_div(sum.answers).unwrap_or(ANSWER_TOKENS);
    let inbox = shared.inbox();
    let queued = inbox.requests.len() as u64;
    let open: u64 = workers.iter().map(|worker| worker.open() as u64).sum();
    let mut queue = shared.queue();
    queue.clear();
    inbox.requests.iter().for_each(|(_, taken)| queue.add(taken.request.lane, taken.request.rows(answer)));
    workers.iter().for_each(|worker| worker.queued(answer, &mut queue));
    drop(queue);
    shared.open.store(open + queued, Ordering::Relaxed);
    *shared.stats.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = sum;
}
