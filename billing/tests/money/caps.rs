//! Caps: never exceeded beyond what runs when they are set, whatever was spent without them.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use billing::{Finish, Hold, Limit, LimitKind, LimitScope, Nano, NewRequest, Period, Quantities, Refusal, Spender};
use platform::AccountName;
use platform::testing::{change, databases, noted};

use crate::support::{Server, prepaid, request, spender};

const PLENTY: Nano = 1_000_000_000;

fn cap(scope: LimitScope, amount: Nano) -> Limit {
    let subject = match scope {
        LimitScope::Account => "",
        LimitScope::Key => "key",
        LimitScope::Adapter => "acme/support",
    };
    let (kind, subject) = (LimitKind::Cap, subject.to_owned());
    Limit { id: String::new(), kind, scope, subject, period: Period::Day, amount, operators: false }
}

/// Returns once every server keeps the cap, as it does for users when they are answered, and a second later.
async fn set(servers: &[Arc<Server>], account: &AccountName, limit: Limit) -> Limit {
    let limit = servers[0].limits.set(account, limit, &noted).await.unwrap();
    hear(servers).await;
    limit
}

async fn hear(servers: &[Arc<Server>]) {
    for server in servers {
        server.limits.reload().await.unwrap();
        server.wallets.limits_changed().await.unwrap();
    }
}

/// Writes a request of `acme/support` that has held this and cost so much.
async fn record(server: &Server, account: &AccountName, hold: Hold, cost: Nano) -> Nano {
    let request = NewRequest { adapter: Some(("acme/support".into(), 1)), ..request(account) };
    server.journal.begin(&request).await.unwrap();
    let charge = hold.settle(cost);
    let amount = charge.as_ref().map_or(0, |charge| charge.amount);
    assert!(server.journal.settle(&request.id, Quantities::default(), Finish::Stop, charge).await.unwrap());
    amount
}

fn support(account: &AccountName) -> Spender<'_> {
    Spender { adapter: Some("acme/support"), ..spender(account) }
}

/// Spends all that is asked for; `None` where it is refused.
async fn spend(server: &Server, account: &AccountName, amount: Nano) -> Option<Nano> {
    match server.wallets.reserve(&support(account), amount, amount).await.unwrap() {
        Ok(hold) => Some(record(server, account, hold, amount).await),
        Err(refusal) => {
            assert_eq!(refusal, Refusal::CapReached);
            None
        }
    }
}

#[tokio::test]
async fn a_cap_counts_what_was_spent_while_it_was_not_there() {
    for db in databases().await {
        for scope in [LimitScope::Account, LimitScope::Key, LimitScope::Adapter] {
            let account = prepaid(&db, scope.name(), PLENTY).await;
            let servers = [Arc::new(Server::start(&db).await)];
            let first = set(&servers, &account, cap(scope, 1_000)).await;
            assert_eq!(spend(&servers[0], &account, 10).await, Some(10));
            assert!(servers[0].limits.remove(&account, &first.id, false, &change()).await.unwrap());
            hear(&servers).await;
            for _ in 0..3 {
                assert_eq!(spend(&servers[0], &account, 100).await, Some(100));
            }
            let second = set(&servers, &account, cap(scope, 0)).await;
            for _ in 0..10 {
                assert_eq!(spend(&servers[0], &account, 10).await, None);
            }
            set(&servers, &account, Limit { amount: 350, ..second }).await;
            assert_eq!(spend(&servers[0], &account, 30).await, Some(30));
            assert_eq!(spend(&servers[0], &account, 30).await, None);
            assert_eq!(spend(&servers[0], &account, 10).await, Some(10));
            assert_eq!(spend(&servers[0], &account, 1).await, None);
        }
    }
}

#[tokio::test]
async fn a_cap_that_is_set_counts_the_requests_that_run() {
    for db in databases().await {
        let account = prepaid(&db, "acme", PLENTY).await;
        let servers = [Arc::new(Server::start(&db).await)];
        let wallets = &servers[0].wallets;
        let mut holds = Vec::new();
        for _ in 0..4 {
            holds.push(wallets.reserve(&support(&account), 20, 20).await.unwrap().unwrap());
        }
        set(&servers, &account, cap(LimitScope::Account, 200)).await;
        assert_eq!(spend(&servers[0], &account, 50).await, Some(50));
        // They began without a cap and need not keep it.
        for hold in &mut holds {
            let more = hold.more(80, 80, false).await.unwrap().unwrap();
            hold.add(more);
        }
        // What they hold leaves nothing, and the next one waits for them to give some of it back.
        let waits = {
            let (server, account) = (servers[0].clone(), account.clone());
            tokio::spawn(async move { spend(&server, &account, 30).await })
        };
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(!waits.is_finished());
        for (hold, cost) in holds.into_iter().zip([30, 30, 40, 20]) {
            record(&servers[0], &account, hold, cost).await;
        }
        assert_eq!(waits.await.unwrap(), Some(30));
        for _ in 0..10 {
            assert_eq!(spend(&servers[0], &account, 1).await, None);
        }
    }
}

