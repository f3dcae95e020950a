//! `myriad keys`: list, make and revoke the account's API keys.

use reqwest::Method;
use serde_json::json;

use super::table::Table;
use crate::cli::{Keys, KeysAction};
use crate::client::{Client, ClientError};

pub async fn run(keys: &Keys) -> Result<(), ClientError> {
    let client = Client::new(&keys.server)?;
    match &keys.action {
        KeysAction::List => list(&client).await,
        KeysAction::Create { name } => {
            let made = client.post("/v1/account/keys", &json!({ "name": name })).await?;
            let key = made["key"].as_str().ok_or_else(|| ClientError::Protocol("no key in the answer".into()))?;
            println!("{key}\nIt is not shown again.");
            Ok(())
        }
        KeysAction::Revoke { id } => {
            client.send(client.request(Method::DELETE, &format!("/v1/account/keys/{id}"))).await?;
            println!("{id} is revoked.");
            Ok(())
        }
    }
}

async fn list(client: &Client) -> Result<(), ClientError> {
    let list = client.get("/v1/account/keys").await?;
    let rows = list["data"].as_array().ok_or_else(|| ClientError::Protocol("no list of keys".into()))?;
    let mut table = Table::new(["id", "name", "key", "state"]);
    for row in rows {
        let text = |key: &str| row[key].as_str().unwrap_or("-").to_owned();
        let state = if row["revoked_at"].is_null() { "active" } else { "revoked" };
        table.push([text("id"), text("name"), format!("...{}", text("hint")), state.into()]);
    }
    print!("{}", table.text());
    Ok(())
}
