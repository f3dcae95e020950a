//! `myriad promote NAME@3 [ALIAS]`: point an alias at a version.

use reqwest::Method;
use serde_json::json;

use crate::cli::Promote;
use crate::client::{Client, ClientError};

pub async fn run(promote: &Promote) -> Result<(), ClientError> {
    let client = Client::new(&promote.server)?;
    let wrong = || ClientError::Usage(format!("{:?} does not name a version; write NAME@3", promote.version));
    let (name, version) = promote.version.rsplit_once('@').ok_or_else(wrong)?;
    let version: u32 = version.parse().map_err(|_| wrong())?;
    let path = super::push::full_name(&client, name).await?;
    let path = format!("/v1/adapters/{path}/aliases/{}", promote.alias);
    let request = client.request(Method::PUT, &path).json(&json!({ "version": version }));
    client.send(request).await?;
    println!("{name}@{} is now version {version}", promote.alias);
    Ok(())
}
