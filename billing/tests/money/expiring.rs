//! Random credit and spending against a model that moves one nano-dollar at a time: credit that expires first is spent first, and
//! what is left of it at its time is taken off, never what is reserved.

use billing::{BillingError, Command, Credit, Ledger, Nano, Refusal};
use platform::testing::{change, databases, noted};
use platform::{AccountName, Db};
use proptest::prelude::*;
use proptest::test_runner::{TestCaseError, TestRunner};

use crate::support::{account, prepaid};

#[derive(Debug, Clone)]
enum Event {
    GrantUntil(Nano, i64),
    Other(Command),
    /// Reserves and settles this much.
    Spend(Nano),
    Reserve(Nano),
    GiveBack,
    Pass(i64),
}

fn event() -> impl Strategy<Value = Event> {
    (0..10, 1..30i64).prop_map(|(kind, amount)| match kind {
        0 | 1 => Event::GrantUntil(amount, 1 + amount * 7 % 40),
        2 => Event::Other(Command::TopUp { amount }),
        3 => Event::Other(Command::Adjust { amount: amount - 15 }),
        4 => Event::Other(Command::Expire { amount: amount / 4 + 1 }),
        5 => Event::Other(Command::Charge { amount: amount / 4 + 1 }),
        6 => Event::Spend(amount / 2 + 1),
        7 => Event::Reserve(amount / 2 + 1),
        8 => Event::GiveBack,
        _ => Event::Pass(amount / 3 + 1),
    })
}

#[derive(Default)]
struct Model {
    prepaid: bool,
    now: i64,
    /// When it expires, and what is left.
    expiring: Vec<(i64, Nano)>,
    /// Below 0: a debt.
    lasting: Nano,
    held: Nano,
}

impl Model {
    fn available(&self) -> Nano {
        self.lasting + self.expiring.iter().map(|(_, left)| left).sum::<Nano>() - self.held
    }

    fn can(&self, amount: Nano) -> bool {
        !self.prepaid || amount <= self.available()
    }

    fn spend(&mut self, amount: Nano) {
        for _ in 0..amount {
            match self.expiring.iter_mut().filter(|(_, left)| *left > 0).min_by_key(|(expires, _)| *expires) {
                Some((_, left)) => *left -= 1,
                None => self.lasting -= 1,
            }
        }
    }

    fn grant(&mut self, amount: Nano, expires: i64) {
        let debt = (-self.lasting).clamp(0, amount);
        self.lasting += debt;
        self.expiring.push((expires, amount - debt));
    }

    fn other(&mut self, command: &Command) {
        match command {
            Command::TopUp { amount } => self.lasting += amount,
            Command::Adjust { amount } if *amount > 0 => self.lasting += amount,
            Command::Adjust { amount } if *amount < 0 && self.can(-amount) => self.spend(-amount),
            Command::Charge { amount } if self.can(*amount) => self.spend(*amount),
            Command::Expire { amount } if *amount <= self.available() => self.spend(*amount),
            _ => {}
        }
    }

    fn pass(&mut self, time: i64) {
        self.now += time;
        self.expiring.sort_unstable_by_key(|(expires, _)| *expires);
        let mut reserved = self.held;
        for at in 0..self.expiring.len() {
            let (expires, left) = self.expiring[at];
            if expires <= self.now {
                let kept = left.min(reserved);
                reserved -= kept;
                self.expiring[at].1 -= (left - kept).min(self.available()).max(0);
            }
        }
    }
}

/// One account, its ledger and what it should be.
struct Case {
    ledger: Ledger,
    account: AccountName,
    model: Model,
    reservations: Vec<String>,
    ids: usize,
}

impl Case {
    async fn apply(&mut self, command: &Command) -> bool {
        self.ids += 1;
        let id = format!("{} {}", self.account, self.ids);
        self.ledger.apply(&id, &self.account, command, None, "server").await.unwrap().is_ok()
    }

    async fn meet(&mut self, event: &Event) {
        match event {
            Event::GrantUntil(amount, time) => {
                self.ids += 1;
                // Two that expire at once are spent in the order of their ids.
                let (id, expires) = (format!("{} {:06}", self.account, self.ids), self.model.now + time);
                for _ in 0..2 {
                    let granted = self.ledger.grant_until(&id, &self.account, (*amount, expires), None, &noted).await;
                    granted.unwrap().outcome.unwrap();
                }
                self.model.grant(*amount, expires);
            }
            Event::Other(command) => {
                self.apply(command).await;
                self.model.other(command);
            }
            Event::Spend(amount) | Event::Reserve(amount) => {
                let reservation = format!("{} r{}", self.account, self.ids);
                let reserve = Command::Reserve { reservation: reservation.clone(), amount: *amount };
                assert_eq!(self.apply(&reserve).await, self.model.can(*amount), "{event:?}");
                if self.model.can(*amount) && matches!(event, Event::Reserve(_)) {
                    self.reservations.push(reservation);
                    self.model.held += amount;
                } else if self.model.can(*amount) {
                    assert!(self.apply(&Command::Settle { reservation, amount: *amount }).await);
                    self.model.spend(*amount);
                }
            }
            Event::GiveBack => {
                for reservation in std::mem::take(&mut self.reservations) {
                    assert!(self.apply(&Command::Void { reservation }).await);
                }
                self.model.held = 0;
            }
            Event::Pass(time) => {
                self.model.pass(*time);
                let due = (0..2).map(|_| self.ledger.expire_due(&self.account, self.model.now, &noted));
                for expired in futures::future::join_all(due).await {
                    expired.unwrap();
                }
            }
        }
    }

