//! `myriad members`: people of the account, and what they are.

use reqwest::Method;
use serde_json::{Value, json};

use super::keys::{self, joined};
use super::table::Table;
use crate::cli::{Members, MembersAction};
use crate::client::{Client, ClientError, segment};

pub async fn run(members: &Members) -> Result<(), ClientError> {
    let client = Client::new(&members.server)?;
    match members.action.as_ref().unwrap_or(&MembersAction::List) {
        MembersAction::List => {
            let list = client.get("/v1/account/members").await?;
            print!("{}", table(keys::rows(&list)?));
        }
        MembersAction::Set { name, role } => {
            let path = format!("/v1/account/members/{}", segment(name));
            let member = client.send(client.request(Method::PUT, &path).json(&json!({ "role": role }))).await?;
            print!("{}", table(&[member.json().await?]));
        }
        MembersAction::Remove { name } => {
            let path = format!("/v1/account/members/{}", segment(name));
            client.send(client.request(Method::DELETE, &path)).await?;
            println!("{name} is no member any more; keys of theirs are revoked.");
        }
    }
    Ok(())
}

fn table(members: &[Value]) -> String {
    let mut table = Table::new(["member", "role", "scopes"]);
    for member in members {
        let text = |field: &str| member[field].as_str().unwrap_or("-").to_owned();
        table.push([text("name"), text("role"), joined(&member["scopes"])]);
    }
    table.text()
}
