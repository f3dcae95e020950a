//! The client side of the API: finds the server and the key, sends requests, turns errors into sentences.

use std::time::Duration;

use futures::StreamExt;
use reqwest::{Method, RequestBuilder, Response};
use serde_json::Value;

use crate::cli::{Server, Whose};
use crate::credentials::{self, Credentials, CredentialsError};

/// Where a server is when nobody said.
pub const DEFAULT_BASE_URL: &str = "http://127.0.0.1:8000";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest line of an event stream, in bytes.
const EVENT_BYTES: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    #[error("no API key for {0}; start the server here once, or set MYRIAD_API_KEY")]
    NoKey(String),
    #[error("no server answers at {url}; start one with `myriad serve`, or name another with {flag}")]
    Unreachable { url: String, flag: &'static str },
    #[error("{0}")]
    Http(#[from] reqwest::Error),
    /// The server's own sentence.
    #[error("{message}")]
    Api { status: u16, message: String },
    #[error("the server's answer is not what this client expects: {0}")]
    Protocol(String),
    #[error("{path}: {reason}")]
    File { path: String, reason: String },
    #[error("{0}")]
    Usage(String),
}

#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base_url: String,
    /// What names `base_url` on the command line.
    flag: &'static str,
    key: String,
}

impl Client {
    pub fn new(server: &Server) -> Result<Self, ClientError> {
        let known = credentials::path().and_then(|path| Credentials::load(&path));
        let known = match (known, &server.api_key) {
            (Ok(known), _) => known,
            // With a key given, the file is not needed.
            (Err(_), Some(_)) => Credentials::default(),
            (Err(error), None) => return Err(error.into()),
        };
        let base_url = match &server.base_url {
            Some(url) => normal(url),
            None => known.servers.first().map_or(DEFAULT_BASE_URL.into(), |entry| entry.base_url.clone()),
        };
        let key = match &server.api_key {
            Some(key) => key.clone(),
            None => {
                let entry = known.of_url(&base_url);
                entry.map(|entry| entry.key.clone()).ok_or_else(|| ClientError::NoKey(base_url.clone()))?
            }
        };
        let http = reqwest::Client::builder().connect_timeout(CONNECT_TIMEOUT).build()?;
        Ok(Self { http, base_url, flag: "--base-url", key })
    }

    /// The same key at the operators' listener.
    pub fn at(&self, ops_url: &str) -> Self {
        Self { base_url: normal(ops_url), flag: "--ops-url", ..self.clone() }
    }

    /// Where an account is: the key's own at the API, another one at the operators' listener.
    pub fn of(&self, whose: &Whose) -> (Self, String) {
        match &whose.account {
            None => (self.clone(), "/v1/account".into()),
            Some(name) => (self.at(&whose.ops_url), format!("/admin/v1/accounts/{}", segment(name))),
        }
    }

    pub fn base_url(&self) -> &str {
        &self.base_url
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base_url)).bearer_auth(&self.key)
    }

    /// Sends a request; an answer that is not a success becomes the server's own sentence.
    pub async fn send(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        let response = request.send().await.map_err(|error| {
            let (url, flag) = (self.base_url.clone(), self.flag);
            if error.is_connect() { ClientError::Unreachable { url, flag } } else { error.into() }
        })?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let text = response.text().await.unwrap_or_default();
        let message = serde_json::from_str::<Value>(&text)
            .ok()
            .and_then(|body| body["error"]["message"].as_str().map(str::to_owned))
            .unwrap_or_else(|| format!("the server answered {status}"));
        Err(ClientError::Api { status: status.as_u16(), message })
    }

    pub async fn get(&self, path: &str) -> Result<Value, ClientError> {
        Ok(self.send(self.request(Method::GET, path)).await?.json().await?)
    }

    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, ClientError> {
        Ok(self.send(self.request(Method::POST, path).json(body)).await?.json().await?)
    }

    /// Sends `body` and gives each event of the answering stream to `on_event`, until `[DONE]`.
    pub async fn stream(
        &self,
        path: &str,
        body: &Value,
        mut on_event: impl FnMut(Value) -> Result<(), ClientError>,
    ) -> Result<(), ClientError> {
        let response = self.send(self.request(Method::POST, path).json(body)).await?;
        let mut chunks = response.bytes_stream();
        let mut buffer = Vec::new();
        while let Some(chunk) = chunks.next().await {
            buffer.extend_from_slice(&chunk?);
            while let Some(end) = buffer.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = buffer.drain(..=end).collect();
                match event(&line)? {
                    Line::Done => return Ok(()),
                    Line::Event(event) => on_event(event)?,
                    Line::Other => {}
                }
            }
            if buffer.len() > EVENT_BYTES {
                return Err(ClientError::Protocol("an event of the stream is too long".into()));
            }
        }
        Err(ClientError::Protocol("the stream ended without [DONE]".into()))
    }

    /// Ids of base models, then adapters, as `/v1/models` lists them.
    pub async fn models(&self) -> Result<Vec<Value>, ClientError> {
        match self.get("/v1/models").await?["data"].take() {
            Value::Array(models) => Ok(models),
            _ => Err(ClientError::Protocol("/v1/models has no list".into())),
        }
    }

    /// The first base model's id.
    pub async fn first_base(&self) -> Result<String, ClientError> {
        let models = self.models().await?;
        let base = models.iter().find(|model| model["parent"].is_null()).or(models.first());
        base.and_then(|model| model["id"].as_str())
            .map(str::to_owned)
            .ok_or_else(|| ClientError::Protocol("the server has no model".into()))
    }
}

enum Line {
    Event(Value),
    Done,
    Other,
}

fn event(line: &[u8]) -> Result<Line, ClientError> {
    let Some(data) = line.strip_prefix(b"data:").map(<[u8]>::trim_ascii) else {
        return Ok(Line::Other);
    };
    if data == b"[DONE]" {
        return Ok(Line::Done);
    }
    let event: Value = serde_json::from_slice(data).map_err(|e| ClientError::Protocol(e.to_string()))?;
    match event["error"]["message"].as_str() {
        Some(message) => Err(ClientError::Api { status: 200, message: message.to_owned() }),
        None => Ok(Line::Event(event)),
    }
}

/// A name as one segment of a path: whatever characters it has, it cannot become two.
pub fn segment(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~');
    name.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// Without a trailing slash or `/v1`: people set either.
fn normal(url: &str) -> String {
    url.trim_end_matches('/').trim_end_matches("/v1").trim_end_matches('/').to_owned()
}