    async fn check(&self, event: &Event) -> Result<(), TestCaseError> {
        let mut left: Vec<(i64, Nano)> = self.model.expiring.iter().copied().filter(|(_, left)| *left > 0).collect();
        left.sort_unstable();
        let mut known: Vec<(i64, Nano)> = self
            .ledger
            .expiring(&self.account)
            .await
            .unwrap()
            .iter()
            .map(|one| (one.expires_ms, one.unspent))
            .collect();
        known.sort_unstable();
        prop_assert_eq!(known, left, "after {:?}", event);
        let balance = self.ledger.balance(&self.account).await.unwrap();
        prop_assert_eq!((balance.available, balance.held), (self.model.available(), self.model.held), "{:?}", event);
        prop_assert!(!self.model.prepaid || balance.available >= 0);
        Ok(())
    }
}

#[test]
fn credit_that_expires_first_is_spent_first_and_what_is_left_goes_at_its_time() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for (number, db) in runtime.block_on(databases()).into_iter().enumerate() {
        let cases = if number == 0 { 100 } else { 12 };
        let mut runner = TestRunner::new(ProptestConfig { cases, failure_persistence: None, ..Default::default() });
        let count = std::cell::Cell::new(0);
        let events = (any::<bool>(), prop::collection::vec(event(), 1..40));
        let agreed = runner.run(&events, |(prepaid, events)| {
            count.set(count.get() + 1);
            runtime.block_on(agrees(&db, &format!("case-{}", count.get()), prepaid, &events))
        });
        agreed.unwrap();
    }
}

async fn agrees(db: &Db, name: &str, prepaid: bool, events: &[Event]) -> Result<(), TestCaseError> {
    let account = account(db, name).await;
    let ledger = Ledger::new(db.clone());
    ledger.set_credit(&account, if prepaid { Credit::Prepaid } else { Credit::Unlimited }, &change()).await.unwrap();
    let model = Model { prepaid, ..Model::default() };
    let mut case = Case { ledger, account, model, reservations: Vec::new(), ids: 0 };
    for event in events {
        case.meet(event).await;
        case.check(event).await?;
    }
    Ok(())
}

#[tokio::test]
async fn what_is_reserved_expires_when_it_is_given_back_and_each_part_once() {
    for db in databases().await {
        let account = prepaid(&db, "acme", 5).await;
        let (ledger, other) = (Ledger::new(db.clone()), Ledger::new(db.clone()));
        let grant = ledger.grant_until("gift", &account, (10, 1_000), Some("to try it"), &noted).await.unwrap();
        assert_eq!((grant.outcome, grant.first), (Ok(()), None));
        let again = ledger.grant_until("gift", &account, (10, 1_000), None, &noted).await.unwrap();
        assert_eq!((again.outcome, again.first.unwrap().memo.as_deref()), (Ok(()), Some("to try it")));
        let again = ledger.grant_until("gift", &account, (10, 2_000), None, &noted).await;
        assert!(matches!(again, Err(BillingError::IdReused(_))), "{again:?}");
        let reserve = Command::Reserve { reservation: "r".into(), amount: 7 };
        ledger.apply("1", &account, &reserve, None, "server").await.unwrap().unwrap();
        assert_eq!(ledger.accounts_with_expired(999).await.unwrap(), []);
        assert_eq!(ledger.accounts_with_expired(1_000).await.unwrap(), std::slice::from_ref(&account));
        let mut taken = Vec::new();
        for expired in
            futures::future::join_all([&ledger, &other, &ledger].map(|l| l.expire_due(&account, 1_000, &noted))).await
        {
            taken.extend(expired.unwrap().into_iter().map(|one| (one.grant, one.amount)));
        }
        assert_eq!(taken, [("gift".to_owned(), 3)]);
        // 4 of the 7 are spent: of the gift, since it expires first.
        let settle = Command::Settle { reservation: "r".into(), amount: 4 };
        ledger.apply("2", &account, &settle, None, "server").await.unwrap().unwrap();
        ledger.apply("3", &account, &Command::Void { reservation: "r".into() }, None, "server").await.unwrap().unwrap();
        let rest: Vec<Nano> =
            ledger.expire_due(&account, 1_000, &noted).await.unwrap().iter().map(|one| one.amount).collect();
        assert_eq!(rest, [3]);
        assert_eq!(ledger.balance(&account).await.unwrap().available, 5, "what does not expire is all there");
        assert!(ledger.accounts_with_expired(1_000).await.unwrap().is_empty());
        let over = Command::Charge { amount: 6 };
        let refused = ledger.apply("4", &account, &over, None, "server").await.unwrap();
        assert_eq!(refused, Err(Refusal::InsufficientCredit));
    }
}
