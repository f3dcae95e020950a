//! Rows under repeats, lost answers and clocks that jump.

use billing::{Book, Fault, Faults, Finish, NewPrice, NewRequest, Prices, Quantities, Rates};
use platform::testing::{databases, noted};
use platform::{AccountName, Db, DbKind};

use crate::support::{Server, faults, prepaid, request, spender};

const fn tokens(count: u64) -> Quantities {
    Quantities { prompt_tokens: 5, cached_tokens: 0, completion_tokens: count }
}

#[tokio::test]
async fn of_settlements_that_arrive_together_the_first_one_counts() {
    for db in databases().await {
        let account = prepaid(&db, "acme", 10_000).await;
        let server = Server::start(&db).await;
        for others in 0..4 {
            let request = request(&account);
            server.journal.begin(&request).await.unwrap();
            let charge = server.wallets.reserve(&spender(&account), 100, 100).await.unwrap().unwrap().settle(10);
            let before = server.book(&account, Book::Revenue).await;
            let (journal, id) = (&server.journal, &request.id);
            let first = journal.settle(id, tokens(10), Finish::Stop, charge.clone());
            // With the same charge, as a delivery that comes twice, and with none, as an error that comes late.
            let rest = (0..others).map(|number| {
                let (charge, finish) =
                    if number % 2 == 0 { (charge.clone(), Finish::Stop) } else { (None, Finish::Error) };
                journal.settle(id, tokens(10 * (1 - number % 2)), finish, charge)
            });
            let (first, rest) = futures::future::join(first, futures::future::join_all(rest)).await;
            assert!(first.unwrap(), "{others}");
            for (number, same) in rest.into_iter().enumerate() {
                assert_eq!(same.unwrap(), number % 2 == 0, "{number} of {others}");
            }
            let row = &server.journal.list(&account, None, 1).await.unwrap()[0];
            assert_eq!((row.quantities, row.finish.as_str()), (tokens(10), "stop"), "{others}");
            assert_eq!(server.book(&account, Book::Revenue).await - before, 10, "{others}");
        }
    }
}

#[tokio::test]
async fn a_request_is_charged_once_though_the_answers_of_the_database_are_lost() {
    for db in databases().await {
        let account = prepaid(&db, "acme", 1_000).await;
        let planned = [Some(Fault::Loses), Some(Fault::Fails), Some(Fault::Loses), None];
        let server = Server::failing(&db, Faults::default(), faults(planned.into_iter().cycle().take(40))).await;
        for _ in 0..5 {
            let request = request(&account);
            server.journal.begin(&request).await.unwrap();
            drop(server.journal.mark(&request.id, tokens(1)).unwrap());
            server.journal.flush().await.unwrap();
            let charge = server.wallets.reserve(&spender(&account), 20, 20).await.unwrap().unwrap().settle(10);
            let settled = server.journal.settle(&request.id, tokens(10), Finish::Stop, charge).await.unwrap();
            assert!(settled, "its own settlement was taken for somebody else's");
        }
        assert_eq!(server.book(&account, Book::Revenue).await, 50);
        let rows = server.journal.list(&account, None, 10).await.unwrap();
        assert!(rows.len() == 5 && rows.iter().all(|row| row.quantities == tokens(10) && row.finish == "stop"));
    }
}

#[tokio::test]
async fn a_clock_that_was_set_back_does_not_keep_a_dead_server_alive() {
    for db in databases().await.into_iter().filter(|db| db.kind() == DbKind::Sqlite) {
        let account = prepaid(&db, "acme", 1_000).await;
        let dead = Server::start(&db).await;
        let request = request(&account);
        dead.journal.begin(&request).await.unwrap();
        let _hold = dead.wallets.reserve(&spender(&account), 100, 100).await.unwrap().unwrap();
        // A clock that was set back by an hour is the same as times that lie an hour ahead.
        sqlx::query("UPDATE instances SET seen_ms = seen_ms + 3600000").execute(db.pool()).await.unwrap();
        let next = Server::start(&db).await;
        let rows = next.journal.list(&account, None, 10).await.unwrap();
        assert_eq!(rows[0].finish, "interrupted");
        assert_eq!(next.ledger.balance(&account).await.unwrap().held, 0);
    }
}

/// A request at one nano-dollar for each completion token.
async fn priced(db: &Db, account: &AccountName) -> NewRequest {
    let prices = Prices::open(db.clone()).await.unwrap();
    let rates = Rates { output: 1_000_000, ..Rates::default() };
    let price = prices.add(NewPrice { account: None, model: None, rates, starts_ms: None }, &noted).await.unwrap();
    NewRequest { price_version: Some(price.version), ..request(account) }
}

#[tokio::test]
async fn a_server_that_was_taken_for_dead_charges_nothing_twice_and_nothing_for_nothing() {
    for db in databases().await {
        let account = prepaid(&db, "acme", 1_000).await;
        let first = Server::start(&db).await;
        let [before, after, broke, fresh] =
            [priced(&db, &account).await, priced(&db, &account).await, priced(&db, &account).await, request(&account)];
        let reserve = async |server: &Server, amount| {
            server.wallets.reserve(&spender(&account), amount, amount).await.unwrap().unwrap()
        };
        let settle = async |request: &NewRequest, hold: billing::Hold, count: u64| {
            let charge = hold.settle(count as i64);
            first.journal.settle(&request.id, tokens(count), Finish::Stop, charge).await.unwrap()
        };
        let [held, stale, gone] = [reserve(&first, 100).await, reserve(&first, 100).await, reserve(&first, 100).await];
        first.journal.begin(&before).await.unwrap();
        drop(first.journal.mark(&before.id, tokens(10)).unwrap());
        first.journal.flush().await.unwrap();
        first.looks_dead(&db).await;
        let second = Server::start(&db).await;
        // What ran is closed at its mark. What begins now, on credit that has gone back, is paid from where it went.
        assert!(!settle(&before, held, 50).await);
        first.journal.begin(&after).await.unwrap();
        assert!(settle(&after, stale, 20).await);
        first.journal.begin(&fresh).await.unwrap();
        assert!(settle(&fresh, reserve(&first, 30).await, 30).await);
        // Unless somebody else was faster.
        first.wallets.give_back_all().await.unwrap();
        let all = reserve(&second, 940).await;
        first.journal.begin(&broke).await.unwrap();
        assert!(!settle(&broke, gone, 40).await);
        drop(all);
        second.wallets.give_back_all().await.unwrap();
        let balance = second.ledger.balance(&account).await.unwrap();
        assert_eq!((balance.available, balance.held, second.book(&account, Book::Revenue).await), (940, 0, 60));
        let rows = second.journal.list(&account, None, 10).await.unwrap();
        let row = |request: &NewRequest| {
            let row = rows.iter().find(|row| row.id == request.id.as_str()).unwrap();
            (row.quantities.completion_tokens, row.finish.clone())
        };
        assert_eq!((row(&before), row(&after)), ((10, "interrupted".into()), (20, "stop".into())));
        assert_eq!((row(&fresh), row(&broke)), ((30, "stop".into()), (0, "error".into())));
    }
}
