//! `myriad accounts`: what the operator does with accounts, on the operators' listener; and the way back in without a key.

use platform::AccountName;
use reqwest::Method;
use serde_json::{Value, json};

use super::table::Table;
use super::{amount, keys};
use crate::cli::{Accounts, AccountsAction, ChangeCredit, Database};
use crate::client::{Client, ClientError, segment};
use crate::database::{self, DatabaseError};

pub async fn run(accounts: &Accounts) -> Result<(), Box<dyn std::error::Error>> {
    if let Some(AccountsAction::Recover { account, database }) = &accounts.action {
        return Ok(recover(account, database).await?);
    }
    let client = Client::new(&accounts.server)?.at(&accounts.ops_url);
    Ok(online(&client, accounts.action.as_ref().unwrap_or(&AccountsAction::List)).await?)
}

async fn online(client: &Client, action: &AccountsAction) -> Result<(), ClientError> {
    match action {
        AccountsAction::List => {
            let list = client.get("/admin/v1/accounts").await?;
            print!("{}", table(keys::rows(&list)?));
        }
        AccountsAction::Create { name, prepaid, grant } => create(client, name, *prepaid, *grant).await?,
        AccountsAction::Credit(change) => credit(client, change).await?,
        AccountsAction::Set { name, credit } => change(client, name, &json!({ "credit": credit })).await?,
        AccountsAction::Suspend { name } => change(client, name, &json!({ "suspended": true })).await?,
        AccountsAction::Resume { name } => change(client, name, &json!({ "suspended": false })).await?,
        AccountsAction::Key { name } => {
            let path = format!("/admin/v1/accounts/{}/keys", segment(name));
            keys::print_once(&client.post(&path, &json!({ "name": "by the operator" })).await?)?;
        }
        AccountsAction::Keys { name } => {
            let list = client.get(&format!("/admin/v1/accounts/{}/keys", segment(name))).await?;
            print!("{}", keys::table(keys::rows(&list)?));
        }
        AccountsAction::Revoke { name, key } => {
            let path = format!("/admin/v1/accounts/{}/keys/{}", segment(name), segment(key));
            client.send(client.request(Method::DELETE, &path)).await?;
            println!("{key} is revoked.");
        }
        // Needs no server, so it never comes here.
        AccountsAction::Recover { .. } => {}
    }
    Ok(())
}

async fn create(client: &Client, name: &str, prepaid: bool, grant: Option<i64>) -> Result<(), ClientError> {
    let credit = if prepaid { "prepaid" } else { "unlimited" };
    let made = client.post("/admin/v1/accounts", &json!({ "id": name, "credit": credit })).await?;
    // Before anything else can fail: the key is not shown again.
    keys::print_once(&made)?;
    if let Some(nano) = grant {
        let body = json!({ "account": name, "amount_nano_usd": nano, "kind": "grant", "memo": "to begin with" });
        client.post("/admin/v1/credits", &body).await?;
        println!("{name} begins with {}.", amount::shown(nano));
    }
    Ok(())
}

async fn change(client: &Client, name: &str, body: &Value) -> Result<(), ClientError> {
    let request = client.request(Method::PATCH, &format!("/admin/v1/accounts/{}", segment(name))).json(body);
    print!("{}", table(&[client.send(request).await?.json().await?]));
    Ok(())
}

async fn credit(client: &Client, change: &ChangeCredit) -> Result<(), ClientError> {
    let body = json!({
        "account": change.name,
        "amount_nano_usd": change.amount,
        "kind": change.kind,
        "id": change.id,
        "memo": change.memo,
        "expires_at": change.expires_at,
    });
    let account = client.post("/admin/v1/credits", &body).await?;
    print!("{}", table(std::slice::from_ref(&account)));
    let transaction = &account["transaction"];
    if transaction["repeated"] == true {
        println!("{} was there before: nothing was changed.", transaction["id"].as_str().unwrap_or("-"));
    }
    Ok(())
}

fn table(accounts: &[Value]) -> String {
    let mut table = Table::new(["account", "credit", "balance", "reserved", "state"]);
    for account in accounts {
        let text = |field: &str| account[field].as_str().unwrap_or("-").to_owned();
        let [balance, reserved] = ["balance_nano_usd", "reserved_nano_usd"].map(|field| amount::of(account, field));
        let state = if account["suspended_at"].is_null() { "active" } else { "suspended" };
        table.push([text("id"), text("credit"), balance, reserved, state.into()]);
    }
    table.text()
}

/// Makes a key in the database itself. A running server sees it within a second.
async fn recover(account: &str, which: &Database) -> Result<(), DatabaseError> {
    let name: AccountName = account.parse()?;
    let db = database::open_as_is(which).await?;
    let accounts = gateway::Accounts::open(db.clone()).await?;
    let key = accounts.recover(&name).await?;
    let suspended = accounts.suspended_ms(&name).await?.is_some();
    db.close().await;
    println!("{key}\nIt is a key of {name} and is not shown again; set MYRIAD_API_KEY to it.");
    if suspended {
        println!("{name} is suspended: the key opens nothing until `myriad accounts resume {name}`.");
    }
    Ok(())
}
