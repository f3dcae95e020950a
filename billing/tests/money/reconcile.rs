//! The reconciler finds every kind of damage, names its place, and finds none in books that are whole.

use billing::{Command, Extent, Reconciliation, reconcile};
use platform::testing::databases;
use platform::units::{HOUR_MS, Month, now_ms};
use platform::{AccountName, Db};

use crate::support::{Shop, account, prepaid};

/// What is done to the books behind their back, `$ID` for the id of a request of the account `acme`, and the checks that then fail.
const DAMAGE: [(&str, &[&str]); 16] = [
    (
        // A second charge for a request that has one; it balances.
        "INSERT INTO ledger_transactions (id, account, kind, amount, outcome, created_ms) \
         SELECT 'settles' || $ID, account, kind, amount, outcome, created_ms FROM ledger_transactions WHERE id = 'settle ' || $ID; \
         INSERT INTO ledger_entries (transaction_id, book, amount) SELECT 'settles' || $ID, book, amount FROM ledger_entries \
         WHERE transaction_id = 'settle ' || $ID",
        &["every settlement has its request", "ledger = reservations, held", "statement = requests, requests"],
    ),
    (
        // For no request at all, out of what the account has.
        "INSERT INTO ledger_transactions (id, account, kind, amount, outcome, created_ms) \
         SELECT 'settle nothing', account, kind, amount, outcome, created_ms FROM ledger_transactions WHERE id = 'settle ' || $ID; \
         INSERT INTO ledger_entries (transaction_id, book, amount) VALUES ('settle nothing', 'available', -2), \
         ('settle nothing', 'revenue', 2); UPDATE balances SET available = available - 2 WHERE account = 'acme'",
        &["every settlement has its request", "statement = requests, requests"],
    ),
    // Another account pays.
    (
        "UPDATE ledger_transactions SET account = 'other' WHERE id = 'settle ' || $ID",
        &["every settlement has its request", "ledger = reservations, held", "statement = requests, requests"],
    ),
    // The transaction says another amount than its entries.
    (
        "UPDATE ledger_transactions SET amount = amount + 1 WHERE id = 'settle ' || $ID",
        &["statement, lines = balance", "statement = ledger, requests"],
    ),
    // The entries say another amount than the row costs.
    (
        "UPDATE ledger_entries SET amount = amount * 2 WHERE transaction_id = 'settle ' || $ID",
        &[
            "requests = ledger, cost",
            "ledger = reservations, held",
            "statement, lines = balance",
            "statement = ledger, requests",
        ],
    ),
    (
        "UPDATE ledger_entries SET amount = amount + 1 WHERE transaction_id = 'settle ' || $ID AND book = 'revenue'",
        &["requests = ledger, cost", "every transaction sums to zero", "statement = ledger, requests"],
    ),
    // Two rows of one account change places: every sum of the account stays.
    (
        "UPDATE requests SET base = 'maxi' WHERE id = $ID; \
         UPDATE requests SET base = 'mini' WHERE id = (SELECT MIN(id) FROM requests WHERE base = 'maxi' AND id <> $ID)",
        &["usage = requests, cost"],
    ),
    ("UPDATE requests SET started_ms = started_ms - HOUR WHERE id = $ID", &["usage = requests, requests"]),
    (
        "UPDATE requests SET completion_tokens = 2 WHERE id = $ID",
        &["usage = requests, completion", "requests = ledger, cost"],
    ),
    ("UPDATE requests SET cached_tokens = 1 WHERE id = $ID", &["usage = requests, cached"]),
    ("UPDATE requests SET adapter = 'acme/sql' WHERE id = $ID", &["usage = requests, requests"]),
    ("UPDATE requests SET key_id = 'stolen' WHERE id = $ID", &["usage = requests, cost"]),
    (
        // One pays for another: all sums stay.
        "UPDATE ledger_entries SET amount = amount * 2 WHERE transaction_id = 'settle ' || $ID; \
         UPDATE ledger_transactions SET amount = amount * 2 WHERE id = 'settle ' || $ID; \
         UPDATE ledger_entries SET amount = 0 WHERE transaction_id = (SELECT MIN('settle ' || id) FROM requests WHERE account = 'acme' \
         AND base = 'mini' AND price_version IS NOT NULL AND id <> $ID); \
         UPDATE ledger_transactions SET amount = 0 WHERE id = (SELECT MIN('settle ' || id) FROM requests WHERE account = 'acme' \
         AND base = 'mini' AND price_version IS NOT NULL AND id <> $ID)",
        &["every request is charged what it costs"],
    ),
    ("UPDATE usage_hours SET cost = cost + 1 WHERE account = 'acme'", &["usage = requests, cost"]),
    (
        "UPDATE usage_hours SET requests = requests + 1 WHERE account = 'acme'",
        &["usage = requests, requests", "engine = usage, requests"],
    ),
    ("UPDATE balances SET available = available + 1 WHERE account = 'acme'", &["ledger = balance, available"]),
];

