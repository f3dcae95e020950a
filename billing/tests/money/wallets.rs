//! Credit in memory: nobody spends what is not there, nobody is refused what is there, and nothing stays reserved.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use billing::{Book, Fault, Faults, Finish, Hold, Nano, Quantities, Refusal};
use platform::testing::databases;
use platform::{AccountName, Db};

use crate::support::{Server, faults, prepaid, request, spender};

/// What the account has and has paid, when nothing is reserved any more.
async fn rest(server: &Server, account: &AccountName) -> (Nano, Nano) {
    server.wallets.give_back_all().await.unwrap();
    let balance = server.ledger.balance(account).await.unwrap();
    assert_eq!(balance.held, 0, "something stays reserved");
    assert_eq!(balance.available, server.book(account, Book::Available).await);
    (balance.available, server.book(account, Book::Revenue).await)
}

#[tokio::test]
async fn what_a_request_costs_is_taken_and_the_rest_goes_back() {
    for db in databases().await {
        let account = prepaid(&db, "acme", 1_000).await;
        let server = Server::start(&db).await;
        let hold = server.wallets.reserve(&spender(&account), 10, 100).await.unwrap().unwrap();
        assert_eq!(hold.amount(), 100);
        let charge = hold.settle(40).unwrap();
        assert_eq!((&charge.account, charge.amount), (&account, 40));
        server.record(&account, Some(charge)).await;
        drop(server.wallets.reserve(&spender(&account), 10, 100).await.unwrap().unwrap());
        assert!(server.wallets.reserve(&spender(&account), 1, 1).await.unwrap().unwrap().settle(0).is_none());
        assert_eq!(rest(&server, &account).await, (960, 40));
        // It goes on with a new reservation.
        let all = server.wallets.reserve(&spender(&account), 960, 960).await.unwrap().unwrap();
        server.record(&account, all.settle(960)).await;
        assert_eq!(rest(&server, &account).await, (0, 1_000));
    }
}

#[tokio::test]
async fn who_wants_more_than_there_is_gets_a_part_but_never_less_than_the_least() {
    for db in databases().await {
        let account = prepaid(&db, "acme", 100).await;
        let server = Server::start(&db).await;
        let mut hold = server.wallets.reserve(&spender(&account), 10, 5_000).await.unwrap().unwrap();
        assert!((10..=100).contains(&hold.amount()), "{hold:?}");
        let missing = 100 - hold.amount();
        hold.add(hold.more(missing, 5_000, false).await.unwrap().unwrap());
        assert_eq!(hold.amount(), 100);
        assert_eq!(hold.more(1, 1, false).await.unwrap().unwrap_err(), Refusal::InsufficientCredit);
        server.record(&account, hold.settle(30)).await;
        assert_eq!(
            server.wallets.reserve(&spender(&account), 71, 71).await.unwrap().unwrap_err(),
            Refusal::InsufficientCredit
        );
        assert_eq!(rest(&server, &account).await, (70, 30));
    }
}

#[tokio::test]
async fn who_finds_nothing_waits_until_others_give_back() {
    for db in databases().await {
        let account = prepaid(&db, "acme", 100).await;
        let server = Server::start(&db).await;
        let first = server.wallets.reserve(&spender(&account), 100, 100).await.unwrap().unwrap();
        let waits = {
            let (wallets, account) = (server.wallets.clone(), account.clone());
            tokio::spawn(async move { wallets.reserve(&spender(&account), 60, 60).await.unwrap() })
        };
        server.record(&account, first.settle(40)).await;
        let second = waits.await.unwrap().unwrap();
        assert_eq!(second.amount(), 60);
        server.record(&account, second.settle(60)).await;
        assert_eq!(rest(&server, &account).await, (0, 100));
    }
}

#[tokio::test]
async fn when_all_wait_for_each_other_somebody_is_refused_and_the_others_go_on() {
    for db in databases().await {
        let account = prepaid(&db, "acme", 100).await;
        let server = Arc::new(Server::start(&db).await);
        let mut holds = Vec::new();
        for _ in 0..5 {
            holds.push(server.wallets.reserve(&spender(&account), 20, 20).await.unwrap().unwrap());
        }
        let task = |mut hold: billing::Hold| {
            let (server, account) = (server.clone(), account.clone());
            async move {
                let more = hold.more(5, 5, true).await.unwrap();
                let refused = more.is_err();
                more.into_iter().for_each(|more| hold.add(more));
                let cost = if refused { 7 } else { 25 };
                server.record(&account, hold.settle(cost)).await;
                (refused, cost)
            }
        };
        let ended = futures::future::join_all(holds.into_iter().map(task)).await;
        assert!(ended.iter().any(|(refused, _)| *refused), "credit came from nowhere: {ended:?}");
        let spent: Nano = ended.iter().map(|(_, cost)| cost).sum();
        assert_eq!(rest(&server, &account).await, (100 - spent, spent));
    }
}

