//! What these tests begin with.

use std::sync::Mutex;

use billing::{
    Charge, Command, Credit, EngineCounts, Fault, Faults, Finish, Journal, Ledger, Limits, Nano, NewPrice, NewRequest,
    Price, Prices, Quantities, Rates, Spender, Wallets,
};
use platform::testing::{change, noted};
use platform::{AccountName, Db, RequestId};

/// Who spends, with no key of its own.
pub fn spender(account: &AccountName) -> Spender<'_> {
    Spender { account, key_id: "key", adapter: None }
}

/// An account that the database has not seen.
pub async fn account(db: &Db, name: &str) -> AccountName {
    let insert = sqlx::query("INSERT INTO accounts (name, created_ms) VALUES ($1, 0)");
    insert.bind(name).execute(db.pool()).await.expect("the account is written");
    name.parse().expect("a name")
}

/// A prepaid account with so much credit.
pub async fn prepaid(db: &Db, name: &str, amount: Nano) -> AccountName {
    let account = account(db, name).await;
    let ledger = Ledger::new(db.clone());
    ledger.set_credit(&account, Credit::Prepaid, &change()).await.expect("nothing is owed");
    let granted = ledger.apply(&format!("grant-{name}"), &account, &Command::Grant { amount }, None, "test").await;
    granted.expect("the ledger answers").expect("it is granted");
    account
}

/// The money side of one server.
pub struct Server {
    pub journal: Journal,
    pub wallets: Wallets,
    pub ledger: Ledger,
    pub limits: Limits,
}

impl Server {
    pub async fn start(db: &Db) -> Self {
        Self::failing(db, Faults::default(), Faults::default()).await
    }

    /// With a database that fails in the ledger's commits and in the journal's.
    pub async fn failing(db: &Db, ledger: Faults, journal: Faults) -> Self {
        let prices = Prices::open(db.clone()).await.expect("prices are read");
        let (journal, _) = Journal::open_with_faults(db.clone(), prices, journal).await.expect("the journal opens");
        let ledger = Ledger::with_faults(db.clone(), ledger);
        let limits = Limits::open(db.clone()).await.expect("limits are read");
        Self { wallets: Wallets::new(ledger.clone(), journal.clone(), limits.clone()), journal, ledger, limits }
    }

    /// For others it was not seen for long.
    pub async fn looks_dead(&self, db: &Db) {
        let aged = sqlx::query("UPDATE instances SET seen_ms = 0 WHERE id = $1").bind(self.journal.instance());
        aged.execute(db.pool()).await.expect("the database answers");
    }

    /// A row that begins and ends, with what it is charged.
    pub async fn record(&self, account: &AccountName, charge: Option<Charge>) -> RequestId {
        let request = request(account);
        self.journal.begin(&request).await.expect("the row begins");
        let settled = self.journal.settle(&request.id, Quantities::default(), Finish::Stop, charge).await;
        assert!(settled.expect("the row is settled"));
        request.id
    }

    pub async fn book(&self, account: &AccountName, book: billing::Book) -> Nano {
        self.ledger.sums(account).await.expect("sums").get(book.name()).copied().unwrap_or(0)
    }
}

/// A server with prices, whose engines are counted.
pub struct Shop {
    pub server: Server,
    pub prices: Prices,
    pub engine: EngineCounts,
}

impl Shop {
    pub async fn open(db: &Db) -> Self {
        let (server, prices) = (Server::start(db).await, Prices::open(db.clone()).await.unwrap());
        Self { server, prices, engine: EngineCounts::default() }
    }

    /// A price of so many nano-dollars per output token.
    pub async fn price(&self, output: i64) -> Price {
        let rates = Rates { output: output * 1_000_000, ..Rates::default() };
        self.prices.add(NewPrice { account: None, model: None, rates, starts_ms: None }, &noted).await.unwrap()
    }

    /// Requests of one token each, paid for.
    pub async fn use_up(&self, account: &AccountName, base: &str, price: Option<&Price>, requests: usize) {
        let one = async || {
            let request = NewRequest {
                base: base.to_owned(),
                price_version: price.map(|price| price.version),
                ..request(account)
            };
            let cost = price.map_or(0, |price| price.rates.output / 1_000_000);
            let charge = match cost {
                0 => None,
                cost => self.server.wallets.reserve(&spender(account), cost, cost).await.unwrap().unwrap().settle(cost),
            };
            self.server.journal.begin(&request).await.unwrap();
            let used = Quantities { completion_tokens: 1, ..Quantities::default() };
            self.engine.add(account.as_str(), base, used);
            assert!(self.server.journal.settle(&request.id, used, Finish::Stop, charge).await.unwrap());
        };
        futures::future::join_all((0..requests).map(|_| one())).await;
        self.server.wallets.give_back_all().await.unwrap();
    }
}

pub fn request(account: &AccountName) -> NewRequest {
    NewRequest {
        id: RequestId::fresh("chatcmpl"),
        account: account.clone(),
        key_id: "key".into(),
        endpoint: "chat.completions",
        model: "mini".into(),
        base: "mini".into(),
        adapter: None,
        price_version: None,
        tag: None,
        reservation: None,
    }
}

/// These, one after the other, then none.
pub fn faults(planned: impl IntoIterator<Item = Option<Fault>>) -> Faults {
    let planned = Mutex::new(planned.into_iter().collect::<std::collections::VecDeque<_>>());
    Faults::new(move || planned.lock().expect("no panic").pop_front().flatten())
}
