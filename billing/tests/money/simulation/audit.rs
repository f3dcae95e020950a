//! The end of a simulation: what is left is closed, and every request, entry and balance is looked at.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use billing::{AHEAD, Book, EngineCounts, Extent, Finish, Nano, Quantities, reconcile};
use platform::Db;
use platform::units::{DAY_MS, now_ms};
use sqlx::Row;

use super::gateway::Gateway;
use super::world::{Seen, View, World};

/// What came out; amounts in nano-dollars.
#[derive(Debug, Default, Clone)]
pub struct Report {
    pub requests: u64,
    pub finished: u64,
    pub refused: u64,
    /// With an end that is not the answer's: left by the client, failed, or not told in time.
    pub failed: u64,
    /// Closed after a kill at the last mark, and killed before there was a row.
    pub interrupted: u64,
    pub rowless: u64,
    pub tokens_delivered: u64,
    pub tokens_charged: u64,
    /// Delivered after the last mark that was durable at a kill, and not charged: altogether, and of one request at most.
    pub lost: u64,
    pub most_lost: u64,
    pub granted: Nano,
    pub revenue: Nano,
    pub counts: [u64; 8],
}

impl Report {
    pub fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.finished += other.finished;
        self.refused += other.refused;
        self.failed += other.failed;
        self.interrupted += other.interrupted;
        self.rowless += other.rowless;
        self.tokens_delivered += other.tokens_delivered;
        self.tokens_charged += other.tokens_charged;
        self.lost += other.lost;
        self.most_lost = self.most_lost.max(other.most_lost);
        self.granted += other.granted;
        self.revenue += other.revenue;
        (0..self.counts.len()).for_each(|at| self.counts[at] += other.counts[at]);
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [kills, stops, failed, lost, stalled, repeats, jumps, taken_for_dead] = self.counts;
        writeln!(
            f,
            "{} requests: {} finished, {} refused, {} failed or left, {} interrupted, {} killed before their row",
            self.requests, self.finished, self.refused, self.failed, self.interrupted, self.rowless
        )?;
        writeln!(
            f,
            "  {kills} kills, {stops} stops, {failed} commits failed, {lost} answers lost, {stalled} stalls, {repeats} repeats, \
             {jumps} clock jumps, {taken_for_dead} taken for dead"
        )?;
        let difference = self.tokens_delivered - self.tokens_charged - self.lost;
        writeln!(
            f,
            "  {} tokens delivered, {} charged, {} delivered after the last durable mark before a kill (at most {} of a request, bound \
             {AHEAD}); difference {difference}",
            self.tokens_delivered, self.tokens_charged, self.lost, self.most_lost
        )?;
        write!(f, "  {} nano-dollars granted, {} charged", self.granted, self.revenue)
    }
}

/// Starts once more without faults, as the operator who looks after the accident, and checks everything.
pub async fn settle_up(world: &Arc<World>) -> Report {
    let db = Db::open(&world.url).await.expect("the database opens");
    // Nobody else lives; on SQLite that needs no proof.
    sqlx::query("UPDATE instances SET seen_ms = 0").execute(db.pool()).await.expect("the database answers");
    let gateway = Gateway::start(world, db.clone(), i64::MAX).await;
    for number in 0..world.requests {
        gateway.top_up(number).await;
    }
    gateway.stop().await;
    let mut report = Report { requests: world.requests, counts: counts(world), ..Report::default() };
    let rows = rows(&db).await;
    let charges = charges(&db).await;
    for number in 0..world.requests {
        let view = world.view(number).clone();
        let id = view.id.as_ref().map(ToString::to_string).unwrap_or_default();
        let (row, charge) = (rows.get(&id), charges.get(&id).copied().unwrap_or(0));
        check_request(&view, row, charge, &mut report);
    }
    let known = (0..world.requests).filter(|number| {
        let view = world.view(*number);
        view.id.as_ref().is_some_and(|id| rows.contains_key(id.as_str()))
    });
    assert_eq!(known.count(), rows.len(), "a row belongs to no request");
    check_accounts(world, &gateway, &db, &rows, &mut report).await;
    drop(gateway);
    db.close().await;
    report
}

