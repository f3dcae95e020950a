//! Gateways, an engine that is a stub, the real journal, wallets and ledger on a real database; and everything that goes wrong:
//! gateways that are killed between any two steps, deliveries that come twice or late, clocks that jump, a database that fails
//! before a commit or after it, or takes its time; a server that others take for dead while it lives. In the end every token that a client got is accounted for.
//!
//! The seed decides what is asked for and what goes wrong how often. What meets what is up to the machine: threads are real.

mod audit;
mod credit;
mod engine;
mod gateway;
mod random;
mod world;

use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use platform::{Db, DbKind};

use audit::Report;
use gateway::Gateway;
use world::World;

/// How many requests the large run makes.
const REQUESTS: &str = "MYRIAD_SIMULATED_REQUESTS";
const SEED: &str = "MYRIAD_SIMULATED_SEED";
const AT_A_TIME: usize = 5;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

#[test]
fn every_token_that_a_client_got_is_charged_once_whatever_is_killed_or_fails() {
    println!("in all: {}", in_parts(number(SEED).unwrap_or(1), 20_000, 4_000));
}

#[test]
fn several_servers_on_one_database_charge_every_token_once() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let Some(url) = runtime.block_on(platform::testing::postgres()) else { return };
    println!("{}", simulate(number(SEED).unwrap_or(1), url, 3_000, 3));
}

/// A million with `MYRIAD_SIMULATED_REQUESTS=1000000 cargo test --release -p billing --test money -- --ignored --nocapture`.
#[test]
#[ignore = "takes as long as it is told to"]
fn large_simulation() {
    let requests = number(REQUESTS).unwrap_or(100_000);
    println!("in all: {}", in_parts(number(SEED).unwrap_or(1_000), requests, 25_000));
}

/// A database, and a seed, for each part; several at a time, for most of the time something waits.
fn in_parts(first_seed: u64, requests: u64, part: u64) -> Report {
    let (next, total) = (AtomicU64::new(0), Mutex::new(Report::default()));
    let parts = || {
        loop {
            let begin = next.fetch_add(1, Ordering::SeqCst) * part;
            if begin >= requests {
                return;
            }
            let seed = first_seed + begin / part;
            let report = on_sqlite(seed, part.min(requests - begin));
            println!("seed {seed}: {report}");
            total.lock().expect("no panic").add(&report);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(parts);
        }
    });
    total.into_inner().expect("no panic")
}

