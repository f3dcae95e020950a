//! A grammar decides what an answer may be, and nothing else: not what others get, and not by who else is there.

use std::sync::Arc;

use futures::future::join_all;
use grammar::{Budget, Compiler, Grammar, Source, Vocabulary, VocabularyParts};
use serving_engine::{FinishReason, Limits, Request};

use crate::bench_model::{Answer, Setup, answer, engine, request, vocabulary};

/// A token of the model that ends an answer.
const END: u32 = 249;

fn grammar(rows: usize, source: &Source) -> Arc<Grammar> {
    let bytes = vocabulary(rows);
    let parts = VocabularyParts {
        tokens: (0..rows as u32).map(|token| bytes.get(token)).collect(),
        special: vec![(END, "<end>".into())],
        ends: vec![END],
        rows,
        encode: None,
        digest: [0; 32],
    };
    Compiler::new(Vocabulary::new(parts).unwrap()).unwrap().compile(source, &Budget::default()).unwrap()
}

/// Words of which any number may follow each other.
fn words() -> Source {
    Source::Regex("(ab|cde|xyz|qqqq)+".into())
}

fn steered(n: u32, grammar: &Arc<Grammar>) -> Request {
    let mut asked = request(n);
    asked.grammar = n.is_multiple_of(2).then(|| grammar.clone());
    asked.stop_tokens = Arc::new([END]);
    (asked.max_tokens, asked.choices, asked.score_prompt) = (40, 1 + n % 3, false);
    asked
}

fn texts(answer: &Answer, rows: usize) -> Vec<(String, FinishReason)> {
    let bytes = vocabulary(rows);
    let text = |choice: u32| -> Vec<u8> {
        let tokens = answer.tokens.iter().filter(|(of, _)| *of == choice);
        tokens.flat_map(|(_, token)| bytes.get(token.id).to_vec()).collect()
    };
    let shown = |&(choice, ref reason, visible): &(u32, FinishReason, u64)| {
        let text = text(choice);
        assert_eq!(visible, text.len() as u64, "all of it is shown");
        (String::from_utf8(text).unwrap(), reason.clone())
    };
    answer.ends.iter().map(shown).collect()
}

/// Whether the text is words, and how many bytes of another one follow them.
fn rest(mut text: &str) -> Option<usize> {
    const WORDS: [&str; 4] = ["ab", "cde", "xyz", "qqqq"];
    loop {
        match WORDS.iter().find_map(|word| text.strip_prefix(word)) {
            Some(after) => text = after,
            None => return WORDS.iter().any(|word| word.starts_with(text)).then_some(text.len()),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn steered_answers_are_the_same_alone_and_in_a_crowd_with_little_memory() {
    let alone = engine(Setup::default());
    let rows = alone.base("llama").unwrap().shape.vocabulary;
    let grammar = grammar(rows, &words());
    let mut expected = Vec::new();
    for n in 0..16 {
        expected.push(answer(&alone, steered(n, &grammar)).await);
    }
    let (mut whole, mut cut) = (0, 0);
    for (n, found) in expected.iter().enumerate().step_by(2) {
        for (text, reason) in texts(found, rows) {
            let rest = rest(&text);
            match reason {
                FinishReason::Stop => assert_eq!(rest, Some(0), "request {n}: {text:?}"),
                _ => assert!(rest.is_some(), "request {n}: {text:?}"),
            }
            *(if reason == FinishReason::Stop { &mut whole } else { &mut cut }) += 1;
        }
    }
    assert!(whole > 0 && cut > 0, "{whole} ended by themselves, {cut} were cut");
    for (running, kv_bytes) in [(64, Setup::default().kv_bytes), (6, Setup::default().kv_bytes / 8)] {
        let limits = Limits { running, ..Limits::default() };
        let crowd = engine(Setup { limits, kv_bytes, ..Setup::default() });
        let together = join_all((0..16).map(|n| answer(&crowd, steered(n, &grammar)))).await;
        for (n, (found, expected)) in together.iter().zip(&expected).enumerate() {
            assert_eq!(found.error, None, "request {n}");
            let mut sorted = found.bits().1;
            sorted.sort_by_key(|(choice, _)| *choice);
            let mut other = expected.bits().1;
            other.sort_by_key(|(choice, _)| *choice);
            assert_eq!(sorted, other, "request {n} among others");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_ends_where_nothing_can_follow_whatever_else_is_asked() {
    let engine = engine(Setup::default());
    let rows = engine.base("llama").unwrap().shape.vocabulary;
    let choice = grammar(rows, &Source::Choice(vec!["yes".into(), "no".into(), "nobody".into()]));
    for n in 0..12 {
        let mut asked = steered(2 * n, &choice);
        // Neither may carry an answer on past its grammar.
        (asked.ignore_eos, asked.min_tokens) = (n.is_multiple_of(2), 30);
        let found = answer(&engine, asked).await;
        let choices = found.ends.len();
        for (text, reason) in texts(&found, rows) {
            assert!(["yes", "no", "nobody"].contains(&text.as_str()), "{text:?}");
            assert_eq!(reason, FinishReason::Stop);
        }
        assert!(found.usage.completion >= 2 * choices as u64 && found.error.is_none());
    }
}
