//! Random commands to the rules, and to the ledger on each database, against the model.

use std::collections::BTreeMap;

use billing::{BillingError, Book, Command, Credit, LARGEST, Ledger, Nano, Reservation, Standing, decide};
use platform::testing::{change, databases};
use platform::{AccountName, Db};
use proptest::prelude::*;
use proptest::test_runner::{TestCaseError, TestRunner};
use sqlx::Row;

use crate::model::{Held, Model};
use crate::support::account;

/// Few names, so that commands meet the same reservation and the same id again.
const RESERVATIONS: usize = 4;
const IDS: usize = 60;

fn amount() -> impl Strategy<Value = Nano> {
    prop_oneof![
        30 => 1i64..1_000,
        2 => Just(0),
        2 => -1_000i64..0,
        1 => LARGEST - 2..=LARGEST,
        1 => Just(LARGEST + 1),
        1 => prop_oneof![Just(Nano::MAX), Just(Nano::MIN), Just(-LARGEST)],
    ]
}

fn command() -> impl Strategy<Value = Command> {
    let named = (0..RESERVATIONS).prop_map(|number| format!("r{number}"));
    (0..14, named, amount()).prop_map(|(kind, reservation, amount)| match kind {
        0 => Command::Grant { amount },
        1 => Command::TopUp { amount },
        2 | 3 => Command::Reserve { reservation, amount },
        4 | 5 => Command::Extend { reservation, amount },
        6 | 7 => Command::Settle { reservation, amount },
        8 => Command::Void { reservation },
        9 => Command::Expire { amount },
        10 => Command::Refund { amount },
        11 => Command::Charge { amount },
        12 => Command::Release { reservation, amount },
        _ => Command::Adjust { amount },
    })
}

/// Commands with ids; some come twice at once, as from a caller who did not hear the answer.
fn commands(most: usize) -> impl Strategy<Value = Vec<(usize, Command)>> {
    let one = (0..IDS, command(), prop::bool::weighted(0.2));
    prop::collection::vec(one, 1..most).prop_map(|drawn| {
        let repeats = |(id, command, twice): (usize, Command, bool)| vec![(id, command); 1 + usize::from(twice)];
        drawn.into_iter().flat_map(repeats).collect()
    })
}

fn credit() -> impl Strategy<Value = Credit> {
    prop_oneof![Just(Credit::Prepaid), Just(Credit::Unlimited)]
}

fn small(amount: i128) -> Nano {
    Nano::try_from(amount).expect("an amount of 64 bits")
}

/// What the rules look at, according to the model.
fn standing(model: &Model, credit: Credit, command: &Command) -> Standing {
    let found = command.reservation().and_then(|name| model.reservations.get(name));
    Standing {
        credit,
        available: small(model.available),
        revenue: small(model.charged),
        reservation: found.map(|held| Reservation { amount: small(held.left()), open: !held.closed }),
    }
}

#[test]
fn the_rules_agree_with_the_model_and_entries_sum_to_zero() {
    let mut runner = TestRunner::new(ProptestConfig { cases: 5_000, failure_persistence: None, ..Default::default() });
    let decided = runner.run(&(credit(), commands(80)), |(credit, commands)| {
        let mut model = Model::new(credit);
        let mut books: BTreeMap<Book, i128> = BTreeMap::new();
        // An id decides on repeats before the rules are asked: here each command has its own.
        for (number, (_, command)) in commands.iter().enumerate() {
            let decided = decide(&standing(&model, credit, command), command);
            let expected = model.apply(&number.to_string(), command).expect("a fresh id");
            prop_assert_eq!(decided.map(drop), expected, "{:?}", command);
            for (book, amount) in decided.into_iter().flatten() {
                *books.entry(book).or_default() += i128::from(amount);
            }
            let book = |book: Book| books.get(&book).copied().unwrap_or(0);
            prop_assert_eq!(books.values().sum::<i128>(), 0, "{:?} loses or makes money", command);
            prop_assert_eq!(
                (book(Book::Available), book(Book::Held), book(Book::Revenue)),
                (model.available, model.held(), model.charged)
            );
            prop_assert!(credit == Credit::Unlimited || model.available >= 0, "{:?} spends what is not there", command);
            prop_assert!(model.reservations.values().all(|held| held.settled <= held.reserved));
        }
        Ok(())
    });
    decided.unwrap();
}

#[test]
fn the_ledger_agrees_with_the_model_on_each_database() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for (number, db) in runtime.block_on(databases()).into_iter().enumerate() {
        // A statement takes a hundred times as long over a connection as within the process.
        let cases = if number == 0 { 150 } else { 25 };
        let mut runner = TestRunner::new(ProptestConfig { cases, failure_persistence: None, ..Default::default() });
        let mut case = 0;
        let case = std::cell::RefCell::new(&mut case);
        let agreed = runner.run(&(credit(), commands(60)), |(credit, commands)| {
            **case.borrow_mut() += 1;
            let name = format!("case-{}", case.borrow());
            runtime.block_on(agrees(&db, &name, credit, &commands))
        });
        agreed.unwrap();
    }
}

