//! One base model's requests: admission, the next step, and what its outputs mean. The engine's thread owns it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use grammar::MatchError;
use model::{Ask, Executor, NotANumber, RowOutput, Runs, Slot, Step};
use platform::Digest;

use crate::disk::DiskTier;
use crate::job::Job;
use crate::limits::{Limits, Stats};
use crate::masks::Masks;
use crate::pace::Queue;
use crate::pages::{PageKey, PagePool, next_key};
use crate::request::{FinishReason, GRAMMAR_FAILED, Lane, NOT_NUMBERS, Request, Token};
use crate::residency::{Lookup, Residency};
use crate::scheduler::{Budget, Candidate, Costs, Holding, Lanes, share_rows, yields};
use crate::sequence::Sequence;
use crate::{BaseModel, Taken};

/// (index of a running sequence, its rows in the step), in the step's order.
type Plan = Vec<(usize, usize)>;

pub struct Worker {
    base: BaseModel,
    limits: Limits,
    pool: PagePool,
    page_tokens: usize,
    disk: Option<DiskTier>,
    residency: Residency,
    lanes: Lanes,
    costs: Costs,
    jobs: HashMap<u64, Job>,
    waiting: Vec<Sequence>,
    running: Vec<Sequence>,
    arrivals: u64,
    steps: u64,
    counted: Stats,
    masks: Masks,
}

impl Worker {
    pub fn new(base: BaseModel, limits: Limits, disk: Option<DiskTier>) -> Self {
        let shape = base.executor.pool();
        Self {
            pool: PagePool::new(shape.pages),
            page_tokens: shape.page_tokens as usize,
            disk,
            residency: Residency::new(base.executor.slots(), limits.adapter_bytes),
            lanes: Lanes::default(),
            costs: Costs::new(base.executor.shape(), base.executor.weight_bytes()),
            jobs: HashMap::new(),
            waiting: Vec::new(),
            running: Vec::new(),
            arrivals: 0,
            steps: 0,
            counted: Stats::default(),
            masks: Masks::start(),
            base,
            limits,
        }
    }

    pub fn take_in(&mut self, number: u64, taken: Taken) {
        let request = Arc::new(taken.request);
        for choice in 0..request.choices {
            self.arrivals += 1;
            self.waiting.push(Sequence::new(number, choice, request.clone(), self.arrivals));
        }
        self.counted.prompt_tokens += request.tokens.len() as u64;
        self.jobs.insert(number, Job::new(request, taken.events, taken.reins));
    }

    /// An adapter was fetched, or could not be: then the requests that wait for it fail, and only they.
    pub fn arrive(&mut self, digest: Digest, image: Result<Arc<model::AdapterImage>, String>) {
        match image {
            Ok(image) => self.residency.arrive(digest, Some(image)),
            Err(reason) => {
                self.residency.arrive(digest, None);
                self.fail_waiting(digest, &reason);
            }
        }
    }

    pub fn forget(&mut self, digest: Digest) {
        self.residency.forget(digest, &mut *self.base.executor);
    }

    /// Removes what was cancelled, then lets in what fits. Returns the adapters that must be fetched.
    pub fn admit(&mut self) -> Vec<Digest> {
        self.end_jobs(Job::is_cancelled, FinishReason::Cancelled);
        self.end_jobs(Job::is_spent, FinishReason::Allowance);
        self.lanes.keep(self.jobs.values().map(|job| job.request.lane));
        let mut wanted = Vec::new();
        let mut order: Vec<(u64, u64)> =
            self.waiting.iter().map(|s| (self.lanes.served(s.request.lane), s.arrival)).collect();
        order.sort_unstable();
        for (_, arrival) in order {
            if self.running.len() >= self.limits.running {
                break;
            }
            if self.patience_ended().is_some_and(|oldest| oldest < arrival) {
                continue;
            }
            let Some(at) = self.waiting.iter().position(|s| s.arrival == arrival) else { continue };
            self.try_start(at, &mut wanted);
        }
        self.claim_place(&mut wanted);
        let waiting: std::collections::HashSet<Digest> =
            self.waiting.iter().filter_map(|s| s.request.adapter).collect();
        self.residency.keep_wanted(|digest| waiting.contains(digest));
        wanted
    }

