//! `myriad limits`: caps and alerts of an account, with what was spent.

use reqwest::Method;
use serde_json::{Value, json};

use super::table::Table;
use crate::cli::{Limits, LimitsAction, SetLimit};
use crate::client::{Client, ClientError, segment};

pub async fn run(limits: &Limits) -> Result<(), ClientError> {
    let (client, account) = Client::new(&limits.server)?.of(&limits.whose);
    let path = format!("{account}/limits");
    match &limits.action {
        None | Some(LimitsAction::List) => {
            let list = client.get(&path).await?;
            let rows = list["data"].as_array().ok_or_else(|| ClientError::Protocol("no list of limits".into()))?;
            if rows.is_empty() {
                println!("There are no limits; `myriad limits set 50 --per month` sets a cap, with --alert an alert.");
            } else {
                print!("{}", table(rows));
            }
        }
        Some(LimitsAction::Set(set)) => {
            let made = client.post(&path, &body(set)).await?;
            println!("{} is set.", made["id"].as_str().unwrap_or_default());
            if set.alert && limits.whose.account.is_none() {
                warn_without_webhooks(&client).await;
            }
        }
        Some(LimitsAction::Remove { id }) => {
            client.send(client.request(Method::DELETE, &format!("{path}/{}", segment(id)))).await?;
            println!("{id} is removed.");
        }
    }
    Ok(())
}

/// An alert that nobody hears of is a surprise later on.
async fn warn_without_webhooks(client: &Client) {
    if let Ok(list) = client.get("/v1/account/webhooks").await
        && list["data"].as_array().is_some_and(Vec::is_empty)
    {
        println!("No webhook will be told of it yet; `myriad webhooks add URL` adds one.");
    }
}

fn body(set: &SetLimit) -> Value {
    let (scope, subject) = match (&set.key, &set.adapter) {
        (Some(key), _) => ("key", Some(key)),
        (None, Some(adapter)) => ("adapter", Some(adapter)),
        (None, None) => ("account", None),
    };
    json!({
        "kind": if set.alert { "alert" } else { "cap" },
        "scope": scope,
        "subject": subject,
        "period": set.per,
        "amount_nano_usd": set.usd,
    })
}

fn table(rows: &[Value]) -> String {
    let mut table = Table::new(["id", "kind", "of", "per", "amount", "spent", "state", "set by"]);
    for row in rows {
        let text = |key: &str| row[key].as_str().unwrap_or("-").to_owned();
        let of =
            if row["subject"].is_null() { "account".into() } else { format!("{} {}", text("scope"), text("subject")) };
        let usd = |key: &str| format!("${}", row[key].as_f64().unwrap_or(0.0));
        let state = if row["reached"] == true { "reached" } else { "below" };
        table.push([
            text("id"),
            text("kind"),
            of,
            text("period"),
            usd("amount"),
            usd("spent"),
            state.into(),
            text("set_by"),
        ]);
    }
    table.text()
}
