//! Credit in memory: requests reserve and settle against what this server has set aside for their account.
//!
//! For each account that it serves the server holds one reservation in the ledger. Requests take their share of it in memory; the
//! ledger is asked only when it is used up, and gets back what is left when the account has been quiet for a while. So the
//! decision costs no write, and no two servers ever wait for each other on an account's row.

mod others;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use platform::AccountName;
use platform::units::now_ms;
use tokio::sync::Notify;

use crate::limits::{Limits, Meter, Origin, Spender};
use crate::rules::{Command, Credit, Nano, Refusal};
use crate::{BillingError, Journal, Ledger};

pub(crate) use others::forget_wants;

/// Most that is set aside beyond what is needed: one dollar.
const SPARE: Nano = 1_000_000_000;
/// Of a prepaid account's credit, the part that one server sets aside at a time: others may serve it too.
const SPARE_PART: Nano = 8;
/// An account without running requests gives its reservation back after so long.
const QUIET: Duration = Duration::from_secs(10);

/// A ledger that takes longer to answer is away.
const LEDGER_TIMEOUT: Duration = Duration::from_secs(10);

/// What a settled request takes from the ledger's books.
#[derive(Debug, Clone)]
pub struct Charge {
    pub account: AccountName,
    pub reservation: String,
    pub amount: Nano,
    /// Until it is in the books the reservation must not be given back.
    open: Option<Arc<Hold>>,
}

impl Charge {
    /// Of a reservation that the test has made itself.
    #[cfg(test)]
    pub(crate) fn unheld(account: AccountName, reservation: &str, amount: Nano) -> Self {
        Self { account, reservation: reservation.to_owned(), amount, open: None }
    }

    /// The ledger did not know of what was to be taken: before more is given out the ledger is asked.
    pub(crate) fn doubt(&self) {
        let Some(open) = &self.open else { return };
        let mut state = open.purse.state();
        if state.holds(&self.reservation) {
            state.amount = state.taken;
        }
    }
}

#[derive(Clone)]
pub struct Wallets {
    shared: Arc<Shared>,
}

struct Shared {
    ledger: Ledger,
    journal: Journal,
    limits: Limits,
    purses: Mutex<HashMap<AccountName, Arc<Purse>>>,
    /// Counts this server's commands to the ledger: their ids.
    commands: AtomicU64,
}

/// One account's credit on this server.
struct Purse {
    account: AccountName,
    state: Mutex<State>,
    /// Held while the ledger is asked: requests that come meanwhile wait for its answer instead of asking as well.
    asking: Arc<tokio::sync::Mutex<()>>,
    /// Told when a request gives credit back.
    given_back: Notify,
    /// Held while other servers are asked; when that began which ended last.
    asking_others: tokio::sync::Mutex<Option<Instant>>,
}

#[derive(Default)]
struct State {
    reservation: Option<String>,
    /// Still held in the ledger, as far as requests have settled here.
    amount: Nano,
    /// Of that, what running requests hold.
    taken: Nano,
    /// Requests that hold credit or whose charge is not in the books yet, and how many of them wait for more.
    holders: usize,
    waiting: usize,
    quiet_since: Option<Instant>,
    /// A command whose answer got lost: it is repeated before another one is given.
    unanswered: Option<(String, Command)>,
    /// Counts of the caps that requests have to keep, as far as this server spends under them.
    meters: HashMap<Meter, Count>,
    /// What requests hold, or have settled and is not in the books yet: of all requests, since a cap may be set while they run.
    running: HashMap<Origin, Nano>,
}

/// A cap's count on this server. What runs under it is in [`State::running`].
#[derive(Debug, Default, Clone, Copy)]
struct Count {
    /// What this server may spend in the period, and what the others may, both as of the last time that it asked. Without the
    /// others' part it has to ask before it spends more.
    leased: Nano,
    others: Option<Nano>,
    /// What the others have spent.
    others_spent: Nano,
    /// What this server has spent and is in the books, never too little: with a cap or without one.
    spent: Nano,
}

/// What a request must keep to, and where it counts.
struct Terms {
    caps: Vec<(Meter, Nano)>,
    origin: Origin,
}

