//! Starting, stopping, failing: what a request sees, and that nothing is left behind.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use serving_engine::{Event, FinishReason, Limits, NOT_NUMBERS, Refused, Request};

use crate::bench_model::{OVERFLOWING, Setup, adapter, answer, engine, request};

/// Letters of an answer, as the test's vocabulary writes them.
fn letters(tokens: &[(u32, serving_engine::Token)]) -> String {
    tokens.iter().map(|(_, token)| (b'a' + (token.id % 26) as u8) as char).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_string_over_tokens_ends_the_answer_before_it() {
    let engine = engine(Setup::default());
    let whole = letters(&answer(&engine, request(4)).await.tokens);
    let mut stopped = request(4);
    stopped.stop = vec![whole.as_bytes()[3..6].to_vec()];
    let at = whole.find(&whole[3..6]).unwrap() as u64;
    let stopped = answer(&engine, stopped).await;
    assert_eq!(stopped.ends, [(0, FinishReason::Stop, at)]);
    assert_eq!(stopped.usage.completion, at + 3, "rows past the stop were counted");
    let shown: u64 = stopped
        .tokens
        .iter()
        .scan(0u64, |total, (_, token)| {
            *total += 1;
            Some(*total - u64::from(token.held_bytes))
        })
        .max()
        .unwrap();
    assert!(shown <= at, "a part of the stop string could have been shown");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_token_ends_it_and_is_counted_but_not_sent() {
    let engine = engine(Setup::default());
    let whole = answer(&engine, request(4)).await;
    let third = whole.tokens[2].1.id;
    let mut request = request(4);
    request.stop_tokens = Arc::new([third]);
    let first = whole.tokens.iter().position(|(_, token)| token.id == third).unwrap();
    let stopped = answer(&engine, request.clone()).await;
    assert_eq!((stopped.tokens.len(), stopped.usage.completion), (first, first as u64 + 1));
    request.ignore_eos = true;
    let ignored = answer(&engine, request).await;
    assert_eq!(ignored.tokens.len(), 12);
    assert!(ignored.tokens.iter().all(|(_, token)| token.id != third));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_request_ends_soon_and_its_pages_are_free() {
    let engine = engine(Setup::default());
    let mut long = request(1);
    long.max_tokens = 400;
    let mut reply = engine.submit(long).unwrap();
    let mut events = 0;
    while let Some(event) = reply.next().await {
        events += 1;
        match event {
            Event::Token { .. } if events == 3 => reply.controls().cancel(),
            Event::Finished(end) => assert!(end.usage.completion < 400),
            _ => {}
        }
    }
    assert_eq!(answer(&engine, request(2)).await.tokens.len(), 12);
    // The counters are published at the end of the step in which a request ends, just after its last event.
    for _ in 0..500 {
        if engine.stats().pages_used == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{} pages are still held", engine.stats().pages_used);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_that_cannot_be_fetched_fails_only_those_who_named_it() {
    let engine = engine(Setup::default());
    let mut lost = request(1);
    lost.adapter = Some(adapter(99));
    let (lost, fine) = tokio::join!(answer(&engine, lost), answer(&engine, request(2)));
    assert!(lost.error.unwrap().contains("it is not there"));
    assert_eq!((fine.error, fine.tokens.len()), (None, 12));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_whose_logits_overflow_fails_alone_and_leaves_its_neighbours_their_bits() {
    let engine = engine(Setup::default());
    let alone = answer(&engine, request(1)).await;
    let mut bad = request(2);
    bad.adapter = Some(adapter(OVERFLOWING));
    let answers = join_all([request(1), bad, request(3)].map(|request| answer(&engine, request))).await;
    assert_eq!(answers[1].error.as_deref(), Some(NOT_NUMBERS));
    assert_eq!((&answers[0].error, &answers[2].error), (&None, &None));
    assert_eq!(answers[0].bits(), alone.bits());
    // The pages that it wrote serve others.
    assert_eq!(answer(&engine, request(1)).await.bits(), alone.bits());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scores_of_a_prompt_of_one_token_are_sent_and_are_none() {
    let engine = engine(Setup::default());
    let mut short = request(6);
    (short.tokens, short.max_tokens, short.score_prompt) = (Arc::new([7]), 0, true);
    let mut reply = engine.submit(short).unwrap();
    assert!(matches!(reply.next().await, Some(Event::Started { cached: 0 })));
    let first = reply.next().await;
    assert!(matches!(&first, Some(Event::Prompt(scores)) if scores.is_empty()), "{first:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_never_run_is_refused_at_once() {
    let limits = Limits { queue: 2, running: 1, ..Limits::default() };
    let engine = engine(Setup { limits, ..Setup::default() });
    let context = engine.bases()[0].context;
    let mut long = request(1);
    long.max_tokens = context as u32;
    assert!(matches!(engine.submit(long), Err(Refused::TooLong { .. })));
    let mut odd = request(1);
    odd.tokens = Arc::new([100_000]);
    assert!(matches!(engine.submit(odd), Err(Refused::UnknownToken(100_000))));
    let mut unknown = request(1);
    unknown.base = "other".into();
    assert!(matches!(engine.submit(unknown), Err(Refused::UnknownBase(_))));
    let replies: Vec<_> = (0..20).map(|n| engine.submit(request(n))).collect();
    assert!(replies.iter().any(|reply| matches!(reply, Err(Refused::Full { .. }))), "the queue has no bound");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_lets_the_running_finish_and_refuses_the_rest() {
    let engine = engine(Setup::default());
    let running = (0..4).map(|n| engine.submit(request(n)).unwrap()).collect::<Vec<_>>();
    let draining = engine.drain(Duration::from_secs(20));
    let reading = join_all(running.into_iter().map(|mut reply| async move {
        let mut last = None;
        while let Some(event) = reply.next().await {
            last = Some(event);
        }
        last
    }));
    let (_, ends) = tokio::join!(draining, reading);
    assert!(ends.iter().all(|end| matches!(end, Some(Event::Finished(end)) if end.error.is_none())));
    assert!(matches!(engine.submit(request(9)), Err(Refused::Draining)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_takes_too_long_ends_with_an_error() {
    let engine = engine(Setup::default());
    let mut long = request(1);
    long.max_tokens = 400;
    let mut reply = engine.submit(long).unwrap();
    assert!(matches!(reply.next().await, Some(Event::Started { .. })));
    assert!(matches!(reply.next().await, Some(Event::Token { .. })));
    engine.drain(Duration::ZERO).await;
    let mut last = None;
    while let Some(event) = reply.next().await {
        last = Some(event);
    }
    assert!(matches!(last, Some(Event::Finished(end)) if end.error.is_some()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_waits_where_its_allowance_ends_and_goes_on_as_if_it_had_not() {
    let engine = engine(Setup::default());
    let whole = answer(&engine, request(4)).await;
    let mut reply = engine.submit(Request { allowance: Some(5), ..request(4) }).unwrap();
    let controls = reply.controls();
    let mut tokens = Vec::new();
    while tokens.len() < 5 {
        if let Some(Event::Token { token, .. }) = reply.next().await {
            tokens.push(token.id);
        }
    }
    // Others are not held up by it, and it draws nothing meanwhile.
    assert_eq!(answer(&engine, request(2)).await.tokens.len(), 12);
    assert!(tokio::time::timeout(Duration::from_millis(50), reply.next()).await.is_err());
    controls.allow(9);
    controls.allow_no_more();
    let mut ends = Vec::new();
    while let Some(event) = reply.next().await {
        match event {
            Event::Token { token, .. } => tokens.push(token.id),
            Event::Choice { reason, visible_bytes, .. } => ends.push((reason, visible_bytes)),
            Event::Finished(end) => assert_eq!(end.usage.completion, 9),
            _ => {}
        }
    }
    let same: Vec<u32> = whole.tokens.iter().map(|(_, token)| token.id).take(9).collect();
    assert_eq!((tokens, ends), (same, vec![(FinishReason::Allowance, 9)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn choices_share_one_allowance() {
    let engine = engine(Setup::default());
    let mut reply = engine.submit(Request { allowance: Some(7), choices: 3, ..request(1) }).unwrap();
    let controls = reply.controls();
    let (mut tokens, mut ends) = (0, 0);
    while let Some(event) = reply.next().await {
        match event {
            Event::Token { .. } => tokens += 1,
            Event::Choice { reason, .. } => ends += usize::from(reason == FinishReason::Allowance),
            _ => {}
        }
        if tokens == 7 {
            controls.allow_no_more();
        }
    }
    assert_eq!((tokens, ends), (7, 3));
}
