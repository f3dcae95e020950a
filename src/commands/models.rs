//! `myriad models`: what can be named as a model.

use serde_json::Value;

use super::table::Table;
use crate::cli::Server;
use crate::client::{Client, ClientError};

pub async fn run(server: &Server) -> Result<(), ClientError> {
    let client = Client::new(server)?;
    let mut table = Table::new(["model", "base"]);
    for model in client.models().await? {
        let text = |key: &str| model[key].as_str().unwrap_or("-").to_owned();
        let base = if model["parent"] == Value::Null { "(base model)".into() } else { text("parent") };
        table.push([text("id"), base]);
    }
    print!("{}", table.text());
    Ok(())
}
