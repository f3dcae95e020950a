//! Rating again: the difference is posted once, rows stay, and nothing is taken that is not there.

use billing::{Book, Extent, Fault, Ledger, Nano, Refusal, RerateOutcome, Rerated, Rerating, reconcile};
use platform::audit::{Change, Note};
use platform::testing::{change, databases};
use platform::units::{Month, now_ms};
use platform::{AccountName, Db};
use sqlx::Row;

use crate::support::{Shop, account, faults, prepaid};

impl Shop {
    async fn rerate(&self, account: &AccountName, asked: &Rerating, apply: bool) -> Rerated {
        self.server
            .ledger
            .rerate(&self.prices, account, asked, apply.then_some(&says as &Note<'_, Rerated>))
            .await
            .unwrap()
    }

    /// Every book says the same, and so does the audit log.
    async fn check(&self, db: &Db, account: &AccountName, adjusted: Nano) {
        let said = sqlx::query("SELECT subject FROM audit_log WHERE action = 'price.rerated'")
            .fetch_all(db.pool())
            .await
            .unwrap();
        let said = said.iter().map(|row| row.get::<String, _>("subject").parse::<Nano>().unwrap());
        assert_eq!(said.sum::<Nano>(), adjusted);
        let found = reconcile(&self.server.journal, &self.engine, now_ms(), Extent::Whole).await.unwrap();
        assert_eq!(found.differences, 0, "{found:?}");
        assert_eq!(self.server.book(account, Book::Adjustment).await, adjusted);
        let statement = self.server.ledger.statement(account, Month::of_ms(now_ms())).await.unwrap();
        let corrections: Nano = statement.corrections.iter().map(|line| line.amount).sum();
        let credits: Nano = statement.credits.iter().map(|line| line.amount).sum();
        let charges: Nano = statement.charges.iter().map(|line| line.amount).sum();
        assert_eq!(corrections, -adjusted, "{statement:?}");
        assert_eq!(statement.opening + credits + charges + corrections, statement.closing);
    }
}

fn says(posted: &Rerated) -> Change {
    Change { action: "price.rerated", subject: posted.posted.to_string(), ..change() }
}

fn all_at(version: i64) -> Rerating {
    Rerating { version, from_ms: 0, to_ms: i64::MAX, model: None, instead_of: None }
}

const fn posted(requests: u64, before: Nano, after: Nano) -> Rerated {
    Rerated { requests, before, after, posted: after - before, outcome: RerateOutcome::Posted }
}

const UNCHANGED: Rerated = Rerated { requests: 0, before: 0, after: 0, posted: 0, outcome: RerateOutcome::Unchanged };

#[tokio::test]
async fn a_difference_is_posted_once_and_later_ones_build_on_it() {
    for db in databases().await {
        let acme = account(&db, "acme").await;
        let shop = Shop::open(&db).await;
        let (wrong, right, other) = (shop.price(9).await, shop.price(2).await, shop.price(5).await);
        // More than fit into one transaction.
        shop.use_up(&acme, "mini", Some(&wrong), 520).await;
        shop.use_up(&acme, "mini", Some(&right), 10).await;
        shop.use_up(&acme, "maxi", None, 3).await;
        let rows = shop.server.journal.list(&acme, None, 1000).await.unwrap();
        let asked = Rerating { instead_of: Some(wrong.version), ..all_at(right.version) };
        let planned = shop.rerate(&acme, &asked, false).await;
        assert_eq!(planned, Rerated { posted: 0, outcome: RerateOutcome::Planned, ..posted(520, 4680, 1040) });
        shop.check(&db, &acme, 0).await;

        // The second page's commit fails, and when it is tried again, is lost: the repeat goes on behind it.
        let first_page = 500 * (2 - 9);
        for (planned, adjusted) in
            [(vec![None, Some(Fault::Fails)], first_page), (vec![Some(Fault::Loses)], 1040 - 4680)]
        {
            let failing = Ledger::with_faults(db.clone(), faults(planned));
            failing.rerate(&shop.prices, &acme, &asked, Some(&says)).await.unwrap_err();
            shop.check(&db, &acme, adjusted).await;
        }
        let repeats = (0..3).map(|_| shop.rerate(&acme, &asked, true));
        assert_eq!(futures::future::join_all(repeats).await, [UNCHANGED; 3]);
        shop.check(&db, &acme, 1040 - 4680).await;
        assert_eq!(shop.server.journal.list(&acme, None, 1000).await.unwrap(), rows, "rows stay as they were");

        // What was free gets a price, of one model only; then all of it another one, and back.
        let maxi = Rerating { model: Some("maxi".into()), ..all_at(right.version) };
        assert_eq!(shop.rerate(&acme, &maxi, true).await, posted(3, 0, 6));
        assert_eq!(shop.rerate(&acme, &all_at(other.version), true).await, posted(533, 1066, 2665));
        assert_eq!(shop.rerate(&acme, &all_at(right.version), true).await, posted(533, 2665, 1066));
        assert_eq!(shop.rerate(&acme, &all_at(right.version), true).await, UNCHANGED);
        shop.check(&db, &acme, 1040 - 4680 + 6).await;
        let unknown = shop.server.ledger.rerate(&shop.prices, &acme, &all_at(99), Some(&says)).await;
        assert!(unknown.unwrap_err().to_string().contains("99"));
        let none = Rerating { to_ms: rows.last().unwrap().started_ms, ..all_at(other.version) };
        assert_eq!(shop.rerate(&acme, &none, true).await, UNCHANGED, "the end is not in the range");
    }
}

#[tokio::test]
async fn a_raise_that_a_prepaid_account_cannot_pay_is_refused_by_name_and_possible_later() {
    for db in databases().await {
        let acme = prepaid(&db, "acme", 20).await;
        let shop = Shop::open(&db).await;
        let (low, high) = (shop.price(2).await, shop.price(6).await);
        shop.use_up(&acme, "mini", Some(&low), 4).await;
        let refused =
            Rerated { posted: 0, outcome: RerateOutcome::Refused(Refusal::InsufficientCredit), ..posted(4, 8, 24) };
        assert_eq!(shop.rerate(&acme, &all_at(high.version), false).await, refused);
        assert_eq!(shop.rerate(&acme, &all_at(high.version), true).await, refused);
        assert_eq!(shop.server.ledger.balance(&acme).await.unwrap().available, 12);
        shop.check(&db, &acme, 0).await;
        let top_up = billing::Command::TopUp { amount: 4 };
        shop.server.ledger.apply("more", &acme, &top_up, None, "me").await.unwrap().unwrap();
        assert_eq!(shop.rerate(&acme, &all_at(high.version), true).await, posted(4, 8, 24));
        assert_eq!(shop.server.ledger.balance(&acme).await.unwrap().available, 0);
        shop.check(&db, &acme, 16).await;
    }
}
