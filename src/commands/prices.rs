//! `myriad prices`: what tokens and storage cost, and for the operator, setting it.

use platform::units::time_of;
use serde_json::{Value, json};

use super::amount;
use super::table::Table;
use crate::cli::{Prices, PricesAction, Rerate, SetPrice};
use crate::client::{Client, ClientError};

pub async fn run(prices: &Prices) -> Result<(), ClientError> {
    let client = Client::new(&prices.server)?;
    match &prices.action {
        None | Some(PricesAction::List(_)) => {
            let list = match &prices.action {
                Some(PricesAction::List(asked)) if asked.all => {
                    client.at(&asked.ops_url).get("/admin/v1/prices").await?
                }
                _ => client.get("/v1/account/prices").await?,
            };
            let rows = list["data"].as_array().ok_or_else(|| ClientError::Protocol("no list of prices".into()))?;
            if rows.is_empty() {
                println!("Nothing has a price: requests are counted and cost nothing.");
            } else {
                print!("{}", table(rows));
            }
        }
        Some(PricesAction::Set(set)) => {
            let made = client.at(&set.ops_url).post("/admin/v1/prices", &body(set)).await?;
            for warning in made["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                eprintln!("warning: {warning}");
            }
            print!("{}", table(&[made]));
        }
        Some(PricesAction::Rerate(asked)) => rerate(&client.at(&asked.ops_url), asked).await?,
    }
    Ok(())
}

fn body(set: &SetPrice) -> Value {
    json!({
        "input": amount::field(set.input),
        "cached_input": set.cached_input.map(amount::field),
        "output": amount::field(set.output),
        "training": set.training.map(amount::field),
        "storage": set.storage.map(amount::field),
        "model": set.model,
        "account": set.account,
        "starts_at": set.starts_at,
    })
}

async fn rerate(client: &Client, asked: &Rerate) -> Result<(), ClientError> {
    let body = json!({
        "version": asked.version,
        "from": asked.from,
        "to": asked.to,
        "instead_of": asked.instead_of,
        "account": asked.account,
        "model": asked.model,
        "apply": asked.apply,
    });
    let answer = client.post("/admin/v1/prices/rerate", &body).await?;
    let rows = answer["data"].as_array().ok_or_else(|| ClientError::Protocol("no list of differences".into()))?;
    if rows.is_empty() {
        println!("Nothing differs.");
        return Ok(());
    }
    let mut table = Table::new(["account", "requests", "before", "after", "difference", "posted", "outcome"]);
    for row in rows {
        let text = |field: &str| row[field].as_str().unwrap_or("-").to_owned();
        let [before, after, difference, posted] =
            ["before", "after", "difference", "posted"].map(|field| amount::of(row, &format!("{field}_nano_usd")));
        let requests = row["requests"].to_string();
        table.push([text("account"), requests, before, after, difference, posted, text("outcome")]);
    }
    print!("{}", table.text());
    if !asked.apply {
        println!("Nothing was changed; --apply posts the differences.");
    }
    Ok(())
}

/// Dollars per million tokens; storage per GB-month.
fn table(rows: &[Value]) -> String {
    let columns = ["version", "account", "model", "input", "cached", "output", "training", "storage", "starts (UTC)"];
    let mut table = Table::new(columns);
    for row in rows {
        let scope = |key: &str| row[key].as_str().unwrap_or("all").to_owned();
        let usd = |key: &str| row[key].as_f64().map_or_else(|| "-".into(), |usd| format!("${usd}"));
        table.push([
            row["version"].to_string(),
            scope("account"),
            scope("model"),
            usd("input"),
            usd("cached_input"),
            usd("output"),
            usd("training"),
            usd("storage"),
            row["starts_ms"].as_i64().map_or_else(|| "-".into(), time_of),
        ]);
    }
    table.text()
}
