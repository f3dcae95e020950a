//! A hub on this machine: the two addresses that a download needs, over a model folder of the oracle.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// The commit that the stand-in's one revision leads to.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// The token that opens `org/gated`.
pub const TOKEN: &str = "hf_of_the_tests";

/// What a request asked for.
#[derive(Debug, Clone)]
pub struct Asked {
    pub path: String,
    pub range: Option<String>,
    pub token: Option<String>,
}

/// A running stand-in; it ends with the test's process.
pub struct Hub {
    pub url: String,
    state: Arc<State>,
}

struct State {
    folder: PathBuf,
    asked: Mutex<Vec<Asked>>,
    /// How many more transfers of the weights break off half way.
    breaks: Mutex<usize>,
}

impl Hub {
    /// Serves the folder as `org/open` and, to those with the token, as `org/gated`. The first `breaks` transfers of the
    /// weights break off half way.
    pub fn start(folder: &Path, breaks: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let state = Arc::new(State { folder: folder.into(), asked: Mutex::default(), breaks: Mutex::new(breaks) });
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = shared.clone();
                std::thread::spawn(move || while answer(&stream, &state).is_some() {});
            }
        });
        Self { url, state }
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.state.asked.lock().expect("no test thread panicked").clone()
    }

    /// Ranges in which the weights were asked for, past the one byte that only asks for their size.
    pub fn ranges_of_weights(&self) -> Vec<String> {
        let weights = self.asked().into_iter().filter(|asked| asked.path.ends_with("/model.safetensors"));
        weights.filter_map(|asked| asked.range).filter(|range| range != "bytes=0-0").collect()
    }
}

/// Answers one request. None: the connection is at its end.
fn answer(stream: &TcpStream, state: &State) -> Option<()> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    let path = first.split(' ').nth(1)?.to_owned();
    let headers: HashMap<String, String> = lines
        .map_while(|line| line.ok().filter(|line| !line.is_empty()))
        .filter_map(|line| line.split_once(": ").map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())))
        .collect();
    let token = headers.get("authorization").and_then(|value| value.strip_prefix("Bearer ")).map(str::to_owned);
    let asked = Asked { path: path.clone(), range: headers.get("range").cloned(), token };
    state.asked.lock().ok()?.push(asked.clone());

    if let Some(model) = path.strip_prefix("/api/models/") {
        // The list of a gated model's files is public, the files are not.
        if !["org/open/revision/main", "org/gated/revision/main", "org/odd/revision/main"].contains(&model) {
            return send(stream, "404 Not Found", &[], b"{}");
        }
        let files = std::fs::read_dir(&state.folder).ok()?.flatten().filter(|entry| entry.path().is_file());
        let odd = model.starts_with("org/odd");
        let mut names: Vec<_> = files.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.retain(|name| !(odd && name.ends_with(".safetensors")));
        let siblings: Vec<_> = names.iter().map(|name| serde_json::json!({ "rfilename": name })).collect();
        let body = serde_json::json!({ "sha": COMMIT, "siblings": siblings }).to_string();
        return send(stream, "200 OK", &[], body.as_bytes());
    }
    let (model, name) = path.trim_start_matches('/').split_once("/resolve/main/")?;
    if model == "org/gated" && asked.token.as_deref() != Some(TOKEN) {
        return send(stream, "401 Unauthorized", &[("X-Error-Code", "GatedRepo".into())], b"");
    }
    let Ok(bytes) = std::fs::read(state.folder.join(name)) else {
        return send(stream, "404 Not Found", &[], b"");
    };
    let range = asked.range.as_deref().unwrap_or("bytes=0-").trim_start_matches("bytes=");
    let (from, to) = range.split_once('-')?;
    let from: usize = from.parse().ok()?;
    let to = to.parse::<usize>().map_or(bytes.len(), |last| last + 1).min(bytes.len());
    let headers = [
        ("ETag", format!("\"{name}-1\"")),
        ("X-Repo-Commit", COMMIT.to_owned()),
        ("Content-Range", format!("bytes {from}-{}/{}", to.saturating_sub(1), bytes.len())),
    ];
    if name == "model.safetensors" && to - from > 1 {
        let mut breaks = state.breaks.lock().ok()?;
        if *breaks > 0 {
            *breaks -= 1;
            head(stream, "206 Partial Content", &headers, to - from)?;
            (&mut &*stream).write_all(&bytes[from..from + (to - from) / 2]).ok()?;
            stream.shutdown(std::net::Shutdown::Both).ok()?;
            return None;
        }
    }
    send(stream, "206 Partial Content", &headers, &bytes[from..to])
}

fn send(stream: &TcpStream, status: &str, headers: &[(&str, String)], body: &[u8]) -> Option<()> {
    head(stream, status, headers, body.len())?;
    (&mut &*stream).write_all(body).ok()
}

fn head(mut stream: &TcpStream, status: &str, headers: &[(&str, String)], length: usize) -> Option<()> {
    let mut text = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all((text + "\r\n").as_bytes()).ok()
}