    /// One of those who have waited too long gets the place of a lane that has more than its share, where there is one.
    fn claim_place(&mut self, wanted: &mut Vec<Digest>) {
        let (steps, patience) = (self.steps, self.limits.patience_steps);
        let mut aged: BTreeMap<(u64, Lane), u64> = BTreeMap::new();
        for sequence in &mut self.waiting {
            if steps - *sequence.place_since.get_or_insert(steps) > patience {
                let lane = sequence.request.lane;
                let oldest = aged.entry((self.lanes.served(lane), lane)).or_insert(sequence.arrival);
                *oldest = sequence.arrival.min(*oldest);
            }
        }
        let holdings = if aged.is_empty() { Vec::new() } else { self.holdings() };
        for ((_, lane), arrival) in aged {
            let Some(from) = yields(&holdings, lane, self.limits.running, &self.lanes) else { continue };
            let Some(at) = self.waiting.iter().position(|s| s.arrival == arrival) else { continue };
            let waits =
                self.waits_for_sibling(&self.waiting[at]) || !self.has_adapter(at, wanted) || self.awaits_pages(at);
            if !waits {
                self.preempt_youngest(|s| s.request.lane == from);
                return self.try_start(at, wanted);
            }
        }
    }

    /// The lanes that have work, by what they hold.
    fn holdings(&self) -> Vec<Holding> {
        let mut holdings: BTreeMap<Lane, Holding> = BTreeMap::new();
        for job in self.jobs.values() {
            let Request { lane, weight, .. } = *job.request;
            let holding = holdings.entry(lane).or_insert(Holding { lane, weight, running: 0 });
            holding.weight = holding.weight.max(weight);
        }
        for sequence in &self.running {
            if let Some(holding) = holdings.get_mut(&sequence.request.lane) {
                holding.running += 1;
            }
        }
        holdings.into_values().collect()
    }

    /// Whether a waiting sequence's adapter is here; asks for it where nobody has.
    fn has_adapter(&mut self, at: usize, wanted: &mut Vec<Digest>) -> bool {
        let Some(digest) = self.waiting[at].request.adapter else { return true };
        match self.residency.lookup(digest, &mut *self.base.executor) {
            Ok(Lookup::Ready(_) | Lookup::NoRoom) => true,
            Ok(Lookup::Absent) => {
                self.residency.expect(digest);
                wanted.push(digest);
                false
            }
            Ok(Lookup::Coming) | Err(_) => false,
        }
    }

    /// Arrival of the oldest sequence that has waited so long that nobody may overtake it any more.
    fn patience_ended(&self) -> Option<u64> {
        let out_of_patience =
            |s: &&Sequence| s.waiting_since.is_some_and(|since| self.steps - since > self.limits.patience_steps);
        self.waiting.iter().filter(out_of_patience).map(|s| s.arrival).min()
    }

    fn try_start(&mut self, at: usize, wanted: &mut Vec<Digest>) {
        if self.waits_for_sibling(&self.waiting[at]) {
            return;
        }
        let slot = match self.waiting[at].request.adapter {
            None => Slot::BASE,
            Some(digest) => match self.residency.lookup(digest, &mut *self.base.executor) {
                Ok(Lookup::Ready(slot)) => slot,
                Ok(Lookup::Coming) => return,
                Ok(Lookup::Absent) => {
                    self.residency.expect(digest);
                    wanted.push(digest);
                    return;
                }
                Ok(Lookup::NoRoom) => return self.keep_waiting(at),
                Err(reason) => return self.fail_waiting(digest, &reason),
            },
        };
        if self.awaits_pages(at) {
            return;
        }
        if !self.take_pages(at) {
            return self.keep_waiting(at);
        }
        let mut sequence = self.waiting.remove(at);
        sequence.slot = slot;
        (sequence.waiting_since, sequence.place_since, sequence.on_disk) = (None, None, None);
        sequence.last_row = self.steps;
        if let Some(digest) = sequence.request.adapter {
            self.residency.pin(digest);
        }
        self.count_start(&mut sequence);
        self.running.push(sequence);
    }

    /// Further choices read the first one's prompt from the cache, so they wait until it is there.
    fn waits_for_sibling(&self, sequence: &Sequence) -> bool {
        let leads = |other: &Sequence| other.job == sequence.job && other.choice == 0 && other.generated() == 0;
        sequence.choice > 0 && (self.running.iter().any(leads) || self.waiting.iter().any(leads))
    }

    fn keep_waiting(&mut self, at: usize) {
        let steps = self.steps;
        self.waiting[at].waiting_since.get_or_insert(steps);
    }

