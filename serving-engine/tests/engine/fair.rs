//! A neighbour who asks for much does not take what is another's.

use futures::future::join_all;
use serving_engine::{Event, Lane, Limits, Refused, Reply};

use crate::bench_model::{Setup, answer, collect, engine, request};

fn long(lane: u64, n: u32) -> serving_engine::Request {
    let mut request = request(n);
    (request.lane, request.max_tokens, request.adapter) = (Lane(lane), 300, None);
    request
}

async fn first_token(reply: &mut Reply) {
    while let Some(event) = reply.next().await {
        if matches!(event, Event::Token { .. }) {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_that_holds_every_place_gives_one_up_and_its_answers_stay_the_same() {
    let alone = engine(Setup::default());
    let expected: Vec<_> = join_all((0..4).map(|n| answer(&alone, long(1, n)))).await;
    let limits = Limits { running: 2, patience_steps: 8, ..Limits::default() };
    let engine = engine(Setup { limits, ..Setup::default() });
    let mut busy: Vec<Reply> = (0..4).map(|n| engine.submit(long(1, n)).unwrap()).collect();
    first_token(&mut busy[0]).await;
    let quiet = answer(&engine, long(2, 9)).await;
    assert_eq!(quiet.error, None);
    assert!(engine.stats().preemptions > 0, "nobody made room");
    // 300 steps of the quiet one are too few for the four: it did not wait for any two of them to end.
    assert!(engine.stats().answers < 4, "it waited until the others were done");
    let found = join_all(busy.into_iter().map(collect)).await;
    for (n, (expected, found)) in expected.iter().zip(&found).enumerate().skip(1) {
        assert_eq!(found.bits(), expected.bits(), "request {n} answered otherwise");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn more_lanes_than_places_take_turns() {
    let limits = Limits { running: 2, patience_steps: 4, ..Limits::default() };
    let engine = engine(Setup { limits, ..Setup::default() });
    let mut replies: Vec<Reply> = (0..6).map(|lane| engine.submit(long(lane, lane as u32)).unwrap()).collect();
    for reply in &mut replies {
        first_token(reply).await;
    }
    assert_eq!(engine.stats().answers, 0, "some lane had to wait until another's answer ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_lane_cannot_fill_the_queue_for_the_others() {
    let limits = Limits { queue: 8, lane_queue: 6, running: 1, ..Limits::default() };
    let engine = engine(Setup { limits, ..Setup::default() });
    let mut running = engine.submit(long(1, 0)).unwrap();
    first_token(&mut running).await;
    let replies: Vec<_> = (0..10).map(|n| engine.submit(long(1, n))).collect();
    let refused = |reply: &Result<Reply, Refused>| matches!(reply, Err(Refused::LaneFull { most: 6, .. }));
    assert_eq!(replies.iter().filter(|reply| refused(reply)).count(), 4);
    let others: Vec<_> = (0..3).map(|n| engine.submit(long(2, n))).collect();
    assert!(others[0].is_ok() && others[1].is_ok());
    let Err(Refused::Full { retry_after_ms }) = &others[2] else { panic!("the queue has no bound") };
    assert!((1_000..=60_000).contains(retry_after_ms), "{retry_after_ms}");
}