/// All names begin with the account's: what accounts share is tested on its own.
fn in_account(command: &Command, name: &str) -> Command {
    let mut command = command.clone();
    match &mut command {
        Command::Reserve { reservation, .. }
        | Command::Extend { reservation, .. }
        | Command::Settle { reservation, .. }
        | Command::Release { reservation, .. }
        | Command::Void { reservation } => *reservation = format!("{name} {reservation}"),
        _ => {}
    }
    command
}

async fn agrees(db: &Db, name: &str, credit: Credit, commands: &[(usize, Command)]) -> Result<(), TestCaseError> {
    let account = account(db, name).await;
    let ledger = Ledger::new(db.clone());
    ledger.set_credit(&account, credit, &change()).await.unwrap();
    let mut model = Model::new(credit);
    for (id, command) in commands {
        let (id, command) = (format!("{name} {id}"), in_account(command, name));
        let before = state(db, &ledger, &account).await;
        let answer = match ledger.apply(&id, &account, &command, None, "server").await {
            Ok(outcome) => Some(outcome),
            Err(BillingError::IdReused(_)) => None,
            Err(error) => panic!("{command:?}: {error}"),
        };
        let known = before.transactions;
        prop_assert_eq!(answer, model.apply(&id, &command), "{} {:?}", id, command);
        let after = state(db, &ledger, &account).await;
        if answer != Some(Ok(())) || after.transactions == known {
            let unchanged = State { transactions: after.transactions, ..before };
            prop_assert_eq!(&after, &unchanged, "{:?} changed something though {:?}", command, answer);
        }
        check(&model, credit, &after)?;
    }
    let rows = ledger.list(&account, None, 1_000).await.unwrap();
    for row in rows {
        prop_assert_eq!(row.entries.values().sum::<Nano>(), 0, "{}", row.id);
        prop_assert!(row.outcome == "done" || row.entries.is_empty(), "{} was refused and has entries", row.id);
    }
    Ok(())
}

/// An account as the database has it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct State {
    available: Nano,
    held: Nano,
    /// Sums of the entries: a replay of the ledger.
    books: BTreeMap<String, Nano>,
    reservations: BTreeMap<String, (Nano, Nano, bool)>,
    transactions: usize,
}

async fn state(db: &Db, ledger: &Ledger, account: &AccountName) -> State {
    let rows = sqlx::query("SELECT id, amount, settled, closed_ms FROM reservations WHERE account = $1");
    let rows = rows.bind(account.as_str()).fetch_all(db.pool()).await.unwrap();
    let of = |row: &platform::DbRow| {
        let closed = row.get::<Option<i64>, _>("closed_ms").is_some();
        (row.get("id"), (row.get("amount"), row.get("settled"), closed))
    };
    let balance = ledger.balance(account).await.unwrap();
    State {
        available: balance.available,
        held: balance.held,
        books: ledger.sums(account).await.unwrap(),
        reservations: rows.iter().map(of).collect(),
        transactions: ledger.list(account, None, 1_000).await.unwrap().len(),
    }
}

fn check(model: &Model, credit: Credit, state: &State) -> Result<(), TestCaseError> {
    let book = |book: Book| state.books.get(book.name()).copied().unwrap_or(0);
    prop_assert_eq!(state.books.values().sum::<Nano>(), 0, "the entries lose or make money");
    prop_assert_eq!((state.available, state.held), (small(model.available), small(model.held())));
    prop_assert_eq!((state.available, state.held), (book(Book::Available), book(Book::Held)), "the replay differs");
    prop_assert_eq!(book(Book::Revenue), small(model.charged));
    prop_assert!(credit == Credit::Unlimited || state.available >= 0, "more was spent than there was");
    let expected =
        |(name, held): (&String, &Held)| (name.clone(), (small(held.left()), small(held.settled), held.closed));
    prop_assert_eq!(&state.reservations, &model.reservations.iter().map(expected).collect());
    prop_assert!(model.reservations.values().all(|held| held.settled <= held.reserved));
    Ok(())
}

#[tokio::test]
async fn one_account_cannot_touch_what_another_one_has_reserved() {
    for db in databases().await {
        let ledger = Ledger::new(db.clone());
        let (owner, other) = (account(&db, "owner").await, account(&db, "other").await);
        let reserve = Command::Reserve { reservation: "shared".into(), amount: 5 };
        assert_eq!(ledger.apply("1", &owner, &reserve, None, "a").await.unwrap(), Ok(()));
        let touches = [
            (reserve.clone(), billing::Refusal::ReservationExists),
            (Command::Extend { reservation: "shared".into(), amount: 1 }, billing::Refusal::NoReservation),
            (Command::Settle { reservation: "shared".into(), amount: 1 }, billing::Refusal::NoReservation),
            (Command::Void { reservation: "shared".into() }, billing::Refusal::NoReservation),
        ];
        for (number, (command, refusal)) in touches.into_iter().enumerate() {
            let outcome = ledger.apply(&format!("other {number}"), &other, &command, None, "b").await.unwrap();
            assert_eq!(outcome, Err(refusal), "{command:?}");
        }
        let reused = ledger.apply("1", &other, &reserve, None, "a").await;
        assert!(matches!(reused, Err(BillingError::IdReused(_))));
        assert_eq!(ledger.balance(&owner).await.unwrap().held, 5);
        assert!(ledger.sums(&other).await.unwrap().is_empty());
    }
}
