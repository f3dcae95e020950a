//! `myriad usage`: one line per request, newest first.

use super::table::Table;
use crate::cli::Usage;
use crate::client::{Client, ClientError};

pub async fn run(usage: &Usage) -> Result<(), ClientError> {
    let client = Client::new(&usage.server)?;
    let list = client.get(&format!("/v1/account/requests?limit={}", usage.limit)).await?;
    let rows = list["data"].as_array().ok_or_else(|| ClientError::Protocol("no list of requests".into()))?;
    let mut table = Table::new(["request", "model", "prompt", "cached", "completion", "finish"]);
    for row in rows {
        let text = |key: &str| row[key].as_str().unwrap_or("-").to_owned();
        let count = |key: &str| row[key].as_u64().unwrap_or(0).to_string();
        table.push([
            text("request_id"),
            text("model"),
            count("prompt_tokens"),
            count("cached_tokens"),
            count("completion_tokens"),
            text("finish"),
        ]);
    }
    print!("{}", table.text());
    Ok(())
}
