//! `myriad usage`: one line per request, newest first; or sums.

use serde_json::Value;

use super::amount;
use super::table::Table;
use crate::cli::Usage;
use crate::client::{Client, ClientError};

/// Columns of counts, under the names that the API has for them.
const COUNTS: [(&str, &str); 3] =
    [("prompt", "prompt_tokens"), ("cached", "cached_tokens"), ("completion", "completion_tokens")];

pub async fn run(usage: &Usage) -> Result<(), ClientError> {
    let (client, account) = Client::new(&usage.server)?.of(&usage.whose);
    let text = match usage.by.is_empty() {
        true => requests(&client, &format!("{account}/requests?limit={}", usage.limit)).await?,
        false => sums(&client, format!("{account}/usage?group_by={}", usage.by.join(",")), usage).await?,
    };
    print!("{text}");
    Ok(())
}

async fn requests(client: &Client, path: &str) -> Result<String, ClientError> {
    let list = client.get(path).await?;
    let columns = ["request", "model"].into_iter().chain(COUNTS.map(|(title, _)| title)).chain(["cost", "finish"]);
    let mut table = Table::new(columns);
    for row in rows(&list)? {
        let texts = [shown(&row["request_id"]), shown(&row["model"])];
        table.push(
            texts.into_iter().chain(counts(row)).chain([amount::of(row, "cost_nano_usd"), shown(&row["finish"])]),
        );
    }
    Ok(table.text())
}

async fn sums(client: &Client, mut path: String, usage: &Usage) -> Result<String, ClientError> {
    for (name, day) in [("from", &usage.from), ("to", &usage.to)] {
        if let Some(day) = day {
            path.push_str(&format!("&{name}={day}"));
        }
    }
    let list = client.get(&path).await?;
    let groups = usage.by.iter().map(String::as_str);
    let mut table =
        Table::new(groups.chain(["requests"]).chain(COUNTS.map(|(title, _)| title)).chain(["storage", "cost"]));
    for row in rows(&list)? {
        let groups = usage.by.iter().map(|group| shown(&row[group]));
        table.push(
            groups
                .chain([shown(&row["requests"])])
                .chain(counts(row))
                .chain([amount::of(row, "storage_cost_nano_usd"), amount::of(row, "cost_nano_usd")]),
        );
    }
    Ok(table.text())
}

fn rows(list: &Value) -> Result<&Vec<Value>, ClientError> {
    list["data"].as_array().ok_or_else(|| ClientError::Protocol("the answer holds no list".into()))
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn counts(row: &Value) -> [String; 3] {
    COUNTS.map(|(_, name)| shown(&row[name]))
}
