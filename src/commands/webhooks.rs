//! `myriad webhooks`: who is told when an alert is reached.

use reqwest::Method;
use serde_json::{Value, json};

use super::table::Table;
use crate::cli::{Webhooks, WebhooksAction};
use crate::client::{Client, ClientError};

pub async fn run(webhooks: &Webhooks) -> Result<(), ClientError> {
    let client = Client::new(&webhooks.server)?;
    match &webhooks.action {
        None | Some(WebhooksAction::List) => {
            let list = client.get("/v1/account/webhooks").await?;
            match rows(&list)? {
                [] => println!("There are no webhooks; `myriad webhooks add URL` adds one."),
                rows => print!("{}", table(rows, ["id", "url"])),
            }
        }
        Some(WebhooksAction::Add { url }) => {
            let made = client.post("/v1/account/webhooks", &json!({ "url": url })).await?;
            let (id, secret) = (shown(&made["id"]), shown(&made["secret"]));
            println!("{id}\n{secret}\nThe second line is the secret that signs its messages. It is not shown again.");
        }
        Some(WebhooksAction::Remove { id }) => {
            client.send(client.request(Method::DELETE, &format!("/v1/account/webhooks/{id}"))).await?;
            println!("{id} is removed.");
        }
        Some(WebhooksAction::Deliveries { id }) => {
            let list = client.get(&format!("/v1/account/webhooks/{id}/deliveries")).await?;
            match rows(&list)? {
                [] => println!("Nothing was sent to it yet."),
                rows => print!("{}", table(rows, ["id", "status", "attempts", "failure"])),
            }
        }
    }
    Ok(())
}

fn rows(list: &Value) -> Result<&[Value], ClientError> {
    list["data"].as_array().map(Vec::as_slice).ok_or_else(|| ClientError::Protocol("the answer holds no list".into()))
}

fn table<const N: usize>(rows: &[Value], columns: [&str; N]) -> String {
    let mut table = Table::new(columns);
    for row in rows {
        table.push(columns.map(|column| shown(&row[column])));
    }
    table.text()
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
