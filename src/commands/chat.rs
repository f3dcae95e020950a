//! `myriad chat MODEL`: a conversation on the terminal, streamed.

use std::io::{BufRead, IsTerminal, Write};
use std::time::Instant;

use serde_json::{Value, json};

use crate::cli::Chat;
use crate::client::{Client, ClientError};

pub async fn run(chat: &Chat) -> Result<(), ClientError> {
    let client = Client::new(&chat.server)?;
    let model = match &chat.model {
        Some(model) => model.clone(),
        None => client.first_base().await?,
    };
    let mut messages = Vec::new();
    if let Some(system) = &chat.system {
        messages.push(json!({ "role": "system", "content": system }));
    }
    if let Some(message) = &chat.message {
        messages.push(json!({ "role": "user", "content": message }));
        answer(&client, chat, &model, &messages, false).await?;
        return Ok(());
    }
    converse(&client, chat, &model, messages).await
}

async fn converse(client: &Client, chat: &Chat, model: &str, mut messages: Vec<Value>) -> Result<(), ClientError> {
    let person = std::io::stdin().is_terminal();
    let system_messages = messages.len();
    if person {
        println!("{model} at {}. An empty line or Ctrl-D leaves, /new starts over.", client.base_url());
    }
    loop {
        if person {
            print!("> ");
            flush();
        }
        let mut line = String::new();
        let read = std::io::stdin().lock().read_line(&mut line);
        let line = line.trim();
        if read.is_err() || line.is_empty() {
            return Ok(());
        }
        if line == "/new" {
            messages.truncate(system_messages);
            continue;
        }
        messages.push(json!({ "role": "user", "content": line }));
        match answer(client, chat, model, &messages, person).await {
            Ok(text) => messages.push(json!({ "role": "assistant", "content": text })),
            // A wrong name will be wrong again; anything else may pass, so the conversation goes on.
            Err(ClientError::Api { status, message }) if person && status != 404 => {
                eprintln!("{message}");
                messages.pop();
            }
            Err(error) => return Err(error),
        }
    }
}

async fn answer(
    client: &Client,
    chat: &Chat,
    model: &str,
    messages: &[Value],
    person: bool,
) -> Result<String, ClientError> {
    let mut body = json!({
        "model": model, "messages": messages, "stream": true, "stream_options": { "include_usage": true },
    });
    let options = [
        ("temperature", chat.temperature.map(|t| json!(t))),
        ("max_tokens", chat.max_tokens.map(|n| json!(n))),
        ("seed", chat.seed.map(|n| json!(n))),
    ];
    for (name, value) in options {
        if let Some(value) = value {
            body[name] = value;
        }
    }
    let (started, mut first, mut usage, mut text) = (Instant::now(), None, Value::Null, String::new());
    let streamed = client.stream("/v1/chat/completions", &body, |event| {
        if let Some(delta) = event["choices"][0]["delta"]["content"].as_str().filter(|delta| !delta.is_empty()) {
            first.get_or_insert_with(|| started.elapsed());
            print!("{delta}");
            flush();
            text.push_str(delta);
        }
        if event["usage"].is_object() {
            usage = event["usage"].clone();
        }
        Ok(())
    });
    streamed.await?;
    println!();
    if person {
        let first = first.unwrap_or_else(|| started.elapsed()).as_secs_f64() * 1e3;
        eprintln!(
            "  {} tokens in, {} out, first after {first:.0} ms",
            usage["prompt_tokens"], usage["completion_tokens"]
        );
    }
    Ok(text)
}

fn flush() {
    // A closed standard output shows at the next print.
    let _ = std::io::stdout().flush();
}
