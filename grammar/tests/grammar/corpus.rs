//! The corpora that grammars are measured on: where they are, how they are unpacked, what counts as right.
//!
//! A document is accepted when every byte of it, written compactly, in its own order of properties, is allowed, and the answer
//! may stop behind it. A schema is right when every document is accepted or rejected as labelled; one that is refused is not.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use grammar::{Compiler, Vocabulary, VocabularyParts};
use serde_json::Value;

/// The folder with the corpora, if `MYRIAD_GRAMMAR_DATA` names it. Without it the caller has nothing to do, and that is said past
/// the test runner's capture of output.
pub fn folder(wanted: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("MYRIAD_GRAMMAR_DATA").map(PathBuf::from);
    if folder.is_none() {
        let _ = writeln!(std::io::stderr(), "SKIPPED {wanted}: MYRIAD_GRAMMAR_DATA names no folder with the corpora");
    }
    folder
}

/// Unpacks an archive of the corpora once and says where.
pub fn unpacked(archive: &str) -> Option<PathBuf> {
    let packed = folder(archive)?.join(format!("{archive}.tar.xz"));
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join(archive);
    if !target.exists() {
        let part = target.with_extension(format!("part-{}", std::process::id()));
        std::fs::create_dir_all(&part).unwrap();
        let status = Command::new("tar").arg("-xJf").arg(&packed).arg("-C").arg(&part).status().unwrap();
        assert!(status.success(), "tar cannot unpack {}", packed.display());
        // Another test may have been faster.
        if std::fs::rename(&part, &target).is_err() {
            std::fs::remove_dir_all(&part).unwrap();
        }
    }
    Some(target)
}

/// A vocabulary of single bytes and one end.
pub fn bytes() -> Vocabulary {
    let bytes: Vec<[u8; 1]> = (0..=255).map(|byte| [byte]).collect();
    let mut tokens: Vec<&[u8]> = bytes.iter().map(|byte| &byte[..]).collect();
    tokens.push(&[]);
    let special = vec![(256, "<end>".to_owned())];
    Vocabulary::new(VocabularyParts { tokens, special, ends: vec![256], rows: 257, encode: None, digest: [0; 32] })
        .unwrap()
}

/// The byte-level BPE of 102k tokens, with its own tokenizer for forced text.
pub fn large() -> Option<Vocabulary> {
    let packed = folder("tokenizer-102k")?.join("tokenizer-102k.json.xz");
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tokenizer-102k");
    if !target.join("tokenizer.json").exists() {
        let json = Command::new("xz").arg("-dc").arg(&packed).output().unwrap();
        assert!(json.status.success(), "xz cannot unpack {}", packed.display());
        let part = target.with_extension(format!("part-{}", std::process::id()));
        std::fs::create_dir_all(&part).unwrap();
        std::fs::write(part.join("tokenizer.json"), json.stdout).unwrap();
        if std::fs::rename(&part, &target).is_err() {
            std::fs::remove_dir_all(&part).unwrap();
        }
    }
    Some(of_text(Arc::new(text::Text::load(&target).unwrap()), 0))
}

/// The vocabulary of a tokenizer, with rows beyond its tokens as models have them.
pub fn of_text(text: Arc<text::Text>, padding: usize) -> Vocabulary {
    let table = text.token_bytes();
    let tokens: Vec<&[u8]> = (0..table.len() as u32).map(|token| table.get(token)).collect();
    let special: Vec<(u32, String)> = (0..table.len() as u32)
        .filter(|&token| table.get(token).is_empty())
        .map(|token| (token, text.token_text(token)))
        .collect();
    let named = |name: &str| special.iter().find(|(_, special)| special == name).map(|(id, _)| *id);
    let ends = ["<|end_of_text|>", "<|eot_id|>", "<|im_end|>"].iter().filter_map(|name| named(name)).collect();
    let rows = tokens.len() + padding;
    let digest = text.digest();
    let tokenizer = text.clone();
    let encode: grammar::Encode = Arc::new(move |text: &str| tokenizer.encode_rendered(text).unwrap_or_default());
    Vocabulary::new(VocabularyParts { tokens, special, ends, rows, encode: Some(encode), digest }).unwrap()
}

/// A labelled document.
#[derive(Clone)]
pub struct Document {
    pub text: String,
    pub valid: bool,
    pub about: String,
}

/// A schema with labelled documents.
#[derive(Clone)]
pub struct Case {
    pub name: String,
    pub schema: Value,
    pub documents: Vec<Document>,
}

