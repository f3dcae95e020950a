//! `myriad statements`: the account's months, or one of them.

use reqwest::Method;
use serde_json::Value;

use super::amount;
use super::table::Table;
use crate::cli::Statements;
use crate::client::{Client, ClientError, segment};

pub async fn run(statements: &Statements) -> Result<(), ClientError> {
    let (client, account) = Client::new(&statements.server)?.of(&statements.whose);
    let path = format!("{account}/statements");
    let text = match &statements.month {
        None => months(&client.get(&path).await?)?,
        Some(month) if statements.csv => {
            let request = client.request(Method::GET, &format!("{path}/{}?format=csv", segment(month)));
            client.send(request).await?.text().await?
        }
        Some(month) => statement(&client.get(&format!("{path}/{}", segment(month))).await?)?,
    };
    print!("{text}");
    Ok(())
}

fn months(list: &Value) -> Result<String, ClientError> {
    let rows = lines(list, "data")?;
    if rows.is_empty() {
        return Ok("Nothing has happened yet.\n".into());
    }
    Ok(rows.iter().filter_map(|row| row["month"].as_str()).map(|month| format!("{month}\n")).collect())
}

fn statement(statement: &Value) -> Result<String, ClientError> {
    let mut table = Table::new(["line", "what", "requests", "prompt", "cached", "completion", "amount"]);
    table.push(row("opening balance", "", None, amount::of(statement, "opening_balance_nano_usd")));
    for line in lines(statement, "credits")? {
        let what = line["memo"].as_str().or(line["id"].as_str()).unwrap_or("-");
        table.push(row(line["kind"].as_str().unwrap_or("-"), what, None, amount::of(line, "amount_nano_usd")));
    }
    for line in lines(statement, "charges")? {
        let name = line["adapter"].as_str().or(line["model"].as_str()).unwrap_or("-");
        let price = line["price_version"].as_i64().map_or("free".into(), |version| format!("price {version}"));
        table.push(row("charge", &format!("{name}, {price}"), Some(line), amount::of(line, "amount_nano_usd")));
    }
    for line in lines(statement, "storage")? {
        let adapter = line["adapter"].as_str().unwrap_or("-");
        let free = if line["uncharged_byte_hours"] == 0 { "" } else { ", in part not charged" };
        let what = format!("{adapter}, price {}{free}", line["price_version"]);
        table.push(row("storage", &what, None, amount::of(line, "amount_nano_usd")));
    }
    for line in lines(statement, "corrections")? {
        let what = format!("{} requests at price {}", line["requests"], line["price_version"]);
        table.push(row("correction", &what, None, amount::of(line, "amount_nano_usd")));
    }
    table.push(row("closing balance", "", None, amount::of(statement, "closing_balance_nano_usd")));
    let state = if statement["final"] == true { "" } else { "The month may still change.\n" };
    Ok(table.text() + state)
}

fn row(line: &str, what: &str, counts: Option<&Value>, amount: String) -> [String; 7] {
    let count = |field: &str| counts.map(|line| line[field].to_string()).unwrap_or_default();
    let [requests, prompt, cached, completion] =
        ["requests", "prompt_tokens", "cached_tokens", "completion_tokens"].map(count);
    [line.to_owned(), what.to_owned(), requests, prompt, cached, completion, amount]
}

fn lines<'a>(answer: &'a Value, field: &str) -> Result<&'a Vec<Value>, ClientError> {
    answer[field].as_array().ok_or_else(|| ClientError::Protocol(format!("the answer holds no {field}")))
}