impl State {
    /// Begins anew without a reservation; returns the one that there was.
    fn forget(&mut self) -> Option<String> {
        (self.amount, self.taken, self.quiet_since) = (0, 0, None);
        self.reservation.take()
    }

    const fn free(&self) -> Nano {
        self.amount - self.taken
    }

    /// False for what was held before another server closed the reservation.
    fn holds(&self, reservation: &str) -> bool {
        self.reservation.as_deref() == Some(reservation)
    }

    /// The taker is counted at once: a reservation must not be given back under it.
    fn take(&mut self, least: Nano, wanted: Nano, terms: &Terms) -> Option<(String, Nano)> {
        let free = self.free().min(self.free_of(&terms.caps));
        let reservation = self.reservation.clone().filter(|_| free >= least)?;
        let amount = wanted.min(free);
        self.taken += amount;
        *self.running.entry(terms.origin.clone()).or_default() += amount;
        self.holders += 1;
        self.quiet_since = None;
        Some((reservation, amount))
    }

    /// What the caps together allow now.
    fn free_of(&self, caps: &[(Meter, Nano)]) -> Nano {
        caps.iter().map(|cap| self.free_under(cap)).min().unwrap_or(Nano::MAX)
    }

    /// What a cap allows now: less than nothing where requests that need not keep it have spent more. A request that began under
    /// a higher cap may have leased more than this one allows.
    fn free_under(&self, (meter, cap): &(Meter, Nano)) -> Nano {
        let Some(count) = self.meters.get(meter) else { return 0 };
        let free = |leased: Nano| leased - count.spent - self.running_in(meter);
        count.others.map_or_else(|| free(count.leased).min(0), |others| free(count.leased.min(cap - others)))
    }

    /// Whether the caps would allow so much if the other servers gave back what they have leased and not spent.
    fn others_could_do(&self, least: Nano, caps: &[(Meter, Nano)]) -> bool {
        caps.iter().all(|cap| {
            let Some(count) = self.meters.get(&cap.0) else { return true };
            let unspent = count.others.is_none_or(|others| others > count.others_spent);
            let most = cap.1 - count.others_spent - count.spent - self.running_in(&cap.0);
            self.free_under(cap) >= least || (unspent && most >= least)
        })
    }

    fn running_in(&self, meter: &Meter) -> Nano {
        self.running.iter().filter(|(origin, _)| meter.counts(origin)).map(|(_, amount)| amount).sum()
    }

    /// A request gives back what it held, and of that has spent `settled`, which runs until it is in the books.
    fn release(&mut self, reservation: &str, origin: &Origin, held: Nano, settled: Nano) {
        if self.holds(reservation) {
            self.taken -= held;
            self.amount -= settled;
        }
        self.ends(origin, held - settled);
    }

    /// What was settled is in the books.
    fn booked(&mut self, origin: &Origin, amount: Nano) {
        self.ends(origin, amount);
        for (_, count) in self.meters.iter_mut().filter(|(meter, _)| meter.counts(origin)) {
            count.spent += amount;
        }
    }

    fn ends(&mut self, origin: &Origin, amount: Nano) {
        let Some(running) = self.running.get_mut(origin) else { return };
        *running -= amount;
        if *running == 0 {
            self.running.remove(origin);
        }
    }

    /// Lets go of what is leased under caps and not used. Returns what stays leased, by meter.
    fn let_go(&mut self) -> Vec<(Meter, Nano)> {
        let mut kept = Vec::new();
        let mut meters = std::mem::take(&mut self.meters);
        meters.retain(|meter, count| {
            // Of a meter whose lease was never answered nobody knows here what is used.
            if count.leased == 0 {
                return false;
            }
            let running = self.running_in(meter);
            // Where nothing runs the books have all that is used. What the others may spend is to be asked for again.
            count.leased = if running > 0 { count.leased.min(count.spent + running) } else { 0 };
            count.others = None;
            kept.push((meter.clone(), count.leased));
            running > 0
        });
        self.meters = meters;
        kept
    }

    /// Whether there is something that the ledger could have back.
    fn is_quiet(&self) -> bool {
        let quiet = self.quiet_since.is_some_and(|since| since.elapsed() >= QUIET);
        self.holders == 0 && (quiet || self.unanswered.is_some())
    }