#[tokio::test]
async fn what_is_leased_under_a_cap_that_was_higher_is_for_the_request_that_began_under_it() {
    for db in databases().await {
        let account = prepaid(&db, "acme", PLENTY).await;
        let servers = [Arc::new(Server::start(&db).await), Arc::new(Server::start(&db).await)];
        set(&servers, &account, cap(LimitScope::Account, 100_000)).await;
        let mut old = servers[0].wallets.reserve(&support(&account), 10, 10).await.unwrap().unwrap();
        set(&servers, &account, cap(LimitScope::Account, 100)).await;
        old.add(old.more(40, 40, false).await.unwrap().unwrap());
        let mut spent = record(&servers[0], &account, old, 50).await;
        for server in servers.iter().chain(&servers) {
            while let Some(amount) = spend(server, &account, 7).await {
                spent += amount;
            }
        }
        assert!(spent <= 100, "{spent}");
    }
}

#[tokio::test]
async fn what_another_server_has_leased_of_a_cap_and_does_not_use_is_there() {
    for db in databases().await {
        let account = prepaid(&db, "acme", PLENTY).await;
        let servers = [Arc::new(Server::start(&db).await), Arc::new(Server::start(&db).await)];
        set(&servers, &account, cap(LimitScope::Account, 10_000)).await;
        let large = servers[0].wallets.reserve(&support(&account), 9_000, 9_000).await.unwrap().unwrap();
        let small = servers[0].wallets.reserve(&support(&account), 900, 900).await.unwrap().unwrap();
        record(&servers[0], &account, large, 100).await;
        assert_eq!(spend(&servers[1], &account, 9_001).await, None);
        assert_eq!(spend(&servers[1], &account, 8_000).await, Some(8_000));
        assert_eq!(spend(&servers[1], &account, 1_001).await, None);
        // What ran at that moment leaves something as well.
        assert_eq!(record(&servers[0], &account, small, 10).await, 10);
        assert_eq!(spend(&servers[1], &account, 1_890).await, Some(1_890));
        for server in &servers {
            assert_eq!(spend(server, &account, 1).await, None);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn caps_that_come_and_go_while_two_servers_spend_are_kept() {
    for db in databases().await {
        let account = prepaid(&db, "acme", PLENTY).await;
        let servers = [Arc::new(Server::start(&db).await), Arc::new(Server::start(&db).await)];
        let spent = Arc::new(AtomicI64::new(0));
        let worker = |number: usize| {
            let (server, account, spent) = (servers[number % 2].clone(), account.clone(), spent.clone());
            async move {
                let amount = 10 + number as Nano;
                while let Some(amount) = spend(&server, &account, amount).await {
                    spent.fetch_add(amount, Ordering::SeqCst);
                }
            }
        };
        let workers: Vec<_> = (0..16).map(worker).map(tokio::spawn).collect();
        for _ in 0..5 {
            let high = set(&servers, &account, cap(LimitScope::Key, PLENTY)).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert!(servers[0].limits.remove(&account, &high.id, false, &change()).await.unwrap());
            hear(&servers).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let amount = spent.load(Ordering::SeqCst) + 2_000;
        set(&servers, &account, cap(LimitScope::Key, amount)).await;
        // What was spent by now, and what runs.
        let most = amount.max(spent.load(Ordering::SeqCst)) + (0..16).map(|number| 10 + number).sum::<Nano>();
        futures::future::join_all(workers).await.into_iter().for_each(|end| end.unwrap());
        let spent = spent.load(Ordering::SeqCst);
        assert!(spent <= most, "{spent} of {amount}");
        assert_eq!(spend(&servers[0], &account, 100).await, None);
        assert_eq!(spend(&servers[1], &account, 100).await, None);
    }
}
