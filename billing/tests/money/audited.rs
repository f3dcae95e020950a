//! The audit log has what was done, and nothing else, whatever becomes of a commit.

use billing::{BillingError, Command, Credit, Credited, Fault, Ledger};
use platform::testing::{change, databases, noted};
use platform::{AccountName, Db};
use sqlx::Row;

use crate::support::{account, faults};

/// Transactions of the ledger, and rows of the audit log.
async fn counts(db: &Db) -> (i64, i64) {
    let both = "SELECT (SELECT COUNT(*) FROM ledger_transactions) AS done, (SELECT COUNT(*) FROM audit_log) AS said";
    let row = sqlx::query(both).fetch_one(db.pool()).await.unwrap();
    (row.get("done"), row.get("said"))
}

/// What somebody does to an account's credit, on a server whose next commit may fail.
async fn credit(
    db: &Db,
    fault: Option<Fault>,
    account: &AccountName,
    (id, command, expires_ms): (&str, &Command, Option<i64>),
) -> Result<Credited, BillingError> {
    let ledger = Ledger::with_faults(db.clone(), faults([fault]));
    match expires_ms {
        None => ledger.credit(id, account, command, None, &noted).await,
        Some(expires_ms) => ledger.grant_until(id, account, (command.amount(), expires_ms), None, &noted).await,
    }
}

#[tokio::test]
async fn a_change_of_credit_and_its_row_are_both_there_or_neither() {
    for db in databases().await {
        let acme = account(&db, "acme").await;
        let changes = [
            ("gift", Command::Grant { amount: 10 }, None),
            ("gift that expires", Command::Grant { amount: 10 }, Some(1_000)),
            ("invoice", Command::TopUp { amount: 10 }, None),
            ("correction", Command::Adjust { amount: -10 }, None),
            ("over", Command::Expire { amount: 1_000 }, None),
        ];
        for (before, (id, command, expires_ms)) in (0..).zip(&changes) {
            let this = (*id, command, *expires_ms);
            for (fault, done) in [(Fault::Fails, before), (Fault::Loses, before + 1)] {
                credit(&db, Some(fault), &acme, this).await.unwrap_err();
                assert_eq!(counts(&db).await, (done, done), "{id} {fault:?}");
            }
            assert!(credit(&db, None, &acme, this).await.unwrap().first.is_some());
            assert_eq!(counts(&db).await, (before + 1, before + 1), "{id}: a repeat changes nothing");
        }
    }
}

#[tokio::test]
async fn so_are_what_expires_and_the_kind_of_credit() {
    for db in databases().await {
        let acme = account(&db, "acme").await;
        credit(&db, None, &acme, ("gift", &Command::Grant { amount: 10 }, Some(1_000))).await.unwrap();
        let ledger = Ledger::with_faults(db.clone(), faults([Some(Fault::Fails), Some(Fault::Loses)]));
        ledger.expire_due(&acme, 1_000, &noted).await.unwrap_err();
        assert_eq!(counts(&db).await, (1, 1));
        ledger.expire_due(&acme, 1_000, &noted).await.unwrap_err();
        assert_eq!(counts(&db).await, (2, 2));
        assert_eq!(ledger.expire_due(&acme, 1_000, &noted).await.unwrap(), []);
        assert_eq!(counts(&db).await, (2, 2));

        let ledger = Ledger::with_faults(db.clone(), faults([Some(Fault::Fails)]));
        ledger.set_credit(&acme, Credit::Prepaid, &change()).await.unwrap_err();
        assert_eq!(counts(&db).await.1, 2);
        assert!(ledger.set_credit(&acme, Credit::Prepaid, &change()).await.unwrap());
        assert!(!ledger.set_credit(&acme, Credit::Prepaid, &change()).await.unwrap());
        assert_eq!(counts(&db).await.1, 3, "what changes nothing leaves no row");
    }
}