    /// Whether a request that holds credit may give some back without getting more first.
    const fn somebody_runs(&self) -> bool {
        self.holders > self.waiting
    }
}

impl Purse {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Credit of one request. What is not settled goes back when it is dropped.
pub struct Hold {
    wallets: Wallets,
    purse: Arc<Purse>,
    reservation: String,
    terms: Arc<Terms>,
    amount: Nano,
    /// Settled, and not in the books yet.
    settled: Nano,
}

impl std::fmt::Debug for Hold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hold")
            .field("account", &self.purse.account)
            .field("amount", &self.amount)
            .finish_non_exhaustive()
    }
}

impl Hold {
    pub const fn amount(&self) -> Nano {
        self.amount
    }

    /// What requests that hold this are charged to.
    pub fn reservation(&self) -> &str {
        &self.reservation
    }

    /// Others have closed the reservation: the next request begins with a new one.
    pub fn is_closed(&self) {
        let mut state = self.purse.state();
        if state.holds(&self.reservation) {
            state.forget();
        }
    }

    /// More credit for the same request: at least `least`, and `wanted` where there is as much. `patient`: the request has used up
    /// what it holds, and waits for others to give some back. What is got is to be [`add`](Self::add)ed.
    pub fn more(
        &self,
        least: Nano,
        wanted: Nano,
        patient: bool,
    ) -> impl Future<Output = Result<Result<Hold, Refusal>, BillingError>> + Send + 'static {
        let (wallets, purse, terms) = (self.wallets.clone(), self.purse.clone(), self.terms.clone());
        let reservation = self.reservation.clone();
        async move {
            let more = match patient {
                false => wallets.take_now(&purse, least, wanted, &terms).await?,
                true => {
                    let _waits = Waits::new(&purse);
                    wallets.take(&purse, least, wanted, &terms).await?
                }
            };
            // What was held before another server closed the reservation cannot be raised.
            Ok(more.and_then(|more| match more.reservation == reservation {
                true => Ok(more),
                false => Err(Refusal::ReservationClosed),
            }))
        }
    }

    /// Takes in what [`more`](Self::more) has got for this request.
    pub fn add(&mut self, mut more: Hold) {
        if more.reservation == self.reservation {
            self.amount += std::mem::take(&mut more.amount);
        }
    }

    /// Takes the cost out; never more than is held. The rest goes back.
    pub fn settle(mut self, cost: Nano) -> Option<Charge> {
        if cost > self.amount {
            tracing::error!(account = %self.purse.account, cost, held = self.amount, "a request costs more than it had reserved");
        }
        let amount = cost.min(self.amount);
        self.purse.state().release(&self.reservation, &self.terms.origin, self.amount, amount);
        (self.amount, self.settled) = (0, amount);
        self.purse.given_back.notify_waiters();
        (amount > 0).then(|| Charge {
            account: self.purse.account.clone(),
            reservation: self.reservation.clone(),
            amount,
            open: Some(Arc::new(self)),
        })
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut state = self.purse.state();
        state.holders -= 1;
        state.release(&self.reservation, &self.terms.origin, self.amount, 0);
        state.booked(&self.terms.origin, self.settled);
        if state.holders == 0 {
            state.quiet_since = Some(Instant::now());
        }
        drop(state);
        self.purse.given_back.notify_waiters();
    }
}

/// As long as it lives, its request does nothing but wait for more credit.
struct Waits(Arc<Purse>);

impl Waits {
    fn new(purse: &Arc<Purse>) -> Self {
        purse.state().waiting += 1;
        // Who waits for this one to give back must see that it does not.
        purse.given_back.notify_waiters();
        Self(purse.clone())
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.state().waiting -= 1;
    }
}