    /// Whether pages of a waiting sequence are on their way from the disk. Each is asked for once: what does not come, or is forgotten
    /// again before the sequence starts, is computed.
    fn awaits_pages(&mut self, at: usize) -> bool {
        let (Some(disk), sequence) = (&mut self.disk, &mut self.waiting[at]) else { return false };
        if sequence.on_disk.is_none() {
            let keys = sequence.readable(self.page_tokens);
            let reachable = keys.take_while(|key| self.pool.knows(key) || disk.has(key));
            let ask = reachable.filter(|key| !self.pool.knows(key)).collect();
            sequence.on_disk = Some((ask, Vec::new()));
        }
        let Some((ask, asked)) = &mut sequence.on_disk else { return false };
        while let Some(&key) = ask.front()
            && disk.fetch(key)
        {
            ask.pop_front();
            asked.push(key);
        }
        asked.retain(|key| disk.is_coming(key));
        !(ask.is_empty() && asked.is_empty())
    }

    /// A page was read from disk, or is lost there.
    pub fn arrive_page(&mut self, key: PageKey, bytes: Option<Vec<u8>>) {
        let Some(disk) = &mut self.disk else { return };
        disk.arrived(&key, bytes.is_some());
        let Some(bytes) = bytes.filter(|_| !self.pool.knows(&key)) else { return };
        let Some(page) = self.take_page() else { return };
        if self.base.executor.write_page(page, &bytes).is_ok() {
            self.pool.publish(page, key);
            self.counted.disk_pages_read += 1;
        }
        self.pool.release(page);
    }

    /// Takes an empty page. What is forgotten for it goes to disk.
    fn take_page(&mut self) -> Option<u32> {
        let (page, forgotten) = self.pool.take()?;
        if let (Some(disk), Some(key)) = (&mut self.disk, forgotten)
            && disk.wants(&key)
            && let Ok(bytes) = self.base.executor.read_page(page)
        {
            disk.store(key, bytes);
        }
        Some(page)
    }

    /// Gives a waiting sequence pages for all its tokens: known ones as far as they go, empty ones for the rest.
    fn take_pages(&mut self, at: usize) -> bool {
        let sequence = &mut self.waiting[at];
        let keys = sequence.readable(self.page_tokens);
        let known = keys.map_while(|key| self.pool.share(&key).map(|page| (page, key)));
        (sequence.pages, sequence.keys) = known.unzip();
        let needed = sequence.tokens.len().div_ceil(self.page_tokens) - sequence.pages.len();
        if needed > self.pool.available() {
            sequence.keys.clear();
            sequence.pages.drain(..).for_each(|page| self.pool.release(page));
            return false;
        }
        sequence.computed = sequence.pages.len() * self.page_tokens;
        for _ in 0..needed {
            let page = self.take_page();
            self.waiting[at].pages.extend(page);
        }
        true
    }

    fn count_start(&mut self, sequence: &mut Sequence) {
        if std::mem::replace(&mut sequence.started, true) || sequence.choice > 0 {
            return;
        }
        self.counted.prefix_queries += sequence.prompt() as u64;
        self.counted.prefix_hits += sequence.computed as u64;
        if let Some(job) = self.jobs.get_mut(&sequence.job) {
            job.started(sequence.prompt() as u64, sequence.computed as u64);
        }
    }

    /// Chooses the rows of the next step, making room for tokens that begin a new page.
    pub fn plan(&mut self) -> Plan {
        self.grow_pages();
        let mut allowed: HashMap<u64, u64> = HashMap::new();
        let mut may_draw = |s: &Sequence| {
            let left = allowed.entry(s.job).or_insert_with(|| self.jobs.get(&s.job).map_or(0, Job::allowed));
            // Also where this step computes only a part of the prompt: a step later it is counted again.
            let one = u64::from(s.request.max_tokens > 0);
            *left >= one && {
                *left -= one;
                true
            }
        };
        let mut candidates = Vec::with_capacity(self.running.len());
        for (index, s) in self.running.iter_mut().enumerate() {
            if !may_draw(s) {
                s.last_row = self.steps;
                continue;
            }
            let (lane, arrival, waited) = (s.request.lane, s.arrival, self.steps - s.last_row);
            candidates.push(Candidate { index, lane, arrival, computed: s.computed, pending: s.pending(), waited });
        }
        let budget = Budget { rows: self.limits.step_rows, patience_steps: self.limits.patience_steps };
        let mut plan = share_rows(&candidates, &self.lanes, self.costs, budget);
        self.guess(&mut plan, &mut allowed);
        plan.sort_by_key(|&(index, _)| (self.running[index].slot, self.running[index].arrival));
        plan
    }

