//! `myriad keys`: list, make and revoke the account's API keys.

use platform::units::{DAY_MS, day_of, now_ms, time_of};
use reqwest::Method;
use serde_json::{Value, json};

use super::table::Table;
use crate::cli::{Keys, KeysAction, NewKey};
use crate::client::{Client, ClientError, segment};

pub async fn run(keys: &Keys) -> Result<(), ClientError> {
    let client = Client::new(&keys.server)?;
    match &keys.action {
        KeysAction::List => {
            let list = client.get("/v1/account/keys").await?;
            print!("{}", table(rows(&list)?));
            Ok(())
        }
        KeysAction::Create(new) => {
            let made = client.post("/v1/account/keys", &body(new)).await?;
            print_once(&made)?;
            println!("{}", said(&made));
            Ok(())
        }
        KeysAction::Revoke { id } => {
            client.send(client.request(Method::DELETE, &format!("/v1/account/keys/{}", segment(id)))).await?;
            println!("{id} is revoked.");
            Ok(())
        }
    }
}

fn body(new: &NewKey) -> Value {
    let expires = new.expires.map(|days| (now_ms() + i64::from(days) * DAY_MS) / 1000);
    let mut body = json!({ "name": new.name, "expires_at": expires, "member": new.member });
    if !new.scope.is_empty() {
        body["scopes"] = json!(new.scope);
    }
    body
}

/// What a new key may do, whose it is and when it ends: what was not asked for comes from its maker and its member.
fn said(made: &Value) -> String {
    let whose = match (made["member"].as_str(), made["role"].as_str()) {
        (Some(member), Some(role)) => format!("It is {member}'s, who is {role}, and"),
        _ => "It is the account's and".into(),
    };
    let end = made["expires_at"]
        .as_i64()
        .map_or_else(String::new, |seconds| format!("; it opens nothing after {}", time_of(seconds * 1000)));
    format!("{whose} may do {}{end}.", joined(&made["scopes"]))
}

/// Shows a key that was made just now.
pub fn print_once(made: &Value) -> Result<(), ClientError> {
    let key = made["key"].as_str().ok_or_else(|| ClientError::Protocol("no key in the answer".into()))?;
    println!("{key}\nIt is not shown again.");
    Ok(())
}

pub fn rows(list: &Value) -> Result<&Vec<Value>, ClientError> {
    list["data"].as_array().ok_or_else(|| ClientError::Protocol("the answer holds no list".into()))
}

pub fn table(keys: &[Value]) -> String {
    let mut table = Table::new(["id", "name", "key", "state", "scopes", "expires", "last used", "member"]);
    for key in keys {
        let text = |field: &str| key[field].as_str().unwrap_or("-").to_owned();
        let day =
            |field: &str| key[field].as_i64().map_or_else(|| "-".into(), |seconds| day_of(seconds * 1000 / DAY_MS));
        table.push([
            text("id"),
            text("name"),
            format!("...{}", text("hint")),
            state(key).into(),
            joined(&key["scopes"]),
            day("expires_at"),
            day("last_used_at"),
            text("member"),
        ]);
    }
    table.text()
}

fn state(key: &Value) -> &'static str {
    let has_expired = key["expires_at"].as_i64().is_some_and(|seconds| seconds * 1000 <= now_ms());
    match (key["revoked_at"].is_null(), has_expired) {
        (false, _) => "revoked",
        (true, true) => "expired",
        (true, false) => "active",
    }
}

/// Names in one cell.
pub fn joined(names: &Value) -> String {
    let names: Vec<&str> = names.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if names.is_empty() { "-".into() } else { names.join(",") }
}
