//! What a parser says does not depend on how the text is cut, and it holds back no more than it must.

use grammar::tools::{Answer, Choice, Event, Family, Parser, Reasoning, families};

use super::transcripts::{tools, transcripts};
use super::{Random, Reading, auto, read};

const RANDOM_CUTS: usize = 1000;

/// Requests, and what stands before a transcript in their answers.
fn answers() -> Vec<(&'static str, Answer)> {
    let reasoning = |begun| Reasoning { open: "<think>".into(), close: "</think>".into(), begun };
    let mut all = vec![("", auto(&tools()))];
    all.push(("<think>\na <tool_call> b\n</think>\n\n", auto(&tools()).with_reasoning(reasoning(false))));
    all.push(("a </thin </think>", auto(&tools()).with_reasoning(reasoning(true))));
    all.push(("", auto(&tools()).with_content("%json {}")));
    all.push(("<|python_tag|>", auto(&tools()).with_content("%json {}")));
    all.push(("", Answer::new(&tools(), &Choice::None, true).unwrap()));
    all
}

fn check(family: &dyn Family, answer: &Answer, text: &str, pieces: &[&str], whole: &Reading) {
    let cut = read(family, answer, pieces);
    assert_eq!(cut, *whole, "{}: {text:?} cut as {pieces:?}", family.name());
}

#[test]
fn every_cut_in_two_reads_the_same() {
    for family in families() {
        for (before, answer) in answers() {
            for text in transcripts(*family) {
                let text = format!("{before}{text}");
                let whole = read(*family, &answer, &[&text]);
                for (at, _) in text.char_indices() {
                    check(*family, &answer, &text, &[&text[..at], &text[at..]], &whole);
                }
            }
        }
    }
}

#[test]
fn random_cuts_read_the_same() {
    let seed = 0x7001_5eed;
    println!("seed {seed:#x}");
    let mut random = Random(seed);
    for family in families() {
        for text in transcripts(*family) {
            let answer = auto(&tools());
            let whole = read(*family, &answer, &[&text]);
            let starts: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
            for _ in 0..RANDOM_CUTS {
                let longest = 1 + random.below(12);
                let (mut pieces, mut from) = (Vec::new(), 0);
                while from < starts.len() {
                    let to = from + 1 + random.below(longest);
                    let end = starts.get(to).copied().unwrap_or(text.len());
                    pieces.push(&text[starts[from]..end]);
                    from = to;
                }
                check(*family, &answer, &text, &pieces, &whole);
            }
        }
    }
}

#[test]
fn only_what_may_become_a_marker_is_held_back() {
    let markers = ["<tool_call>", "<function=", "[TOOL_CALLS]", "<|python_tag|>"];
    for family in families() {
        let mut parser = Parser::new(*family, &auto(&tools()));
        let text = "Certainly: a <tool and <b>bold</b> and [TOOL and <|pyth, 1 < 2. ";
        let (mut told, mut given) = (String::new(), String::new());
        for c in text.chars() {
            given.push(c);
            for event in parser.push(c.encode_utf8(&mut [0; 4])) {
                let Event::Content(text) = event else { panic!("{event:?}") };
                told += &text;
            }
            let held = given.strip_prefix(&told).expect("content is told in order");
            let begun = held.trim_start();
            assert!(markers.iter().any(|m| m.starts_with(begun)), "{} holds back {held:?}", family.name());
        }
    }
}

#[test]
fn arguments_are_told_as_they_come() {
    let text = "a longer text without anything special in it";
    let (tools, calls) = (tools(), [("say", serde_json::json!({ "text": text }))]);
    for family in families() {
        let whole = super::transcripts::write(family.name(), &calls);
        let end = whole.find("special").unwrap();
        let mut parser = Parser::new(*family, &auto(&tools));
        let mut reading = Reading::default();
        reading.add(parser.push(&whole[..end]));
        assert!(reading.calls[0].arguments.ends_with("anything "), "{}: {reading:?}", family.name());
    }
}
