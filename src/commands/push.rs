//! `myriad push DIR... [NAME]`: upload adapter folders. One folder prints its checks, several a table.

use std::path::{Path, PathBuf};
use std::time::Instant;

use bytes::Bytes;
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::Method;
use reqwest::multipart::{Form, Part};
use serde_json::Value;

use super::table::Table;
use crate::cli::Push;
use crate::client::{Client, ClientError};

/// What is sent between two moves of the bar, in bytes.
const CHUNK: usize = 256 << 10;

pub async fn run(push: &Push) -> Result<(), ClientError> {
    let client = Client::new(&push.server)?;
    let (folders, name) = folders_and_name(push)?;
    if let [folder] = folders.as_slice() {
        let name = match name {
            Some(name) => name,
            None => folder_name(folder)?,
        };
        let (version, seconds) = upload(&client, push, folder, &name).await?;
        println!("{}", summary(&version, &name, seconds));
        return Ok(());
    }
    if name.is_some() {
        return Err(ClientError::Usage(
            "with several folders each adapter takes its folder's name; leave the name out, or push one folder".into(),
        ));
    }
    push_many(&client, push, &folders).await
}

async fn push_many(client: &Client, push: &Push, folders: &[PathBuf]) -> Result<(), ClientError> {
    let mut table = Table::new(["folder", "adapter", "rank", "canary KL", "seconds", "result"]);
    let (mut refused, mut said) = (0, Vec::new());
    for folder in folders {
        let name = folder_name(folder)?;
        let row = match upload(client, push, folder, &name).await {
            Ok((version, seconds)) => {
                let live = format!("{name}@{}", version["version"]);
                said.extend(warnings(&version).map(|warning| format!("  warning: {live}: {warning}")));
                [
                    folder.display().to_string(),
                    live,
                    version["rank"].to_string(),
                    canary(&version),
                    format!("{seconds:.1}"),
                    "live".into(),
                ]
            }
            Err(error) => {
                refused += 1;
                let dash = || "-".to_owned();
                [folder.display().to_string(), name, dash(), dash(), dash(), error.to_string()]
            }
        };
        table.push(row);
    }
    print!("{}", table.text());
    said.iter().for_each(|warning| println!("{warning}"));
    match refused {
        0 => Ok(()),
        n => Err(ClientError::Usage(format!("{n} of {} adapters were refused", folders.len()))),
    }
}

/// Every argument that is a folder is one to push; a last one that is not, or that names the only one before it, is the name.
fn folders_and_name(push: &Push) -> Result<(Vec<PathBuf>, Option<String>), ClientError> {
    let (last, before) = push.what.split_last().ok_or_else(|| ClientError::Usage("name a folder".into()))?;
    let mut folders: Vec<PathBuf> = before.iter().map(PathBuf::from).collect();
    let name = if push.name.is_some() || before.is_empty() || (Path::new(last).is_dir() && !is_name(before, last)?) {
        folders.push(last.into());
        push.name.clone()
    } else {
        Some(last.clone())
    };
    match folders.iter().find(|folder| !folder.is_dir()) {
        Some(missing) => Err(file_error(missing, "is not a folder")),
        None => Ok((folders, name)),
    }
}

/// Whether the last argument, which is a folder, is meant as a name all the same: a plain word behind one folder that is that
/// very folder. A plain word that is another folder could be either, and is not guessed.
fn is_name(before: &[String], last: &str) -> Result<bool, ClientError> {
    let [folder] = before else { return Ok(false) };
    if last.contains(std::path::is_separator) || last.starts_with('.') || !Path::new(folder).is_dir() {
        return Ok(false);
    }
    let whole = |path: &str| Path::new(path).canonicalize().map_err(|e| file_error(Path::new(path), e));
    if whole(folder)? == whole(last)? {
        return Ok(true);
    }
    Err(ClientError::Usage(format!(
        "{last} is a folder and could be a name too; write ./{last} for the folder, or --name {last} for the name"
    )))
}

fn folder_name(folder: &Path) -> Result<String, ClientError> {
    let name = adapter_store::folder::name(folder);
    let name = name.map_err(|error| file_error(&error.path, format!("{}; give one with --name NAME", error.reason)))?;
    Ok(name.to_string())
}

fn file_error(path: &Path, reason: impl ToString) -> ClientError {
    ClientError::File { path: path.display().to_string(), reason: reason.to_string() }
}

/// `account/name` of a name that may leave its account out.
pub async fn full_name(client: &Client, name: &str) -> Result<String, ClientError> {
    if name.contains('/') {
        return Ok(name.to_owned());
    }
    let account = client.get("/v1/account").await?;
    let account = account["id"].as_str().ok_or_else(|| ClientError::Protocol("the account has no id".into()))?;
    Ok(format!("{account}/{name}"))
}

async fn upload(client: &Client, push: &Push, folder: &Path, name: &str) -> Result<(Value, f64), ClientError> {
    let files = adapter_store::folder::files(folder).map_err(|e| file_error(&e.path, e.reason))?;
    let total: u64 = files.iter().map(|file| file.bytes.len() as u64).sum();
    let bar = progress_bar(name, total);
    let mut form = Form::new();
    if let Some(alias) = &push.alias {
        form = form.text("alias", alias.clone());
    }
    if let Some(base) = &push.base {
        form = form.text("base", base.clone());
    }
    for file in files {
        form = form.part("files", streamed(file.bytes, &bar).file_name(file.name));
    }
    let started = Instant::now();
    let path = format!("/v1/adapters/{}", full_name(client, name).await?);
    let response = client.send(client.request(Method::PUT, &path).multipart(form)).await;
    bar.finish_and_clear();
    Ok((response?.json().await?, started.elapsed().as_secs_f64()))
}

/// A part that moves the bar as it is sent.
fn streamed(bytes: Bytes, bar: &ProgressBar) -> Part {
    let (bar, length) = (bar.clone(), bytes.len());
    let chunks = (0..length.div_ceil(CHUNK)).map(move |i| {
        let chunk = bytes.slice(i * CHUNK..length.min((i + 1) * CHUNK));
        bar.inc(chunk.len() as u64);
        Ok::<_, std::io::Error>(chunk)
    });
    Part::stream_with_length(reqwest::Body::wrap_stream(futures::stream::iter(chunks)), length as u64)
}

fn progress_bar(name: &str, total: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("  {msg} [{bar:32}] {bytes}/{total_bytes} {bytes_per_sec}");
    let bar = ProgressBar::new(total).with_message(name.to_owned());
    match style {
        Ok(style) => bar.with_style(style.progress_chars("=> ")),
        Err(_) => bar,
    }
}

fn canary(version: &Value) -> String {
    version["canary"]["kl"].as_f64().map_or("-".into(), |kl| format!("{kl:.2}"))
}

fn warnings(version: &Value) -> impl Iterator<Item = &str> {
    version["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str)
}

fn summary(version: &Value, name: &str, seconds: f64) -> String {
    let mut text = format!(
        "  {tensors}/{tensors} tensors bound   rank {rank}   canary KL {canary}   live in {seconds:.1} s as {name}@{number}",
        tensors = version["tensors"],
        rank = version["rank"],
        canary = canary(version),
        number = version["version"],
    );
    for warning in warnings(version) {
        text.push_str(&format!("\n  warning: {warning}"));
    }
    text
}
