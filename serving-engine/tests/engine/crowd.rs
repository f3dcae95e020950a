//! Your answer does not depend on your neighbours: bit for bit.

use futures::future::join_all;
use serving_engine::Limits;

use crate::bench_model::{Answer, Setup, answer, engine, request};

async fn alone(numbers: std::ops::Range<u32>) -> Vec<Answer> {
    let engine = engine(Setup::default());
    let mut answers = Vec::new();
    for n in numbers {
        answers.push(answer(&engine, request(n)).await);
    }
    answers
}

async fn together(setup: Setup, numbers: std::ops::Range<u32>) -> Vec<Answer> {
    let engine = engine(setup);
    join_all(numbers.map(|n| answer(&engine, request(n)))).await
}

fn assert_same(expected: &[Answer], found: &[Answer], what: &str) {
    for (n, (expected, found)) in expected.iter().zip(found).enumerate() {
        assert_eq!(found.error, None, "{what}: request {n}");
        assert_eq!(found.bits(), expected.bits(), "{what}: request {n} answered otherwise");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_answers_the_same_alone_and_among_32_on_8_adapters() {
    let expected = alone(0..32).await;
    assert!(expected.iter().all(|answer| answer.tokens.len() == 12));
    assert_same(&expected, &together(Setup::default(), 0..32).await, "crowd");
    for (step_rows, threads) in [(7, 1), (33, 2), (1000, 2)] {
        let limits = Limits { step_rows, ..Limits::default() };
        let found = together(Setup { limits, threads, ..Setup::default() }, 0..32).await;
        assert_same(&expected, &found, &format!("{step_rows} rows a step, {threads} threads"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cached_prefix_changes_nothing_but_the_count() {
    let engine = engine(Setup::default());
    let mut asked = request(7);
    asked.tokens = (0..41).map(|token| token * 3 % 250).collect();
    let (first, second) = (answer(&engine, asked.clone()).await, answer(&engine, asked.clone()).await);
    assert_eq!(first.bits(), second.bits());
    assert_eq!(first.usage.cached, 0);
    assert_eq!(second.usage.cached, 32, "both full pages are read from the cache");
    asked.cache_salt = 2;
    let other = answer(&engine, asked).await;
    assert_eq!((other.usage.cached, other.bits()), (0, first.bits()), "a prefix was shared across salts");
}

#[tokio::test(flavor = "multi_thread")]
async fn preemption_and_few_slots_change_nothing_and_starve_nobody() {
    let expected = alone(0..24).await;
    // Pages for a handful of sequences and two adapters at a time.
    let setup = Setup { kv_bytes: 160 << 10, slots: 2, ..Setup::default() };
    let small = engine(setup);
    let found = join_all((0..24).map(|n| answer(&small, request(n)))).await;
    assert_same(&expected, &found, "few pages, two slots");
    assert!(small.stats().preemptions > 0, "the test did not preempt anybody");
}

#[tokio::test(flavor = "multi_thread")]
async fn choices_share_their_prompt_and_draw_as_they_would_alone() {
    let engine = engine(Setup::default());
    let mut three = request(5);
    three.choices = 3;
    let answered = answer(&engine, three.clone()).await;
    assert_eq!(answered.usage.prompt, three.tokens.len() as u64);
    assert_eq!(answered.usage.completion, 36);
    let first = answer(&engine, request(5)).await;
    let drawn =
        |choice: u32| answered.tokens.iter().filter(|(c, _)| *c == choice).map(|(_, t)| t.id).collect::<Vec<_>>();
    assert_eq!(drawn(0), first.tokens.iter().map(|(_, t)| t.id).collect::<Vec<_>>());
    assert_ne!(drawn(0), drawn(1));
    assert_ne!(drawn(1), drawn(2));
}
