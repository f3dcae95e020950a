//! What outlives a gateway: the database, what clients have asked for and seen, and the faults that are planned.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use billing::{Credit, Fault, Faults, Finish, Nano, NewPrice, Prices, Quantities, Rates};
use platform::testing::{change, noted};
use platform::{AccountName, Db, RequestId};

use super::engine::Ask;
use super::random::Random;
use crate::support::account;

pub const ACCOUNTS: u64 = 12;
/// One request in so many comes after a top-up of its account.
const TOP_UP_EVERY: u64 = 50;

/// A request that a client makes.
#[derive(Debug, Clone)]
pub struct Plan {
    pub account: AccountName,
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    pub max_tokens: u64,
    pub length_given: bool,
    pub ask: Ask,
    pub leaves_after: Option<u64>,
    pub begins_twice: bool,
    pub settles_twice: bool,
    pub marks_late: bool,
    /// The gateway waits so long for the database.
    pub patience: Duration,
}

/// How a request ended for its client; until then it has not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// There was not enough credit, or the database was away.
    Refused,
    /// The row could not be written in time.
    NotBegun,
    Finished {
        cost: Nano,
    },
    /// It was told so, or it has left.
    Failed,
}

/// A request as its client and its gateway have seen it.
#[derive(Debug, Clone, Default)]
pub struct View {
    pub id: Option<RequestId>,
    /// Tokens that the client got.
    pub delivered: u64,
    /// Tokens in the last mark that is known to be durable.
    pub durable: u64,
    /// What it was to be settled with.
    pub settling: Option<(Quantities, Finish)>,
    pub seen: Option<Seen>,
}

/// Counts of what was done to the gateways, for the report.
#[derive(Debug, Default)]
pub struct Counts {
    pub kills: AtomicU64,
    pub stops: AtomicU64,
    pub failed: AtomicU64,
    pub lost: AtomicU64,
    pub stalled: AtomicU64,
    pub repeats: AtomicU64,
    pub clock_jumps: AtomicU64,
    /// Servers that others were made to take for dead.
    pub taken_for_dead: AtomicU64,
}

pub struct World {
    pub seed: u64,
    pub url: String,
    pub requests: u64,
    pub servers: usize,
    pub counts: Counts,
    pub accounts: Vec<(AccountName, Option<(i64, Rates)>)>,
    next: AtomicU64,
    views: Vec<Mutex<View>>,
    random: Mutex<Random>,
    /// Commits that will fail because the database is away.
    away: AtomicU64,
    pub calm: AtomicBool,
}

impl World {
    pub async fn new(seed: u64, url: String, requests: u64, servers: usize) -> Arc<Self> {
        let db = Db::open(&url).await.expect("the database opens");
        let prices = Prices::open(db.clone()).await.expect("prices are read");
        let mut accounts = Vec::new();
        for number in 0..ACCOUNTS {
            accounts.push(open_account(&db, &prices, number).await);
        }
        db.close().await;
        Arc::new(Self {
            seed,
            url,
            requests,
            servers,
            counts: Counts::default(),
            accounts,
            next: AtomicU64::new(0),
            views: (0..requests).map(|_| Mutex::default()).collect(),
            random: Mutex::new(Random::of(seed, u64::MAX)),
            away: AtomicU64::new(0),
            calm: AtomicBool::new(false),
        })
    }

    /// The next request that nobody has taken.
    pub fn take(&self) -> Option<u64> {
        let number = self.next.fetch_add(1, Ordering::SeqCst);
        (number < self.requests).then_some(number)
    }

    /// Whether a server may be taken for dead while it lives: by another one.
    pub const fn buries_the_living(&self) -> bool {
        self.servers > 1
    }

    pub fn is_done(&self) -> bool {
        self.next.load(Ordering::SeqCst) >= self.requests
    }

