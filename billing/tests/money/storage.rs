//! Storage by the hour: charged once whoever asks and whatever fails, never below zero, and the same in every place that shows it.

use billing::{
    Book, Buckets, Command, Credit, Dimension, EngineCounts, Extent, Fault, GroupBy, Ledger, NewPrice, Price, Prices,
    Rates, Storage, Stored, reconcile,
};
use platform::testing::{change, databases, noted};
use platform::units::{DAY_MS, HOUR_MS, Month, now_ms};
use platform::{AccountName, Db};

use crate::support::{Server, account, faults, prepaid};

/// Its hour costs 4 nano-dollars at a cent per GB-month.
const BYTES: u64 = 292_000;

fn stored(account: &AccountName, name: &str, bytes: u64) -> Stored {
    Stored { account: account.clone(), adapter: format!("{account}/{name}"), base: "mini".into(), bytes }
}

/// An hour that begins after the prices of the test.
fn next_hour() -> i64 {
    now_ms() / HOUR_MS + 1
}

async fn priced(prices: &Prices, model: Option<&str>, storage: Option<i64>) -> Price {
    let rates = Rates { storage, ..Rates::default() };
    prices
        .add(NewPrice { account: None, model: model.map(str::to_owned), rates, starts_ms: None }, &noted)
        .await
        .unwrap()
}

async fn charge(storage: &Storage, hour: i64, stored: &[Stored]) -> usize {
    let due = storage.due(hour, stored).await.unwrap();
    storage.charge(&stored[0].account, &due).await.unwrap()
}

async fn rows(db: &Db) -> i64 {
    use sqlx::Row;
    sqlx::query("SELECT COUNT(*) AS rows FROM storage_hours").fetch_one(db.pool()).await.unwrap().get("rows")
}

#[tokio::test]
async fn an_hour_is_charged_once_however_many_servers_ask_and_whatever_their_commits_do() {
    for db in databases().await {
        let (acme, hour) = (account(&db, "acme").await, next_hour());
        let prices = Prices::open(db.clone()).await.unwrap();
        let plain = Storage::new(Ledger::new(db.clone()), prices.clone());
        let all = [stored(&acme, "small", BYTES), stored(&acme, "large", 2 * BYTES), stored(&acme, "free", BYTES)];
        assert!(!plain.has_prices());
        assert_eq!((charge(&plain, hour, &all).await, rows(&db).await), (0, 0), "without a price nothing is written");

        priced(&prices, None, Some(10_000_000)).await;
        priced(&prices, Some("mini"), None).await;
        priced(&prices, Some("acme/free"), Some(0)).await;
        assert_eq!(charge(&plain, hour - 1, &all).await, 0, "prices do not reach back");
        assert_eq!(plain.last_hour().await.unwrap(), None);
        let broken = faults([Some(Fault::Fails), Some(Fault::Loses), Some(Fault::Loses)]);
        let failing = Storage::new(Ledger::with_faults(db.clone(), broken), prices.clone());
        for hour in [hour, hour + 1] {
            let due = failing.due(hour, &all).await.unwrap();
            failing.charge(&acme, &due).await.unwrap_err();
        }
        let at_once = (0..4).map(|_| async {
            let (first, second) = (charge(&plain, hour, &all).await, charge(&plain, hour + 1, &all).await);
            first + second
        });
        assert_eq!(
            futures::future::join_all(at_once).await.iter().sum::<usize>(),
            2,
            "the other hour is written already"
        );
        assert_eq!(plain.last_hour().await.unwrap(), Some(hour + 1));
        let ledger = Ledger::new(db.clone());
        assert_eq!(ledger.balance(&acme).await.unwrap().available, -2 * (4 + 8));
        let ids: Vec<String> = ledger.list(&acme, None, 9).await.unwrap().into_iter().map(|row| row.id).collect();
        assert!(ids.len() == 4 && ids.contains(&format!("storage acme/large {hour}")), "{ids:?}");
    }
}

