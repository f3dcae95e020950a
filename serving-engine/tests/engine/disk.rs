//! Pages of the prefix cache that went to disk and came back: the same answers, counted as cached, and never another's.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use serving_engine::{Engine, PageFile, Request};

use crate::bench_model::{Answer, Setup, answer, engine, request};

/// A file without a name.
fn file() -> File {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("myriad-engine-pages-{}-{number}", std::process::id()));
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    file
}

/// An engine whose memory holds a few prompts only, over `bytes` of a file.
fn small(file: &File, bytes: u64) -> Engine {
    let page_file = Some(PageFile::over(file.try_clone().unwrap(), bytes));
    engine(Setup { kv_bytes: 256 << 10, page_file, ..Setup::default() })
}

/// A prompt of seven pages and a bit.
fn long(n: u32) -> Request {
    let mut request = request(7);
    request.tokens = (0..120).map(|token| (token * 3 + n * 7) % 250).collect();
    request
}

/// Enough others to have everything before them forgotten.
async fn forget(engine: &Engine) {
    for n in 100..130 {
        answer(engine, long(n)).await;
    }
}

async fn expected() -> Answer {
    answer(&engine(Setup::default()), long(0)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_that_memory_forgot_comes_from_disk_and_changes_nothing_but_the_count() {
    let expected = expected().await;
    let file = file();
    let engine = small(&file, 64 << 20);
    assert_eq!(answer(&engine, long(0)).await.bits(), expected.bits());
    forget(&engine).await;
    assert_eq!(engine.stats().disk_pages_read, 0);
    let again = answer(&engine, long(0)).await;
    assert_eq!((again.usage.cached, again.bits()), (112, expected.bits()));
    assert_eq!((engine.stats().disk_pages_read, engine.stats().disk_pages_lost), (7, 0));
    forget(&engine).await;
    let mut other = long(0);
    other.cache_salt = 2;
    let other = answer(&engine, other).await;
    assert_eq!((other.usage.cached, other.bits()), (0, expected.bits()), "a prefix was shared across salts");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_file_what_memory_forgot_is_computed_again() {
    let engine = engine(Setup { kv_bytes: 256 << 10, ..Setup::default() });
    answer(&engine, long(0)).await;
    forget(&engine).await;
    assert_eq!(answer(&engine, long(0)).await.usage.cached, 0, "the other tests forget nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_is_a_miss() {
    let expected = expected().await;
    let file = file();
    let engine = small(&file, 64 << 20);
    answer(&engine, long(0)).await;
    forget(&engine).await;
    // The thread may still be writing: what it writes after this is whole.
    std::thread::sleep(std::time::Duration::from_millis(200));
    let length = file.metadata().unwrap().len();
    file.write_all_at(&vec![0x5a; length as usize], 0).unwrap();
    let again = answer(&engine, long(0)).await;
    assert_eq!((again.error.as_ref(), again.bits()), (None, expected.bits()), "damaged pages were read");
    assert!(engine.stats().disk_pages_lost > 0);
    assert!(again.usage.cached < 112);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_keeps_its_bound_and_others_go_on_while_pages_come() {
    let file = file();
    let bytes = 64 << 10;
    let engine = small(&file, bytes);
    let mut answers = Vec::new();
    for round in 0..2 {
        let found = futures::future::join_all((0..20).map(|n| answer(&engine, long(n)))).await;
        assert!(found.iter().all(|answer| answer.error.is_none()), "round {round}");
        answers.push(found.iter().map(Answer::bits).collect::<Vec<_>>());
    }
    assert_eq!(answers[0], answers[1]);
    assert!(file.metadata().unwrap().len() <= bytes);
    assert!(engine.stats().disk_pages_written > engine.stats().disk_pages_used);
}