fn counts(world: &World) -> [u64; 8] {
    let counts = &world.counts;
    let (dead, jumps) = (&counts.taken_for_dead, &counts.clock_jumps);
    [&counts.kills, &counts.stops, &counts.failed, &counts.lost, &counts.stalled, &counts.repeats, jumps, dead]
        .map(|count| count.load(Ordering::SeqCst))
}

struct Settled {
    account: String,
    quantities: Quantities,
    finish: String,
    cost: Nano,
}

async fn rows(db: &Db) -> HashMap<String, Settled> {
    let prices = billing::Prices::open(db.clone()).await.expect("prices are read");
    let rows = sqlx::query("SELECT * FROM requests").fetch_all(db.pool()).await.expect("the database answers");
    let of = |row: &platform::DbRow| {
        let count = |column| row.get::<i64, _>(column) as u64;
        let quantities = Quantities {
            prompt_tokens: count("prompt_tokens"),
            cached_tokens: count("cached_tokens"),
            completion_tokens: count("completion_tokens"),
        };
        let finish: String = row.get("finish");
        let rates = row.get::<Option<i64>, _>("price_version").and_then(|version| prices.rates(version));
        let cost = rates.map_or(0, |rates| rates.cost(&quantities, &finish));
        (row.get("id"), Settled { account: row.get("account"), quantities, finish, cost })
    };
    rows.iter().map(of).collect()
}

/// What each request has paid, by the ledger's entries.
async fn charges(db: &Db) -> HashMap<String, Nano> {
    let sql = "SELECT transaction_id, amount FROM ledger_entries WHERE book = 'revenue'";
    let rows = sqlx::query(sql).fetch_all(db.pool()).await.expect("the database answers");
    let of = |row: &platform::DbRow| {
        let id: String = row.get("transaction_id");
        (id.strip_prefix("settle ").expect("only requests are charged").to_owned(), row.get("amount"))
    };
    rows.iter().map(of).collect()
}

fn check_request(view: &View, row: Option<&Settled>, charge: Nano, report: &mut Report) {
    let id = view.id.as_ref().map(ToString::to_string).unwrap_or_default();
    report.tokens_delivered += view.delivered;
    assert_eq!(charge, row.map_or(0, |row| row.cost), "{id} is charged what its row costs");
    let Some(row) = row else {
        assert_eq!(view.delivered, 0, "{id} was delivered without a row");
        assert!(matches!(view.seen, None | Some(Seen::Refused | Seen::NotBegun)), "{id} {view:?}");
        let refused = view.seen.is_some();
        *if refused { &mut report.refused } else { &mut report.rowless } += 1;
        return;
    };
    assert_ne!(row.finish, "running", "{id} still runs");
    let settled = view.settling.filter(|_| row.finish != "interrupted");
    report.tokens_charged += row.quantities.completion_tokens;
    match (view.seen, settled) {
        (Some(Seen::Finished { cost }), settled) => {
            let (quantities, finish) = settled.expect("what a client saw finished is not interrupted");
            assert_eq!((row.quantities, row.finish.as_str()), (quantities, finish.name()), "{id}");
            assert_eq!((quantities.completion_tokens, charge), (view.delivered, cost), "{id}");
            report.finished += 1;
        }
        (Some(Seen::Refused), _) => panic!("{id} was refused and has a row"),
        (Some(Seen::NotBegun), _) => {
            assert_eq!((row.quantities, view.delivered, charge), (Quantities::default(), 0, 0), "{id}");
            report.refused += 1;
        }
        (seen, Some((quantities, finish))) => {
            assert_eq!((row.quantities, row.finish.as_str()), (quantities, finish.name()), "{id}");
            assert_eq!(quantities.completion_tokens, view.delivered, "{id}");
            *if seen.is_some() { &mut report.failed } else { &mut report.interrupted } += 1;
        }
        // Killed while it waited for the row that it gave up later.
        (None, None) if row.finish == Finish::Error.name() => {
            assert_eq!((row.quantities, view.delivered, charge), (Quantities::default(), 0, 0), "{id}");
            report.rowless += 1;
        }
        (seen, None) => check_interrupted(view, row, seen, report),
    }
}