    /// Adds guesses to sequences that decode, where the step has rows left that are nearly free.
    fn guess(&mut self, plan: &mut Plan, allowed: &mut HashMap<u64, u64>) {
        let context = self.context();
        let rows: usize = plan.iter().map(|(_, rows)| rows).sum();
        let mut left = self.limits.speculative_rows.min(self.limits.step_rows).saturating_sub(rows);
        for (index, rows) in plan {
            let sequence = &mut self.running[*index];
            let allowed = allowed.entry(sequence.job).or_default();
            let most = usize::try_from(*allowed).unwrap_or(usize::MAX).min(left);
            sequence.guess(most, context, self.page_tokens);
            let guesses = sequence.guesses.len();
            *rows += guesses;
            left -= guesses;
            *allowed -= guesses as u64;
        }
    }

    fn grow_pages(&mut self) {
        let mut index = 0;
        while index < self.running.len() {
            if self.running[index].pages.len() * self.page_tokens >= self.running[index].tokens.len() {
                index += 1;
            } else if let Some(page) = self.take_page() {
                self.running[index].pages.push(page);
            } else {
                self.preempt_youngest(|_| true);
                index = 0;
            }
        }
    }

    /// Sends the youngest sequence that `which` picks back to wait: it gives its pages up and computes them again later. What it has drawn
    /// stays drawn.
    fn preempt_youngest(&mut self, which: impl Fn(&Sequence) -> bool) {
        let picked = (0..self.running.len()).filter(|&index| which(&self.running[index]));
        let youngest = picked.max_by_key(|&index| self.running[index].arrival);
        if let Some(index) = youngest {
            let mut sequence = self.running.remove(index);
            self.release(&mut sequence);
            self.counted.preemptions += 1;
            self.waiting.push(sequence);
        }
    }

    fn release(&mut self, sequence: &mut Sequence) {
        sequence.pages.drain(..).for_each(|page| self.pool.release(page));
        sequence.keys.clear();
        sequence.computed = 0;
        if let Some(digest) = sequence.request.adapter {
            self.residency.unpin(digest);
        }
    }

    /// The plan as a step.
    pub fn build(&self, plan: &Plan) -> Step {
        let mut step = Step {
            tokens: Vec::new(),
            positions: Vec::new(),
            sequences: Runs::new(),
            slots: Runs::new(),
            asks: Vec::new(),
        };
        for &(index, rows) in plan {
            let sequence = &self.running[index];
            for position in sequence.computed..sequence.computed + rows {
                if let Some(mut ask) = sequence.ask(position) {
                    if let (Ask::Sample(row), Some(steering)) = (&mut ask, &sequence.steering) {
                        row.mask = Some(self.masks.of(steering));
                    }
                    step.asks.push((step.tokens.len() as u32, ask));
                }
                step.tokens.push(sequence.token_at(position));
                step.positions.push(position as u32);
            }
            step.sequences.push(rows as u32, sequence.pages.as_slice().into());
            step.slots.extend(rows as u32, sequence.slot);
        }
        step
    }

    pub fn executor(&mut self) -> &mut dyn Executor {
        &mut *self.base.executor
    }