fn document(test: &Value) -> Document {
    Document {
        text: test["data"].to_string(),
        valid: test["valid"].as_bool().unwrap(),
        about: test["description"].as_str().unwrap_or_default().to_owned(),
    }
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn sorted(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// Real-world schemas, every `step`-th.
pub fn real_world(step: usize) -> Option<Vec<Case>> {
    let folder = unpacked("maskbench-half")?;
    let files = sorted(&folder).into_iter().filter(|path| path.extension().is_some_and(|e| e == "json"));
    let case = |path: PathBuf| {
        let json = read(&path);
        Case {
            name: path.file_stem().unwrap().to_string_lossy().into_owned(),
            schema: json["schema"].clone(),
            documents: json["tests"].as_array().unwrap().iter().map(document).collect(),
        }
    };
    Some(files.step_by(step).map(case).collect())
}

/// The official suite's required tests of a draft: one case per schema.
pub fn official(draft: &str) -> Option<Vec<Case>> {
    let folder = unpacked("json-schema-test-suite")?.join("tests").join(draft);
    let mut cases = Vec::new();
    for path in sorted(&folder).into_iter().filter(|path| path.extension().is_some_and(|e| e == "json")) {
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        for group in read(&path).as_array().unwrap() {
            let mut schema = group["schema"].clone();
            // The suite of a draft means that draft where a schema does not name one.
            if let (Value::Object(members), "draft7") = (&mut schema, draft) {
                members.entry("$schema").or_insert("http://json-schema.org/draft-07/schema#".into());
            }
            cases.push(Case {
                name: format!("{stem}: {}", group["description"].as_str().unwrap()),
                schema,
                documents: group["tests"].as_array().unwrap().iter().map(document).collect(),
            });
        }
    }
    Some(cases)
}

/// What became of a case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Right,
    /// Refused with these words.
    Refused(String),
    /// A valid document was not accepted: which one.
    TooNarrow(String),
    /// An invalid document was accepted: which one.
    TooWide(String),
}

/// Checks a case, given whether it compiles and what it then accepts.
pub fn outcome<F: FnMut(&str) -> Result<(), String>>(case: &Case, compiled: Result<F, String>) -> Outcome {
    let mut accepts = match compiled {
        Ok(accepts) => accepts,
        // That there is no valid document at all is right where there is none.
        Err(reason) if reason.starts_with("no document") && case.documents.iter().all(|document| !document.valid) => {
            return Outcome::Right;
        }
        Err(reason) => return Outcome::Refused(reason),
    };
    let mut narrow = None;
    for document in &case.documents {
        match (accepts(&document.text), document.valid) {
            (Ok(()), false) => return Outcome::TooWide(format!("{}: {}", document.about, document.text)),
            (Err(place), true) => narrow = Some(format!("{}: {place}", document.about)),
            _ => {}
        }
    }
    narrow.map_or(Outcome::Right, Outcome::TooNarrow)
}

/// Checks a case against our compiler.
pub fn ours(compiler: &Compiler, case: &Case, options: grammar::SchemaOptions) -> Outcome {
    let source = grammar::Source::JsonSchema { schema: case.schema.clone(), options };
    let grammar = compiler.compile(&source, &grammar::Budget::new(std::time::Duration::from_secs(1)));
    outcome(case, grammar.map_err(|e| e.to_string()).map(|grammar| move |text: &str| accepts(&grammar, text)))
}

/// Whether a grammar over single bytes takes a document as a whole; if not, the text up to where it does not go on.
pub fn accepts(grammar: &Arc<grammar::Grammar>, text: &str) -> Result<(), String> {
    let mut matcher = grammar.matcher();
    let taken = text.bytes().take_while(|&byte| matcher.accept(byte.into()).is_ok()).count();
    if taken == text.len() && matcher.may_stop() == Ok(true) {
        return Ok(());
    }
    let before = String::from_utf8_lossy(&text.as_bytes()[taken.saturating_sub(160)..taken]);
    Err(format!("{before} <HERE> {}", String::from_utf8_lossy(&text.as_bytes()[taken..text.len().min(taken + 40)])))
}

/// How many cases came out how.
pub fn counts<'a>(outcomes: impl IntoIterator<Item = &'a Outcome>) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for outcome in outcomes {
        let name = match outcome {
            Outcome::Right => "right",
            Outcome::Refused(_) => "refused",
            Outcome::TooNarrow(_) => "too narrow",
            Outcome::TooWide(_) => "too wide",
        };
        *counts.entry(name).or_default() += 1;
    }
    counts
}