/// Killed before it was settled, or before that was durable.
fn check_interrupted(view: &View, row: &Settled, seen: Option<Seen>, report: &mut Report) {
    let charged = row.quantities.completion_tokens;
    assert_eq!(row.finish, "interrupted", "{view:?}");
    assert!(matches!(seen, None | Some(Seen::Failed)), "{view:?}");
    assert!(view.durable <= charged && charged <= view.delivered, "{charged} {view:?}");
    let lost = view.delivered - charged;
    assert!(lost <= AHEAD, "{charged} {view:?}");
    report.lost += lost;
    report.most_lost = report.most_lost.max(lost);
    report.interrupted += 1;
}

async fn check_accounts(
    world: &World,
    gateway: &Gateway,
    db: &Db,
    rows: &HashMap<String, Settled>,
    report: &mut Report,
) {
    for (account, _) in &world.accounts {
        let books = gateway.ledger.sums(account).await.expect("the ledger answers");
        let book = |book: Book| books.get(book.name()).copied().unwrap_or(0);
        let balance = gateway.ledger.balance(account).await.expect("the ledger answers");
        let bought = (0..world.requests).filter_map(|number| world.top_up(number));
        let granted: Nano = bought.filter(|(name, _)| name == account).map(|(_, amount)| amount).sum();
        let costs: Nano = rows.values().filter(|row| row.account == account.as_str()).map(|row| row.cost).sum();
        assert_eq!(books.values().sum::<Nano>(), 0, "{account}: the entries lose or make money");
        assert_eq!((balance.held, book(Book::Held)), (0, 0), "{account}: something stays reserved");
        assert_eq!(book(Book::Revenue), costs, "{account}: revenue is what the rows cost");
        assert_eq!(-book(Book::Funding), granted, "{account}: each top-up counts once");
        assert_eq!((balance.available, book(Book::Available)), (granted - costs, granted - costs), "{account}");
        let owes = balance.credit == billing::Credit::Unlimited;
        assert!(owes || balance.available >= 0, "{account} has spent what it did not have");
        report.granted += granted;
        report.revenue += costs;
    }
    check_reservations(world, db).await;
    let found = reconcile(&gateway.journal, &EngineCounts::default(), now_ms() - 3 * DAY_MS, Extent::Whole)
        .await
        .expect("the books are read");
    assert_eq!(found.listed, [], "the reconciler takes these books for wrong");
}

/// What was set aside under a name was settled or given back, all of it, and the name is closed.
async fn check_reservations(world: &World, db: &Db) {
    let rows = sqlx::query(
        "SELECT r.id, r.amount, r.settled, r.closed_ms, \
         CAST(COALESCE(SUM(CASE WHEN t.kind IN ('reserve', 'extend') THEN t.amount ELSE 0 END), 0) AS BIGINT) AS reserved, \
         CAST(COALESCE(SUM(CASE WHEN t.kind = 'settle' THEN t.amount ELSE 0 END), 0) AS BIGINT) AS charged, \
         CAST(COALESCE(SUM(CASE WHEN t.kind IN ('void', 'release') THEN t.amount ELSE 0 END), 0) AS BIGINT) AS given_back \
         FROM reservations r JOIN ledger_transactions t ON t.reservation = r.id AND t.outcome = 'done' \
         GROUP BY r.id, r.amount, r.settled, r.closed_ms",
    );
    for row in rows.fetch_all(db.pool()).await.expect("the database answers") {
        let [amount, settled, reserved, charged, given_back] =
            ["amount", "settled", "reserved", "charged", "given_back"].map(|column| row.get::<Nano, _>(column));
        let id: String = row.get("id");
        assert!(
            world.buries_the_living() || !id.starts_with("late "),
            "{id}: a server that lives has given out what it did not hold"
        );
        assert!(row.get::<Option<i64>, _>("closed_ms").is_some(), "{id} is open");
        assert_eq!((amount, settled, reserved), (0, charged, charged + given_back), "{id}");
    }
}
