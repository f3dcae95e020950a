//! `myriad exports`: revenue on its way to Stripe, for the operator.

use platform::units::time_of;
use serde_json::{Value, json};

use super::table::Table;
use super::{amount, keys};
use crate::cli::{Exports, ExportsAction};
use crate::client::{Client, ClientError};

pub async fn run(exports: &Exports) -> Result<(), ClientError> {
    let client = Client::new(&exports.server)?.at(&exports.ops_url);
    match &exports.action {
        None | Some(ExportsAction::List) => match keys::rows(&client.get("/admin/v1/export").await?)?.as_slice() {
            [] => println!("Nothing goes to Stripe yet."),
            rows => print!("{}", table(rows)),
        },
        Some(ExportsAction::Retry { ids }) => {
            let which = if ids.is_empty() { Value::Bool(true) } else { json!(ids) };
            let started = client.post("/admin/v1/export", &json!({ "retry": which })).await?;
            println!("{} taken up again.", started["retried"]);
        }
    }
    Ok(())
}

fn table(rows: &[Value]) -> String {
    let mut table = Table::new(["id", "account", "customer", "hour (UTC)", "amount", "status", "attempts", "failure"]);
    for row in rows {
        let text = |field: &str| row[field].as_str().unwrap_or("-").to_owned();
        let hour = row["timestamp"].as_i64().map_or_else(|| "-".into(), |seconds| time_of(seconds * 1000));
        let [id, account, customer, status] = ["id", "account", "stripe_customer", "status"].map(text);
        let amount = amount::of(row, "amount_nano_usd");
        table.push([id, account, customer, hour, amount, status, row["attempts"].to_string(), text("failure")]);
    }
    table.text()
}
