//! Tool calls: parsers, grammars, and both together.
//!
//! `MYRIAD_MONKEY_RUNS` sets how many answers the random model writes for each family and mode, `MYRIAD_MONKEY_SEED` from which
//! numbers.

mod bfcl;
mod cuts;
mod grammars;
mod instances;
mod malformed;
mod monkey;
mod transcripts;
mod vocabulary;

use grammar::tools::{Answer, Choice, Event, Family, Parser, Tool};
use serde_json::Value;

/// What an answer's events add up to.
#[derive(Debug, Default, Clone, PartialEq)]
struct Reading {
    content: String,
    reasoning: String,
    calls: Vec<Read>,
    malformed: String,
    unfinished: String,
}

#[derive(Debug, Clone, PartialEq)]
struct Read {
    name: String,
    arguments: String,
    done: bool,
}

impl Reading {
    fn add(&mut self, events: Vec<Event>) {
        for event in events {
            match event {
                Event::Content(text) => self.content += &text,
                Event::Reasoning(text) => self.reasoning += &text,
                Event::Call { index, name } => {
                    assert_eq!(index, self.calls.len(), "calls are numbered in order");
                    self.calls.push(Read { name, arguments: String::new(), done: false });
                }
                Event::Arguments { index, delta } => {
                    assert_eq!(index + 1, self.calls.len(), "arguments belong to the newest call");
                    assert!(!self.calls[index].done, "no arguments after the end");
                    self.calls[index].arguments += &delta;
                }
                Event::Done { index } => {
                    assert_eq!(index + 1, self.calls.len());
                    assert!(!std::mem::replace(&mut self.calls[index].done, true), "done once");
                }
                Event::Malformed(text) => self.malformed += &text,
                Event::Unfinished(text) => self.unfinished += &text,
            }
        }
    }

    fn arguments(&self) -> Vec<(String, Value)> {
        let parse = |call: &Read| {
            let arguments = serde_json::from_str(&call.arguments).unwrap_or_else(|e| panic!("{e}: {call:?}"));
            (call.name.clone(), arguments)
        };
        self.calls.iter().map(parse).collect()
    }
}

fn read(family: &dyn Family, answer: &Answer, pieces: &[&str]) -> Reading {
    let (mut parser, mut reading) = (Parser::new(family, answer), Reading::default());
    for piece in pieces {
        reading.add(parser.push(piece));
    }
    reading.add(parser.finish());
    reading
}

fn tool(name: &str, parameters: Value) -> Tool {
    Tool { name: name.into(), parameters, strict: true }
}

fn auto(tools: &[Tool]) -> Answer {
    Answer::new(tools, &Choice::Auto, true).unwrap()
}

/// Numbers from a seed (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e3779b97f4a7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58476d1ce4e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d049bb133111eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Evenly between 0 and 1.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}
