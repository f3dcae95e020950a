//! `myriad audit`: who changed what, newest first.

use platform::units::time_of;
use serde_json::Value;

use super::keys;
use super::table::Table;
use crate::cli::Audit;
use crate::client::{Client, ClientError, segment};

pub async fn run(audit: &Audit) -> Result<(), ClientError> {
    let client = Client::new(&audit.server)?;
    let limit = audit.limit;
    let list = match &audit.whose.account {
        Some(name) => {
            let path = format!("/admin/v1/audit?limit={limit}&account={}", segment(name));
            client.at(&audit.whose.ops_url).get(&path).await?
        }
        None if audit.all => client.at(&audit.whose.ops_url).get(&format!("/admin/v1/audit?limit={limit}")).await?,
        None => client.get(&format!("/v1/account/audit?limit={limit}")).await?,
    };
    let mut table = Table::new(["time (UTC)", "account", "action", "subject", "by", "key", "detail"]);
    for row in keys::rows(&list)? {
        let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
        let time = row["created_ms"].as_i64().map_or_else(|| "-".into(), time_of);
        let by = row["actor"]["account"].as_str().unwrap_or("the server").to_owned();
        let [account, action, subject] = ["account", "action", "subject"].map(|field| text(&row[field]));
        table.push([time, account, action, subject, by, text(&row["actor"]["key"]), row["detail"].to_string()]);
    }
    print!("{}", table.text());
    Ok(())
}