    pub fn view(&self, number: u64) -> MutexGuard<'_, View> {
        self.views[number as usize].lock().expect("no panic")
    }

    pub fn random<T>(&self, draw: impl FnOnce(&mut Random) -> T) -> T {
        draw(&mut self.random.lock().expect("no panic"))
    }

    pub fn price(&self, name: &AccountName) -> Option<(i64, Rates)> {
        self.accounts.iter().find(|(account, _)| account == name).and_then(|(_, price)| *price)
    }

    /// What the client of this number asks for.
    pub fn plan(&self, number: u64) -> Plan {
        let mut random = Random::of(self.seed, number);
        let account = self.accounts[random.between(0, ACCOUNTS - 1) as usize].0.clone();
        let prompt_tokens = random.between(1, 300);
        let max_tokens = random.between(1, 160);
        let length = if random.per_mille(500) { max_tokens } else { random.between(1, max_tokens) };
        let some = |random: &mut Random, times| random.per_mille(times).then(|| random.between(0, length));
        let millis = if random.per_mille(2) { 20 } else { u64::from(random.per_mille(30)) };
        Plan {
            account,
            prompt_tokens,
            cached_tokens: if random.per_mille(300) { random.between(0, prompt_tokens) } else { 0 },
            max_tokens,
            length_given: random.per_mille(300),
            leaves_after: some(&mut random, 60),
            ask: Ask { length, fails_after: some(&mut random, 30), time_per_token: Duration::from_millis(millis) },
            begins_twice: random.per_mille(50),
            settles_twice: random.per_mille(100),
            marks_late: random.per_mille(100),
            patience: Duration::from_millis(if random.per_mille(30) { random.between(1, 10) } else { 10_000 }),
        }
    }

    /// The credit that is bought just before a request: some accounts get about what they need, others less.
    pub fn top_up(&self, number: u64) -> Option<(AccountName, Nano)> {
        let amount = |account: u64| 500_000 + 900_000 * account as Nano;
        let at = number.is_multiple_of(TOP_UP_EVERY).then_some(number / TOP_UP_EVERY % ACCOUNTS)?;
        Some((self.accounts[at as usize].0.clone(), amount(at)))
    }

    /// What a database does that fails now and then.
    pub fn faults(self: &Arc<Self>) -> Faults {
        let world = self.clone();
        Faults::new(move || world.fault())
    }

    fn fault(&self) -> Option<Fault> {
        if self.calm.load(Ordering::SeqCst) {
            return None;
        }
        let away = |left: u64| left.checked_sub(1);
        if self.away.fetch_update(Ordering::SeqCst, Ordering::SeqCst, away).is_ok() {
            self.counts.failed.fetch_add(1, Ordering::SeqCst);
            return Some(Fault::Fails);
        }
        let (drawn, number) = self.random(|random| (random.between(0, 999), random.between(1, 6)));
        let (fault, count) = match drawn {
            0..10 => (Fault::Fails, &self.counts.failed),
            10..20 => (Fault::Loses, &self.counts.lost),
            20..40 => (Fault::Stalls(Duration::from_millis(number)), &self.counts.stalled),
            40 => {
                self.away.store(number, Ordering::SeqCst);
                (Fault::Fails, &self.counts.failed)
            }
            _ => return None,
        };
        count.fetch_add(1, Ordering::SeqCst);
        Some(fault)
    }
}

/// Two are unlimited, one of them free; the others prepaid.
async fn open_account(db: &Db, prices: &Prices, number: u64) -> (AccountName, Option<(i64, Rates)>) {
    let name = account(db, &format!("account-{number}")).await;
    if number > 1 {
        billing::Ledger::new(db.clone()).set_credit(&name, Credit::Prepaid, &change()).await.expect("nothing is owed");
    }
    if number == 0 {
        return (name, None);
    }
    // Odd, so that costs are rounded.
    let rates =
        Rates { input: 100_000_001 * number as i64, cached_input: 9_999_999, output: 400_000_007, ..Rates::default() };
    let new = NewPrice { account: Some(name.clone()), model: None, rates, starts_ms: None };
    let price = prices.add(new, &noted).await.expect("the price is written");
    (name, Some((price.version, rates)))
}