/// Numbers that look random and are the same each time.
fn scattered(number: usize, most: Nano) -> Nano {
    (number as i64).wrapping_mul(6_364_136_223_846_793_005).rotate_left(23).rem_euclid(most)
}

/// A request that reserves, asks for more and settles; returns what it was charged, 0 if it was refused.
async fn one_request(server: &Server, account: &AccountName, number: usize) -> Nano {
    let least = 1 + scattered(number, 50);
    let wanted = least + scattered(number + 1, 100);
    let Ok(mut hold) = server.wallets.reserve(&spender(account), least, wanted).await.unwrap() else { return 0 };
    let request = request(account);
    server.journal.begin(&request).await.unwrap();
    if number.is_multiple_of(3)
        && let Ok(more) = hold.more(10, 40, number.is_multiple_of(2)).await.unwrap()
    {
        hold.add(more);
    }
    let charge = hold.amount();
    let charge = hold.settle(scattered(number + 2, charge + 1));
    let amount = charge.as_ref().map_or(0, |charge| charge.amount);
    assert!(server.journal.settle(&request.id, Quantities::default(), Finish::Stop, charge).await.unwrap());
    amount
}

async fn many(server: &Arc<Server>, accounts: &[AccountName], requests: usize) -> Vec<Nano> {
    let tasks: Vec<_> = (0..requests)
        .map(|number| {
            let (server, at) = (server.clone(), number % accounts.len());
            let account = accounts[at].clone();
            tokio::spawn(async move { (at, one_request(&server, &account, number).await) })
        })
        .collect();
    let mut spent = vec![0; accounts.len()];
    for task in tasks {
        let (at, amount) = task.await.unwrap();
        spent[at] += amount;
    }
    spent
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_many_requests_at_once_have_paid_and_what_is_left_is_what_was_granted() {
    for db in databases().await {
        let server = Arc::new(Server::start(&db).await);
        let mut accounts = vec![prepaid(&db, "busy", 5_000).await];
        let spent = many(&server, &accounts, 300).await;
        assert_eq!(rest(&server, &accounts[0]).await, (5_000 - spent[0], spent[0]));
        for number in 0..20 {
            accounts.push(prepaid(&db, &format!("account-{number}"), 300 + number).await);
        }
        let fresh = &accounts[1..];
        for (at, spent) in many(&server, fresh, 400).await.into_iter().enumerate() {
            assert_eq!(rest(&server, &fresh[at]).await, (300 + at as i64 - spent, spent));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_servers_never_spend_more_than_one_account_has() {
    for db in databases().await {
        let account = prepaid(&db, "shared", 10_000).await;
        let servers = [Arc::new(Server::start(&db).await), Arc::new(Server::start(&db).await)];
        let spent = Arc::new(AtomicI64::new(0));
        let worker = |number: usize| {
            let (server, account, spent) = (servers[number % 2].clone(), account.clone(), spent.clone());
            async move {
                while let Ok(hold) = server.wallets.reserve(&spender(&account), 10, 100).await.unwrap() {
                    let charge = hold.settle(10 + scattered(number, 90));
                    let amount = charge.as_ref().unwrap().amount;
                    server.record(&account, charge).await;
                    spent.fetch_add(amount, Ordering::SeqCst);
                }
            }
        };
        futures::future::join_all((0..16).map(worker).map(tokio::spawn)).await.into_iter().for_each(|end| end.unwrap());
        servers[0].wallets.give_back_all().await.unwrap();
        let spent = spent.load(Ordering::SeqCst);
        assert_eq!(rest(&servers[1], &account).await, (10_000 - spent, spent));
        assert!(spent > 9_000, "{spent}: refused while there was money");
    }
}

/// Reserves all of it, or is refused.
async fn reserve(server: &Server, account: &AccountName, amount: Nano) -> Result<Hold, Refusal> {
    server.wallets.reserve(&spender(account), amount, amount).await.unwrap()
}

async fn count(db: &Db, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(db.pool()).await.unwrap()
}

const RELEASES: &str = "SELECT COUNT(*) FROM ledger_transactions WHERE kind = 'release'";
const WANTS: &str = "SELECT COUNT(*) FROM credit_wants";

#[tokio::test]
async fn what_a_large_request_left_behind_on_a_busy_server_is_there_for_the_others() {
    for db in databases().await {
        let account = prepaid(&db, "acme", 100_000).await;
        let servers = [Server::start(&db).await, Server::start(&db).await];
        let large = reserve(&servers[0], &account, 98_000).await.unwrap();
        servers[0].record(&account, large.settle(1_000)).await;
        // It always runs something, so its account is never quiet.
        let mut small = reserve(&servers[0], &account, 10).await.unwrap();
        let mut spent = 1_000;
        for _ in 0..20 {
            let there = reserve(&servers[1], &account, 4_000).await.unwrap();
            servers[1].record(&account, there.settle(1_000)).await;
            let next = reserve(&servers[0], &account, 10).await.unwrap();
            servers[0].record(&account, std::mem::replace(&mut small, next).settle(10)).await;
            spent += 1_010;
        }
        // And back: as much as there is but for what runs.
        let large = reserve(&servers[0], &account, 70_000).await.unwrap();
        assert_eq!(reserve(&servers[1], &account, 10_000).await.unwrap_err(), Refusal::InsufficientCredit);
        assert_eq!(count(&db, WANTS).await, 0, "somebody is asked for ever");
        drop((large, small));
        servers[0].wallets.give_back_all().await.unwrap();
        assert_eq!(rest(&servers[1], &account).await, (100_000 - spent, spent));
    }
}

#[tokio::test]
async fn who_wants_more_than_there_is_on_all_servers_asks_none_of_them() {
    for db in databases().await {
        let account = prepaid(&db, "acme", 1_000).await;
        let servers = [Server::start(&db).await, Server::start(&db).await];
        let running = reserve(&servers[0], &account, 100).await.unwrap();
        drop(reserve(&servers[0], &account, 500).await.unwrap());
        let before = count(&db, RELEASES).await;
        for _ in 0..5 {
            assert_eq!(reserve(&servers[1], &account, 1_001).await.unwrap_err(), Refusal::InsufficientCredit);
            assert_eq!(count(&db, WANTS).await, 0);
        }
        // As long as it would have taken to answer.
        tokio::time::sleep(Duration::from_millis(600)).await;
        assert_eq!(count(&db, RELEASES).await, before);
        drop((running, reserve(&servers[1], &account, 900).await.unwrap()));
    }
}

#[tokio::test]
async fn many_that_are_refused_at_once_ask_the_others_together() {
    for db in databases().await {
        let account = prepaid(&db, "acme", 1_000).await;
        let servers = [Server::start(&db).await, Server::start(&db).await];
        let running = reserve(&servers[0], &account, 500).await.unwrap();
        let refused = futures::future::join_all((0..40).map(|_| reserve(&servers[1], &account, 800)));
        // Each time that it is asked it has something to give back.
        let sets_aside = async {
            loop {
                drop(reserve(&servers[0], &account, 10).await.unwrap());
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            refused = refused => assert!(refused.iter().all(|answer| answer.is_err())),
            () = sets_aside => {}
        }
        let releases = count(&db, RELEASES).await;
        assert!((1..=5).contains(&releases), "{releases}");
        drop(running);
    }
}

#[tokio::test]
async fn nobody_waits_for_ever_for_a_server_that_has_gone() {
    for db in databases().await {
        let account = prepaid(&db, "acme", 1_000).await;
        let (gone, stays) = (Server::start(&db).await, Server::start(&db).await);
        drop(reserve(&gone, &account, 900).await.unwrap());
        // What it has set aside is still there, and nobody who could give it back.
        drop(gone);
        assert_eq!(reserve(&stays, &account, 800).await.unwrap_err(), Refusal::InsufficientCredit);
        assert_eq!(count(&db, WANTS).await, 0, "it is asked for ever");
    }
}

#[tokio::test]
async fn credit_that_was_given_back_unheard_is_neither_lost_nor_there_twice() {
    for fault in [Fault::Loses, Fault::Fails] {
        for db in databases().await {
            let account = prepaid(&db, "acme", 1_000).await;
            // What it sets aside works; what it gives back does not, the first time.
            let failing = Server::failing(&db, faults([None, None, Some(fault)]), Faults::default()).await;
            let other = Server::start(&db).await;
            let running = reserve(&failing, &account, 100).await.unwrap();
            drop(reserve(&failing, &account, 700).await.unwrap());
            let there = loop {
                if let Ok(there) = reserve(&other, &account, 800).await {
                    break there;
                }
            };
            failing.record(&account, running.settle(90)).await;
            other.record(&account, there.settle(700)).await;
            other.wallets.give_back_all().await.unwrap();
            assert_eq!(rest(&failing, &account).await, (210, 790), "{fault:?}");
        }
    }
}

#[tokio::test]
async fn a_caller_who_leaves_while_the_ledger_is_asked_does_not_make_credit() {
    for db in databases().await {
        let account = prepaid(&db, "acme", 1_000).await;
        let slow = Faults::new(|| Some(Fault::Stalls(Duration::from_millis(100))));
        let server = Server::failing(&db, slow, Faults::default()).await;
        let spends = spender(&account);
        let leaves = server.wallets.reserve(&spends, 1_000, 1_000);
        assert!(tokio::time::timeout(Duration::from_millis(30), leaves).await.is_err());
        let stays = server.wallets.reserve(&spender(&account), 1_000, 1_000).await.unwrap().unwrap();
        server.record(&account, stays.settle(1_000)).await;
        // Until the answer to the first one has been read as well.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let refused = server.wallets.reserve(&spender(&account), 1, 1).await.unwrap();
        assert_eq!(refused.unwrap_err(), Refusal::InsufficientCredit);
        assert_eq!(rest(&server, &account).await, (0, 1_000));
    }
}

#[tokio::test]
async fn credit_whose_reservation_was_not_heard_of_is_found_and_given_back() {
    for db in databases().await {
        let account = prepaid(&db, "acme", 1_000).await;
        // The first reservation is lost; then an extension, twice its repeat, and twice what gives it all back.
        let (lost, failed) = (Some(Fault::Loses), Some(Fault::Fails));
        let planned = [lost, None, None, None, lost, failed, lost, None, failed, lost];
        let server = Server::failing(&db, faults(planned), Faults::default()).await;
        assert!(server.wallets.reserve(&spender(&account), 100, 100).await.is_err());
        assert_eq!(rest(&server, &account).await, (1_000, 0));
        let mut hold = server.wallets.reserve(&spender(&account), 500, 500).await.unwrap().unwrap();
        assert!(hold.more(300, 300, false).await.is_err());
        let charge = hold.settle(400);
        server.record(&account, charge).await;
        for _ in 0..4 {
            assert!(server.wallets.give_back_all().await.is_err());
        }
        assert_eq!(rest(&server, &account).await, (600, 400));
        hold = server.wallets.reserve(&spender(&account), 600, 600).await.unwrap().unwrap();
        server.record(&account, hold.settle(600)).await;
        assert_eq!(rest(&server, &account).await, (0, 1_000));
    }
}

#[tokio::test]
async fn credit_is_not_given_back_under_a_request_that_is_about_to_be_charged() {
    for db in databases().await {
        let account = prepaid(&db, "acme", 1_000).await;
        let server = Server::start(&db).await;
        let request = request(&account);
        server.journal.begin(&request).await.unwrap();
        let charge = server.wallets.reserve(&spender(&account), 100, 100).await.unwrap().unwrap().settle(70);
        // As when the operator tops the account up at this moment.
        server.wallets.give_back(&account).await.unwrap();
        assert!(server.journal.settle(&request.id, Quantities::default(), Finish::Stop, charge).await.unwrap());
        assert_eq!(rest(&server, &account).await, (930, 70));
    }
}

#[tokio::test]
async fn a_server_that_stops_waits_for_charges_that_are_on_their_way() {
    for db in databases().await {
        let account = prepaid(&db, "acme", 1_000).await;
        let slow = Faults::new(|| Some(Fault::Stalls(Duration::from_millis(100))));
        let server = Server::failing(&db, Faults::default(), slow).await;
        let request = request(&account);
        server.journal.begin(&request).await.unwrap();
        let charge = server.wallets.reserve(&spender(&account), 100, 100).await.unwrap().unwrap().settle(70);
        // Who asked for it has stopped waiting.
        let settled = server.journal.settle(&request.id, Quantities::default(), Finish::Stop, charge);
        assert!(tokio::time::timeout(Duration::from_millis(10), settled).await.is_err());
        assert_eq!(rest(&server, &account).await, (930, 70));
    }
}

#[tokio::test]
async fn a_server_that_could_not_give_back_leaves_it_to_the_next_one() {
    for db in databases().await {
        let account = prepaid(&db, "acme", 1_000).await;
        let away = Faults::new({
            let commits = AtomicI64::new(0);
            move || (commits.fetch_add(1, Ordering::SeqCst) > 0).then_some(Fault::Fails)
        });
        let server = Server::failing(&db, away, Faults::default()).await;
        drop(server.wallets.reserve(&spender(&account), 100, 100).await.unwrap().unwrap());
        assert!(server.wallets.give_back_all().await.is_err());
        server.journal.close().await.unwrap();
        assert_eq!(signed_on(&db, server.journal.instance()).await, 1, "nobody knows any more who holds the credit");
    }
}

async fn signed_on(db: &Db, instance: &str) -> i64 {
    let count = sqlx::query_scalar("SELECT COUNT(*) FROM instances WHERE id = $1").bind(instance);
    count.fetch_one(db.pool()).await.unwrap()
}
