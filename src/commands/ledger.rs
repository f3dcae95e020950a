//! `myriad ledger`: the account's last transactions, newest first.

use platform::units::time_of;

use super::table::Table;
use super::{amount, keys};
use crate::cli::Ledger;
use crate::client::{Client, ClientError};

pub async fn run(ledger: &Ledger) -> Result<(), ClientError> {
    let (client, account) = Client::new(&ledger.server)?.of(&ledger.whose);
    let list = client.get(&format!("{account}/ledger?limit={}", ledger.limit)).await?;
    let mut table = Table::new(["time (UTC)", "kind", "amount", "outcome", "id", "memo"]);
    for row in keys::rows(&list)? {
        let text = |field: &str| row[field].as_str().unwrap_or("-").to_owned();
        let time = row["created_ms"].as_i64().map_or_else(|| "-".into(), time_of);
        let amount = amount::of(row, "amount_nano_usd");
        table.push([time, text("kind"), amount, text("outcome"), text("id"), text("memo")]);
    }
    print!("{}", table.text());
    Ok(())
}