#[tokio::test]
async fn what_a_prepaid_account_cannot_pay_is_free_and_said_everywhere() {
    for db in databases().await {
        let (acme, hour) = (prepaid(&db, "acme", 10).await, next_hour());
        let prices = Prices::open(db.clone()).await.unwrap();
        let price = priced(&prices, None, Some(10_000_000)).await;
        let server = Server::start(&db).await;
        let storage = Storage::new(server.ledger.clone(), prices);
        let all = [stored(&acme, "sql", BYTES)];
        for hour in hour..hour + 3 {
            assert_eq!(charge(&storage, hour, &all).await, 1);
        }
        let top_up = Command::TopUp { amount: 100 };
        server.ledger.apply("more", &acme, &top_up, None, "me").await.unwrap().unwrap();
        assert_eq!(charge(&storage, hour + 2, &all).await, 0, "what was free stays free");
        let balance = server.ledger.balance(&acme).await.unwrap();
        assert_eq!((balance.credit, balance.available), (Credit::Prepaid, 102));
        assert_eq!(server.book(&acme, Book::Revenue).await, 8);

        let statement = server.ledger.statement(&acme, Month::of_ms(now_ms())).await.unwrap();
        let [line] = &statement.storage[..] else { panic!("{statement:?}") };
        assert_eq!((line.adapter.as_str(), line.price_version, line.hours), ("acme/sql", price.version, 3));
        assert_eq!((line.byte_hours, line.uncharged_byte_hours, line.amount), (3 * BYTES, BYTES, -8));
        let credits: i64 = statement.credits.iter().map(|line| line.amount).sum();
        assert_eq!(statement.opening + credits + line.amount, statement.closing);

        let (from, to) = (hour * HOUR_MS, (hour + 3) * HOUR_MS);
        for by in [&[][..], &[GroupBy::Key], &[GroupBy::Model, GroupBy::Adapter], &[GroupBy::Day]] {
            let usage = server.journal.usage(&acme, by, from, to).await.unwrap();
            let stored: Vec<_> = usage.iter().map(|row| (row.storage.byte_hours, row.cost_nano_usd)).collect();
            let sum = stored.iter().fold((0, 0), |sum, row| (sum.0 + row.0, sum.1 + row.1));
            assert_eq!(sum, (3 * BYTES, 8), "{by:?} {usage:?}");
        }
        let by_adapter = server.journal.usage(&acme, &[GroupBy::Adapter], from, to).await.unwrap();
        assert_eq!(by_adapter[0].group, [Some("acme/sql".to_owned())]);
        for (only, expected) in [
            (vec![], 8),
            (vec![(Dimension::Model, vec!["acme/sql, storage".to_owned()])], 8),
            (vec![(Dimension::Model, vec!["acme/sql".to_owned()])], 0),
            (vec![(Dimension::Key, vec!["key".to_owned()])], 0),
        ] {
            let asked = Buckets { from_ms: from, to_ms: to, width_ms: DAY_MS, by: vec![Dimension::Model], only };
            let costs = server.journal.costs(&acme, &asked).await.unwrap();
            assert_eq!(costs.iter().map(|row| row.cost_nano_usd).sum::<i64>(), expected, "{asked:?}");
            assert!(server.journal.buckets(&acme, &asked).await.unwrap().is_empty(), "storage is no request");
        }

        let look =
            async || reconcile(&server.journal, &EngineCounts::default(), now_ms(), Extent::Whole).await.unwrap();
        let found = look().await;
        assert!(found.differences == 0 && found.compared > 0, "{found:?}");
        let wrong = sqlx::query("UPDATE storage_hours SET byte_hours = byte_hours + 1000000000 WHERE hour = $1");
        wrong.bind(hour).execute(db.pool()).await.unwrap();
        let found = look().await;
        let checks: Vec<&str> = found.listed.iter().map(|one| one.check).collect();
        assert_eq!(checks, ["storage = ledger, cost"]);
    }
}

#[tokio::test]
async fn a_month_in_which_nothing_was_but_storage_for_free_has_a_statement() {
    for db in databases().await {
        let (acme, hour) = (account(&db, "acme").await, next_hour());
        let ledger = Ledger::new(db.clone());
        ledger.set_credit(&acme, Credit::Prepaid, &change()).await.unwrap();
        let prices = Prices::open(db.clone()).await.unwrap();
        priced(&prices, None, Some(10_000_000)).await;
        assert_eq!(charge(&Storage::new(ledger.clone(), prices), hour, &[stored(&acme, "sql", BYTES)]).await, 1);
        let month = Month::of_ms(now_ms());
        assert_eq!(ledger.statement_months(&acme).await.unwrap(), [month]);
        assert_eq!(ledger.statement(&acme, month).await.unwrap().storage[0].uncharged_byte_hours, BYTES);
    }
}