async fn look(shop: &Shop, extent: Extent) -> Reconciliation {
    reconcile(&shop.server.journal, &shop.engine, now_ms() - HOUR_MS, extent).await.unwrap()
}

async fn books(db: &Db) -> (Shop, AccountName) {
    let (acme, other) = (prepaid(db, "acme", 1_000).await, account(db, "other").await);
    let shop = Shop::open(db).await;
    let (price, dear) = (shop.price(2).await, shop.price(5).await);
    for account in [&acme, &other] {
        shop.use_up(account, "mini", Some(&price), 3).await;
        shop.use_up(account, "maxi", Some(&dear), 2).await;
        shop.use_up(account, "mini", None, 1).await;
    }
    let refund = Command::Refund { amount: 3 };
    shop.server.ledger.apply("sorry", &acme, &refund, None, "me").await.unwrap().unwrap();
    (shop, acme)
}

#[tokio::test]
async fn every_damage_is_found_and_its_place_is_named() {
    for (damage, expected) in DAMAGE {
        for db in databases().await {
            let (shop, acme) = books(&db).await;
            for extent in [Extent::Since, Extent::Whole] {
                let found = look(&shop, extent).await;
                assert!(found.listed.is_empty() && found.compared > 20, "{found:?}");
            }
            let rows = shop.server.journal.list(&acme, None, 100).await.unwrap();
            let charged = rows.iter().find(|row| row.base == "mini" && row.price_version.is_some()).unwrap();
            let damage = damage.replace("$ID", &format!("'{}'", charged.id)).replace("HOUR", &HOUR_MS.to_string());
            for statement in damage.split("; ") {
                let done = sqlx::query(sqlx::AssertSqlSafe(statement.to_owned())).execute(db.pool()).await.unwrap();
                assert!(done.rows_affected() > 0, "{statement}");
            }
            let found = look(&shop, Extent::Whole).await;
            for check in expected {
                let named = found.listed.iter().find(|one| one.check == *check);
                let named = named.unwrap_or_else(|| panic!("{damage}: not found: {check} in {found:#?}"));
                assert!(["acme", "other"].iter().any(|account| named.subject.starts_with(account)), "{named:?}");
            }
            assert_eq!(found.differences, found.listed.len() as u64);
        }
    }
}

#[tokio::test]
async fn a_look_at_the_last_hours_leaves_what_is_older_to_a_whole_one() {
    for db in databases().await {
        let (shop, _) = books(&db).await;
        let last_month = Month::of_ms(now_ms()).start_ms() - HOUR_MS;
        for sql in [
            "UPDATE ledger_transactions SET created_ms = $1 WHERE id = 'sorry'",
            "INSERT INTO ledger_transactions (id, account, kind, amount, outcome, created_ms) VALUES ('old', 'acme', 'settle', 1, 'done', $1)",
        ] {
            sqlx::query(sql).bind(last_month).execute(db.pool()).await.unwrap();
        }
        let found = look(&shop, Extent::Whole).await;
        assert_eq!(found.listed, [], "the months before are none of this look's");
        let found = reconcile(&shop.server.journal, &shop.engine, last_month, Extent::Whole).await.unwrap();
        let checks: Vec<&str> = found.listed.iter().map(|one| one.check).collect();
        assert!(checks.contains(&"every settlement has its request"), "{found:?}");
    }
}
