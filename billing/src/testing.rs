//! What the tests of this crate begin with.

use platform::{AccountName, Db, RequestId};

use crate::{Journal, NewRequest, Prices};

pub fn account() -> AccountName {
    "acme".parse().expect("a name")
}

/// A journal, as of a server that has just started, with the accounts `acme` and `other`.
pub async fn journal(db: &Db) -> (Journal, Prices) {
    for name in ["acme", "other"] {
        let insert = sqlx::query("INSERT INTO accounts (name, created_ms) VALUES ($1, 0) ON CONFLICT DO NOTHING");
        insert.bind(name).execute(db.pool()).await.expect("the account is written");
    }
    let prices = Prices::open(db.clone()).await.expect("prices are read");
    let (journal, _) = Journal::open(db.clone(), prices.clone()).await.expect("the journal opens");
    (journal, prices)
}

pub fn request() -> NewRequest {
    NewRequest {
        id: RequestId::fresh("chatcmpl"),
        account: account(),
        key_id: "key".into(),
        endpoint: "chat.completions",
        model: "sql@prod".into(),
        base: "mini".into(),
        adapter: Some(("acme/sql".into(), 3)),
        price_version: None,
        tag: None,
        reservation: None,
    }
}