    /// Takes a step's outputs in: tokens go out, pages become known, sequences end. A request whose logits are not numbers, or whose
    /// grammar hits a bound, fails, and only it.
    pub fn commit(&mut self, plan: &Plan, outputs: Vec<Result<RowOutput, NotANumber>>) {
        self.steps += 1;
        self.charge(plan);
        let mut outputs = outputs.into_iter();
        let (mut ended, mut failed) = (Vec::new(), BTreeMap::new());
        for &(index, rows) in plan {
            let sequence = &mut self.running[index];
            let (first, known) = (sequence.computed, sequence.tokens.len());
            let draws = sequence.request.max_tokens > 0;
            let guesses = std::mem::take(&mut sequence.guesses);
            // Rows of guesses follow the text only as long as each guess is what was drawn.
            let (mut follows, mut right) = (true, 0);
            sequence.last_row = self.steps;
            for position in first..first + rows {
                let sequence = &self.running[index];
                let draws = draws && position + 1 >= known;
                if !(draws || sequence.scores_at(position)) {
                    continue;
                }
                let output = match outputs.next() {
                    Some(output) if follows => output,
                    _ => continue,
                };
                let output = match output {
                    Ok(output) => output,
                    Err(NotANumber) => {
                        failed.insert(sequence.job, NOT_NUMBERS.to_owned());
                        follows = false;
                        continue;
                    }
                };
                if draws {
                    let (token, job) = (output.token, sequence.job);
                    let ends = match self.drawn(index, output) {
                        Ok(ends) => ends,
                        Err(error) => {
                            failed.insert(job, format!("{GRAMMAR_FAILED}: {error}"));
                            follows = false;
                            continue;
                        }
                    };
                    if ends {
                        ended.push(index);
                    }
                    follows = !ends && guesses.get(position + 1 - known) == Some(&token);
                    right += usize::from(follows);
                } else if let Some(job) = self.jobs.get_mut(&sequence.job) {
                    let token = Token { id: output.token, logprob: output.logprob, top: output.top, held_bytes: 0 };
                    job.score(position, token);
                }
            }
            self.running[index].computed = first + rows - guesses.len() + right;
            self.learn(index, guesses.len(), right);
            if failed.contains_key(&self.running[index].job) {
                continue;
            }
            self.publish(index);
            if self.running[index].request.max_tokens == 0 && self.running[index].pending() == 0 {
                self.end_choice(index, FinishReason::Length, 0);
                ended.push(index);
            }
        }
        ended.sort_unstable();
        for index in ended.into_iter().rev() {
            let mut sequence = self.running.remove(index);
            self.release(&mut sequence);
        }
        for (job, reason) in failed {
            self.fail(&reason, |number| number == job);
        }
    }

    /// Charges each lane for its rows, and for its part of what the step read of the adapters that they use.
    fn charge(&mut self, plan: &Plan) {
        let mut users: HashMap<Slot, u64> = HashMap::new();
        for &(index, _) in plan {
            *users.entry(self.running[index].slot).or_default() += 1;
        }
        for &(index, rows) in plan {
            let sequence = &self.running[index];
            let bytes = sequence.request.adapter.map_or(0, |digest| self.residency.bytes(digest));
            let adapter = self.costs.adapter(bytes) / users[&sequence.slot];
            let cost = self.costs.rows(sequence.computed, rows) + adapter;
            self.lanes.charge(sequence.request.lane, sequence.request.weight, cost);
        }
    }

    fn learn(&mut self, index: usize, guessed: usize, right: usize) {
        let sequence = &mut self.running[index];
        sequence.trust.learn(guessed, right);
        self.counted.guessed_tokens += guessed as u64;
        self.counted.accepted_tokens += right as u64;
        if let Some(job) = self.jobs.get_mut(&sequence.job) {
            job.usage.guessed += guessed as u64;
            job.usage.accepted += right as u64;
        }
    }

    /// Sends a drawn token on; true where the sequence ends with it. One that its grammar could not take is not sent.
    fn drawn(&mut self, index: usize, output: RowOutput) -> Result<bool, MatchError> {
        self.counted.generation_tokens += 1;
        let context = self.context();
        let sequence = &mut self.running[index];
        let bytes = self.base.vocabulary.get(output.token).to_vec();
        let (choice, drawn) = (sequence.choice, sequence.draw(output, &bytes, context));
        if let Some(job) = self.jobs.get_mut(&sequence.job) {
            job.usage.completion += 1;
            if let Some(failed) = drawn.failed {
                return Err(failed);
            }
            if let Some(token) = drawn.token {
                job.token(choice, token);
            }
        }
        match drawn.end {
            None => Ok(false),
            Some((reason, visible_bytes)) => {
                self.end_choice(index, reason, visible_bytes);
                Ok(true)
            }
        }
    }

    fn end_choice(&mut self, index: usize, reason: FinishReason, visible_bytes: u64) {
        let (number, choice) = (self.running[index].job, self.running[index].choice);
        let Some(job) = self.jobs.get_mut(&number) else { return };
        self.counted.answers += 1;
        job.choice(choice, reason, visible_bytes);
        if job.open == 0
            && let Some(job) = self.jobs.remove(&number)
        {
            job.finish(None);
        }
    }