impl Wallets {
    /// Must be called within a tokio runtime, on which quiet accounts give their reservations back.
    pub fn new(ledger: Ledger, journal: Journal, limits: Limits) -> Self {
        let shared =
            Arc::new(Shared { ledger, journal, limits, purses: Mutex::default(), commands: AtomicU64::new(0) });
        tokio::spawn(others::hear(Arc::downgrade(&shared)));
        let weak = Arc::downgrade(&shared);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(QUIET / 2).await;
                let Some(shared) = weak.upgrade() else { return };
                if let Err(error) = (Self { shared }).give_back_quiet().await {
                    tracing::warn!(%error, "a quiet account's reservation could not be given back");
                }
            }
        });
        Self { shared }
    }

    /// Sets credit aside for a request: at least `least`, and `wanted` where there is as much. Both over 0. Where what is missing
    /// is held by other requests it waits for them: nobody is refused while there is money.
    pub async fn reserve(
        &self,
        spender: &Spender<'_>,
        least: Nano,
        wanted: Nano,
    ) -> Result<Result<Hold, Refusal>, BillingError> {
        let purse = self.purse(spender.account);
        let now_ms = now_ms();
        let caps = self.shared.limits.caps(spender, now_ms);
        let terms = Arc::new(Terms { caps, origin: Origin::new(spender, now_ms) });
        self.take(&purse, least, wanted, &terms).await
    }

    fn hold(&self, purse: &Arc<Purse>, least: Nano, wanted: Nano, terms: &Arc<Terms>) -> Option<Hold> {
        let (reservation, amount) = purse.state().take(least, wanted, terms)?;
        let (wallets, purse, terms) = (self.clone(), purse.clone(), terms.clone());
        Some(Hold { wallets, purse, reservation, terms, amount, settled: 0 })
    }

    fn purse(&self, account: &AccountName) -> Arc<Purse> {
        let mut purses = self.shared.purses.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = || {
            Arc::new(Purse {
                account: account.clone(),
                state: Mutex::default(),
                asking: Arc::default(),
                given_back: Notify::new(),
                asking_others: tokio::sync::Mutex::default(),
            })
        };
        purses.entry(account.clone()).or_insert_with(fresh).clone()
    }

    async fn take(
        &self,
        purse: &Arc<Purse>,
        least: Nano,
        wanted: Nano,
        terms: &Arc<Terms>,
    ) -> Result<Result<Hold, Refusal>, BillingError> {
        use Refusal::{CapReached, InsufficientCredit};
        // What came into the books while they were read counts twice until they are read again.
        let mut exact = false;
        let mut asked = false;
        loop {
            let mut given_back = std::pin::pin!(purse.given_back.notified());
            let refusal = match self.take_now(purse, least, wanted, terms).await? {
                Err(refusal @ (InsufficientCredit | CapReached)) => refusal,
                answer => return Ok(answer),
            };
            // Once, until something has changed here.
            if !std::mem::replace(&mut asked, true) && self.ask_others(purse, refusal, least, &terms.caps).await? {
                continue;
            }
            if purse.state().somebody_runs() {
                given_back.await;
            } else if given_back.as_mut().enable() {
                // The last one that ran gave back in between.
            } else if refusal == CapReached && !exact {
                exact = true;
            } else {
                return Ok(Err(refusal));
            }
            asked = false;
        }
    }

    async fn take_now(
        &self,
        purse: &Arc<Purse>,
        least: Nano,
        wanted: Nano,
        terms: &Arc<Terms>,
    ) -> Result<Result<Hold, Refusal>, BillingError> {
        match self.hold(purse, wanted, wanted, terms) {
            Some(hold) => Ok(Ok(hold)),
            None => {
                let asked = self.take_after_asking(purse, least, wanted, terms);
                tokio::time::timeout(LEDGER_TIMEOUT, asked).await.map_err(|_| BillingError::Slow)?
            }
        }
    }

    async fn take_after_asking(
        &self,
        purse: &Arc<Purse>,
        least: Nano,
        wanted: Nano,
        terms: &Arc<Terms>,
    ) -> Result<Result<Hold, Refusal>, BillingError> {
        let mut asking = purse.asking.clone().lock_owned().await;
        loop {
            if let Some(hold) = self.hold(purse, wanted, wanted, terms) {
                return Ok(Ok(hold));
            }
            // On a task of its own, with the lock: a caller who goes away must neither leave an answer of the ledger unread nor let
            // the next one ask while that answer is on its way, who would repeat the command and count what it gave twice.
            let (wallets, asked, kept) = (self.clone(), purse.clone(), terms.clone());
            let answer = tokio::spawn(async move { (wallets.ask(&asked, least, wanted, &kept.caps).await, asking) });
            let (answer, lock) = answer.await.map_err(|_| BillingError::Closed)?;
            let answer = answer?;
            // With the lock: what was leased for this request must not be given back under it.
            if let Some(hold) = self.hold(purse, least, wanted, terms) {
                return Ok(Ok(hold));
            }
            match answer {
                // Others, who do not need to ask, were faster.
                Ok(()) => asking = lock,
                Err(refusal) => return Ok(Err(refusal)),
            }
        }
    }

    /// Gets more under the caps, then from the ledger, as far as it is missing.
    async fn ask(
        &self,
        purse: &Purse,
        least: Nano,
        wanted: Nano,
        caps: &[(Meter, Nano)],
    ) -> Result<Result<(), Refusal>, BillingError> {
        for cap in caps {
            if !self.ask_cap(purse, cap, least, wanted).await? {
                return Ok(Err(Refusal::CapReached));
            }
        }
        let (free, under_caps) = {
            let state = purse.state();
            (state.free(), state.free_of(caps))
        };
        // What no cap allows is not to be set aside.
        let wanted = wanted.min(under_caps);
        if wanted <= free {
            return Ok(Ok(()));
        }
        self.ask_ledger(purse, (least - free).max(0), wanted - free).await
    }

    /// Leases more of a cap where there is not enough. False: there is none left.
    async fn ask_cap(
        &self,
        purse: &Purse,
        cap: &(Meter, Nano),
        least: Nano,
        wanted: Nano,
    ) -> Result<bool, BillingError> {
        let meter = &cap.0;
        let (free, spent_before) = {
            let mut state = purse.state();
            // A period that is over counts no more.
            state.meters.retain(|known, _| known.period != meter.period || known.start_ms >= meter.start_ms);
            // From here on all that comes into the books is counted, so that the answer cannot miss any of it.
            let spent = state.meters.entry(meter.clone()).or_default().spent;
            (state.free_under(cap), spent)
        };
        if free >= wanted {
            return Ok(true);
        }
        let Shared { limits, journal, .. } = &*self.shared;
        let (least_more, wanted_more) = ((least - free).max(0), wanted - free);
        let lease = limits.lease(&purse.account, (meter, cap.1), journal.instance(), least_more, wanted_more).await?;
        let mut state = purse.state();
        let count = state.meters.entry(meter.clone()).or_default();
        // What came into the books meanwhile may be in the answer as well: the next one puts that right.
        count.spent += lease.spent - spent_before;
        (count.leased, count.others, count.others_spent) = (lease.leased, Some(lease.others), lease.others_spent);
        Ok(state.free_under(cap) >= least)
    }

    /// Gets more from the ledger: what is wanted and something to spare, or what there is.
    async fn ask_ledger(&self, purse: &Purse, least: Nano, wanted: Nano) -> Result<Result<(), Refusal>, BillingError> {
        let balance = self.shared.ledger.balance(&purse.account).await?;
        let spare = match balance.credit {
            Credit::Unlimited => SPARE,
            Credit::Prepaid => (balance.available / SPARE_PART).clamp(0, SPARE),
        };
        let amounts = match balance.credit {
            Credit::Unlimited => [wanted.saturating_add(spare), wanted, least.max(1)],
            Credit::Prepaid if spare >= wanted => [wanted + spare, wanted, least.max(1)],
            // It gets short: a part of what is left, so that others find something too.
            Credit::Prepaid if balance.available >= least.max(1) => [least.max(spare), least.max(1), least.max(1)],
            Credit::Prepaid => return Ok(Err(Refusal::InsufficientCredit)),
        };
        let mut answer = Ok(());
        for amount in amounts {
            answer = self.set_aside(purse, amount).await?;
            if answer.is_ok() {
                break;
            }
        }
        Ok(answer)
    }

    async fn set_aside(&self, purse: &Purse, amount: Nano) -> Result<Result<(), Refusal>, BillingError> {
        self.repeat_unanswered(purse).await?;
        let known = purse.state().reservation.clone();
        let id = self.command_id();
        let command = match known {
            Some(reservation) => Command::Extend { reservation, amount },
            None => Command::Reserve { reservation: id.clone(), amount },
        };
        self.add(purse, id, command).await
    }

    /// Only who holds `asking` may call this: the answer is read once.
    async fn repeat_unanswered(&self, purse: &Purse) -> Result<(), BillingError> {
        let unanswered = purse.state().unanswered.clone();
        let Some((id, command)) = unanswered else { return Ok(()) };
        match self.add(purse, id, command).await? {
            Ok(()) => {}
            Err(refusal) => tracing::warn!(account = %purse.account, %refusal, "a repeated command was refused"),
        }
        Ok(())
    }

    async fn add(&self, purse: &Purse, id: String, command: Command) -> Result<Result<(), Refusal>, BillingError> {
        purse.state().unanswered = Some((id.clone(), command.clone()));
        let answer = self.apply(&id, &purse.account, &command).await?;
        let mut state = purse.state();
        state.unanswered = None;
        match answer {
            // What is given back was forgotten before.
            Ok(()) if matches!(command, Command::Void { .. } | Command::Release { .. }) => Ok(Ok(())),
            Ok(()) => {
                state.reservation = command.reservation().map(str::to_owned);
                state.amount += command.amount();
                Ok(Ok(()))
            }
            Err(Refusal::ReservationClosed) => {
                // This server was taken for dead and its reservation given back. Running requests are closed with it; the next
                // ones begin with a new reservation.
                tracing::warn!(account = %purse.account, "a reservation was closed by another server");
                state.forget();
                Ok(Err(Refusal::ReservationClosed))
            }
            Err(refusal) => Ok(Err(refusal)),
        }
    }

    async fn apply(
        &self,
        id: &str,
        account: &AccountName,
        command: &Command,
    ) -> Result<Result<(), Refusal>, BillingError> {
        let Shared { ledger, journal, .. } = &*self.shared;
        ledger.apply(id, account, command, None, journal.instance()).await
    }

    fn command_id(&self) -> String {
        let number = self.shared.commands.fetch_add(1, Ordering::Relaxed);
        format!("{} {number}", self.shared.journal.instance())
    }

    /// Gives back what accounts hold that have been quiet for a while.
    async fn give_back_quiet(&self) -> Result<(), BillingError> {
        for purse in self.all() {
            let quiet = purse.state().is_quiet();
            if quiet {
                self.empty(&purse).await?;
            }
        }
        Ok(())
    }

    /// Caps may be lower now: what is leased of them and not used is given back, and leased again under the new ones.
    pub async fn limits_changed(&self) -> Result<(), BillingError> {
        for purse in self.all() {
            let _asking = purse.asking.lock().await;
            let kept = purse.state().let_go();
            self.shared.limits.give_back(&purse.account, self.shared.journal.instance(), &kept).await?;
        }
        Ok(())
    }

    fn all(&self) -> Vec<Arc<Purse>> {
        self.shared.purses.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Gives back what the account holds, unless requests run.
    pub async fn give_back(&self, account: &AccountName) -> Result<(), BillingError> {
        // What is on its way into the books still keeps its reservation open.
        self.shared.journal.flush_in_time().await?;
        let purse = self.purse(account);
        self.empty(&purse).await
    }

    /// Gives everything back: for a server that stops.
    pub async fn give_back_all(&self) -> Result<(), BillingError> {
        // What is on its way into the books still keeps its reservation open.
        self.shared.journal.flush().await?;
        for purse in self.all() {
            self.empty(&purse).await?;
        }
        Ok(())
    }

    async fn empty(&self, purse: &Purse) -> Result<(), BillingError> {
        let _asking = purse.asking.lock().await;
        // It may be a reservation that nobody else knows of.
        self.repeat_unanswered(purse).await?;
        let (kept, command) = {
            let mut state = purse.state();
            if state.holders > 0 {
                return Ok(());
            }
            let kept = state.let_go();
            let command = state.forget().map(|reservation| (self.command_id(), Command::Void { reservation }));
            // Before anything is waited for: who calls this may go away, and then the next one gives it back.
            state.unanswered = command.clone();
            (kept, command)
        };
        self.shared.limits.give_back(&purse.account, self.shared.journal.instance(), &kept).await?;
        if let Some((id, command)) = command {
            self.add(purse, id, command).await?.ok();
        }
        Ok(())
    }
}