fn on_sqlite(seed: u64, requests: u64) -> Report {
    let folder = Folder::new(seed);
    simulate(seed, Db::sqlite_url(&folder.0.join("simulated.sqlite")), requests, 1)
}

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(seed: u64) -> Self {
        let folder = std::env::temp_dir().join(format!("myriad-simulation-{}-{seed}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder is made");
        Self(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn simulate(seed: u64, url: String, requests: u64, servers: usize) -> Report {
    let world = runtime().block_on(World::new(seed, url, requests, servers));
    std::thread::scope(|scope| {
        for _ in 0..servers {
            scope.spawn(|| {
                while !world.is_done() {
                    live(&world);
                }
            });
        }
    });
    world.calm.store(true, Ordering::SeqCst);
    runtime().block_on(audit::settle_up(&world))
}

/// One gateway from its start until it is killed or stops.
fn live(world: &Arc<World>) {
    let life = Life::drawn(world);
    let instance = Mutex::new(None);
    let runtime = runtime();
    let stopped = runtime.block_on(async {
        tokio::select! {
            stopped = life.run(world, &instance) => stopped,
            () = tokio::time::sleep(life.time) => false,
        }
    });
    // What has not ended stops where it stands.
    drop(runtime);
    let counts = &world.counts;
    if stopped { &counts.stops } else { &counts.kills }.fetch_add(1, Ordering::SeqCst);
    if let (false, Some(instance)) = (stopped, instance.into_inner().expect("no panic")) {
        self::runtime().block_on(age(world, &instance));
    }
}

/// What a server of its own finds out after a while: this one is not seen any more.
async fn age(world: &World, instance: &str) {
    let db = Db::open(&world.url).await.expect("the database opens");
    let aged = sqlx::query("UPDATE instances SET seen_ms = seen_ms - 60000 WHERE id = $1").bind(instance);
    aged.execute(db.pool()).await.expect("the database answers");
    db.close().await;
}

struct Life {
    /// Killed after so many steps, or so much time, whichever comes first.
    steps: i64,
    time: Duration,
    /// Stops in order after so many requests.
    quota: i64,
    workers: usize,
    clock_jumps_ms: i64,
    /// Looks as if it had stood still, to one that starts then.
    looks_dead_after: Option<Duration>,
}

impl Life {
    fn drawn(world: &World) -> Self {
        const NEVER: u64 = 1_000_000_000;
        world.random(|random| {
            let kind = random.between(0, 3);
            let steps = if kind < 2 { random.between(1, 60_000) } else { NEVER };
            let millis = if kind == 2 { random.between(1, 500) } else { NEVER };
            let quota = if kind == 3 { random.between(1, 500) } else { NEVER };
            let looks_dead = world.buries_the_living() && random.per_mille(400);
            let looks_dead_after = looks_dead.then(|| Duration::from_millis(random.between(1, 300)));
            let hours = if random.per_mille(250) { random.between(0, 96) as i64 - 48 } else { 0 };
            Self {
                steps: steps as i64,
                time: Duration::from_millis(millis),
                quota: quota as i64,
                workers: random.between(1, 48) as usize,
                clock_jumps_ms: hours * 3_600_000,
                looks_dead_after,
            }
        })
    }

    /// True when it came to its end.
    async fn run(&self, world: &Arc<World>, instance: &Mutex<Option<String>>) -> bool {
        let db = Db::open(&world.url).await.expect("the database opens");
        self.jump(world, &db).await;
        let gateway = Gateway::start(world, db, self.steps).await;
        *instance.lock().expect("no panic") = Some(gateway.journal.instance().to_owned());
        let quota = Arc::new(AtomicI64::new(self.quota));
        let workers = (0..self.workers).map(|_| tokio::spawn(gateway.clone().work(quota.clone())));
        let work = async {
            for worker in workers.collect::<Vec<_>>() {
                worker.await.expect("no panic");
            }
            gateway.stop().await;
        };
        let look_dead = async {
            if let Some(after) = self.looks_dead_after {
                tokio::time::sleep(after).await;
                age(world, gateway.journal.instance()).await;
                world.counts.taken_for_dead.fetch_add(1, Ordering::SeqCst);
            }
            std::future::pending::<bool>().await
        };
        tokio::select! {
            () = work => true,
            () = gateway.killed.notified() => false,
            never = look_dead => never,
        }
    }

    /// A clock that jumps is the same as stored times that lie elsewhere.
    async fn jump(&self, world: &World, db: &Db) {
        if self.clock_jumps_ms == 0 {
            return;
        }
        world.counts.clock_jumps.fetch_add(1, Ordering::SeqCst);
        let mut jumps = vec![
            "UPDATE requests SET started_ms = started_ms + $1 WHERE finish = 'running'",
            "UPDATE reservations SET created_ms = created_ms + $1 WHERE closed_ms IS NULL",
        ];
        // That of a PostgreSQL server is the clock by which it is decided who lives; servers that live would be buried.
        if db.kind() == DbKind::Sqlite {
            jumps.push("UPDATE instances SET seen_ms = seen_ms + $1");
        }
        for sql in jumps {
            // A server's marks take the same rows in another order: one of the two must begin again.
            while let Err(error) = sqlx::query(sql).bind(self.clock_jumps_ms).execute(db.pool()).await {
                let code = error.as_database_error().and_then(|error| error.code().map(|code| code.into_owned()));
                assert_eq!(code.as_deref(), Some("40P01"), "{error}");
            }
        }
    }
}