    /// Makes the pages that are full now known.
    fn publish(&mut self, index: usize) {
        let sequence = &mut self.running[index];
        while (sequence.keys.len() + 1) * self.page_tokens <= sequence.computed {
            let page = sequence.keys.len();
            let parent = sequence.keys.last().copied().unwrap_or(sequence.root);
            let key = next_key(parent, &sequence.tokens[page * self.page_tokens..(page + 1) * self.page_tokens]);
            self.pool.publish(sequence.pages[page], key);
            sequence.keys.push(key);
        }
    }

    fn end_jobs(&mut self, which: impl Fn(&Job) -> bool, reason: FinishReason) {
        let ended: Vec<u64> = self.jobs.iter().filter(|(_, job)| which(job)).map(|(&number, _)| number).collect();
        for number in ended {
            for sequence in self.take_sequences(|s| s.job == number) {
                if let Some(job) = self.jobs.get_mut(&number) {
                    job.choice(sequence.choice, reason.clone(), sequence.visible_bytes());
                }
            }
            if let Some(job) = self.jobs.remove(&number) {
                job.finish(None);
            }
        }
    }

    /// Removes the sequences that `which` picks; their pages and slots are free again.
    fn take_sequences(&mut self, which: impl Fn(&Sequence) -> bool) -> Vec<Sequence> {
        let mut taken: Vec<Sequence> = self.running.extract_if(.., |s| which(s)).collect();
        for sequence in &mut taken {
            self.release(sequence);
        }
        taken.extend(self.waiting.extract_if(.., |s| which(s)));
        taken
    }

    fn fail_waiting(&mut self, digest: Digest, reason: &str) {
        let failed: Vec<u64> =
            self.waiting.iter().filter(|s| s.request.adapter == Some(digest)).map(|s| s.job).collect();
        self.fail(reason, |number| failed.contains(&number));
    }

    fn fail(&mut self, reason: &str, which: impl Fn(u64) -> bool) {
        self.take_sequences(|s| which(s.job));
        for (_, job) in self.jobs.extract_if(|&number, _| which(number)) {
            job.finish(Some(reason.to_owned()));
        }
    }

    /// Ends every request with an error.
    pub fn fail_all(&mut self, reason: &str) {
        self.fail(reason, |_| true);
    }

    /// The device failed in the middle of a step: what the pool holds cannot be trusted.
    pub fn device_failed(&mut self, reason: &str) {
        self.fail_all(reason);
        self.pool.reset();
    }

    /// Adds what waits, with the rows that it will take where answers have `answer` tokens.
    pub fn queued(&self, answer: u64, queue: &mut Queue) {
        for sequence in &self.waiting {
            let left = u64::from(sequence.request.max_tokens - sequence.generated());
            queue.add(sequence.request.lane, sequence.pending() as u64 + left.min(answer));
        }
    }

    /// Requests that have not ended.
    pub fn open(&self) -> usize {
        self.jobs.len()
    }

    /// Longest sequence: the model's, or the pool's where that is smaller.
    fn context(&self) -> usize {
        context(&*self.base.executor)
    }

    pub fn stats(&self) -> Stats {
        Stats {
            running: self.running.len() as u64,
            waiting: self.waiting.len() as u64,
            pages_used: (self.pool.total() - self.pool.available()) as u64,
            pages_total: self.pool.total() as u64,
            disk_pages_used: self.disk.as_ref().map_or(0, DiskTier::used),
            disk_pages_written: self.disk.as_ref().map_or(0, |disk| disk.written),
            disk_pages_lost: self.disk.as_ref().map_or(0, |disk| disk.lost),
            resident_adapters: self.residency.count() as u64,
            steps: self.steps,
            ..self.counted
        }
    }
}

/// Longest sequence that an executor can hold, in tokens.
pub fn context(executor: &dyn Executor) -> usize {
    let pool = executor.pool();
    executor.shape().context.min(pool.pages as usize * pool.page_tokens as usize)
}

/// Whether a request can ever run on this executor.
pub fn accepts(executor_context: usize, vocabulary: usize, request: &Request) -> Result<(), crate::Refused> {
    use crate::Refused;
    let prompt = request.tokens.len();
    if prompt == 0 || request.choices == 0 {
        return Err(Refused::EmptyPrompt);
    }
    let asked = prompt + request.max_tokens as usize;
    if asked > executor_context {
        return Err(Refused::TooLong { context: executor_context, asked, prompt });
    }
    match request.tokens.iter().find(|&&token| token as usize >= vocabulary) {
        Some(&token) => Err(Refused::UnknownToken(token)),
        None => Ok(()),
    }
}
