//! Guesses change how many tokens a step yields, and nothing else.

use std::sync::Arc;

use futures::future::join_all;
use model::Sampling;
use serving_engine::{Limits, Request};

use crate::bench_model::{Setup, answer, engine, request};

/// A text that repeats itself, so that there is something to guess.
fn repetitive(n: u32) -> Request {
    let mut asked = request(n);
    let once: Vec<u32> = (0..7 + n % 5).map(|token| token * 11 % 200).collect();
    asked.tokens = once.repeat(4).into();
    asked.max_tokens = 60;
    asked.sampling =
        Arc::new(Sampling { temperature: if n % 4 == 3 { 0.5 } else { 0.0 }, ..(*asked.sampling).clone() });
    asked.stop_tokens = Arc::new([n, n + 100]);
    asked.min_tokens = 3 * (n % 6);
    asked
}

fn setup(speculative_rows: usize) -> Setup {
    Setup { limits: Limits { speculative_rows, ..Limits::default() }, ..Setup::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_the_same_with_guesses_and_without() {
    let (plain, guessing) = (engine(setup(0)), engine(setup(16)));
    let mut accepted = 0;
    for n in 0..24 {
        let expected = answer(&plain, repetitive(n)).await;
        let found = answer(&guessing, repetitive(n)).await;
        assert_eq!((found.bits(), &found.ends), (expected.bits(), &expected.ends), "request {n}");
        assert_eq!(found.usage.completion, expected.usage.completion, "request {n}");
        accepted += found.usage.accepted;
    }
    let stats = guessing.stats();
    assert_eq!((plain.stats().guessed_tokens, stats.accepted_tokens), (0, accepted));
    assert!(accepted > 0 && accepted < stats.guessed_tokens, "{accepted} of {} were right", stats.guessed_tokens);
    assert!(stats.steps < plain.stats().steps, "guesses have saved no step");
    let together = join_all((0..24).map(|n| answer(&guessing, repetitive(n)))).await;
    for (n, found) in together.into_iter().enumerate() {
        assert_eq!(found.bits(), answer(&plain, repetitive(n as u32)).await.bits(), "request {n} among others");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_can_do_without() {
    let engine = engine(setup(16));
    let mut asked = repetitive(0);
    asked.speculation = false;
    assert_eq!(answer(&engine, asked).await.usage.guessed, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn guesses_stay_within_what_is_allowed() {
    let engine = engine(setup(16));
    for allowance in 1..20 {
        let mut asked = repetitive(2);
        asked.stop_tokens = Arc::new([]);
        asked.allowance = Some(allowance);
        let reply = engine.submit(asked).unwrap();
        reply.controls().allow_no_more();
        assert_eq!(crate::bench_model::collect(reply).await.usage.completion, allowance);
    }
}
