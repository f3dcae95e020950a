//! What the gateway does for a request, in its order: reserve, begin, deliver, mark, extend, settle, tell the client. It can be
//! killed at each step.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use billing::{
    BillingError, Charge, Command, EngineCounts, Extent, Finish, Journal, Ledger, Limits, Marks, NewRequest, Prices,
    Quantities, Rates, Settled, Wallets, reconcile,
};
use platform::units::now_ms;
use platform::{Db, RequestId};
use tokio::sync::Notify;

use super::credit::{Credit, Extension};
use super::engine::{Controls, End, Event, submit};
use super::world::{Plan, Seen, World};
use crate::support::request;

/// The model of all requests.
const BASE: &str = "mini";

pub struct Gateway {
    pub world: Arc<World>,
    pub journal: Journal,
    pub ledger: Ledger,
    pool: sqlx::AnyPool,
    pub wallets: Wallets,
    pub engine: EngineCounts,
    /// Steps that it has left to live.
    steps: AtomicI64,
    pub killed: Notify,
}

impl Gateway {
    /// Starts and buries the one before; tried again while the database is away.
    pub async fn start(world: &Arc<World>, db: Db, steps: i64) -> Arc<Self> {
        loop {
            let db = db.clone();
            let prices = Prices::open(db.clone()).await.expect("prices are read");
            let opened = Journal::open_with_faults(db.clone(), prices, world.faults()).await;
            let Some((journal, _)) = passing(opened) else { continue };
            let Some(limits) = passing(Limits::open(db.clone()).await) else { continue };
            let pool = db.pool().clone();
            let ledger = Ledger::with_faults(db, world.faults());
            let wallets = Wallets::new(ledger.clone(), journal.clone(), limits);
            let (steps, killed) = (AtomicI64::new(steps), Notify::new());
            let engine = EngineCounts::default();
            return Arc::new(Self { world: world.clone(), journal, ledger, pool, wallets, engine, steps, killed });
        }
    }

    /// Between any two things that a gateway does. Does not return once it was killed.
    async fn step(&self) {
        if self.steps.fetch_sub(1, Ordering::SeqCst) <= 0 {
            self.killed.notify_one();
            std::future::pending().await
        }
    }

    /// Takes requests until so many were taken.
    pub async fn work(self: Arc<Self>, quota: Arc<AtomicI64>) {
        while quota.fetch_sub(1, Ordering::SeqCst) > 0
            && let Some(number) = self.world.take()
        {
            if self.world.top_up(number).is_some() {
                self.top_up(number).await;
            }
            let seen = self.serve(number).await;
            self.world.view(number).seen = Some(seen);
        }
    }

    /// As often as it takes to be answered, and once more: the id is the same.
    pub async fn top_up(&self, number: u64) {
        let Some((account, amount)) = self.world.top_up(number) else { return };
        let id = format!("top-up-{number}");
        for _ in 0..2 {
            loop {
                self.step().await;
                let _ = self.wallets.give_back(&account).await;
                let command = Command::TopUp { amount };
                let answer = self.ledger.apply(&id, &account, &command, None, self.journal.instance()).await;
                if let Some(outcome) = passing(answer) {
                    outcome.expect("a top-up is not refused");
                    break;
                }
            }
        }
    }

    async fn serve(self: &Arc<Self>, number: u64) -> Seen {
        let plan = self.world.plan(number);
        let price = self.world.price(&plan.account);
        self.step().await;
        let credit = match price {
            None => None,
            Some((_, rates)) => {
                let sizes = (plan.prompt_tokens, plan.max_tokens);
                let opened = Credit::open(&self.wallets, &plan.account, rates, sizes, plan.length_given).await;
                match passing(opened) {
                    Some(Ok(credit)) => Some(credit),
                    _ => return Seen::Refused,
                }
            }
        };
        self.step().await;
        let reservation = credit.as_ref().map(|credit| credit.hold().reservation().to_owned());
        let price_version = price.map(|(version, _)| version);
        let new = NewRequest { price_version, reservation, ..request(&plan.account) };
        self.world.view(number).id = Some(new.id.clone());
        let (events, controls) = submit(plan.ask, credit.as_ref().map(|credit| credit.granted));
        if !self.begin(&plan, &new, credit.as_ref()).await {
            return Seen::NotBegun;
        }
        self.step().await;
        let rates = price.map(|(_, rates)| rates);
        let run = Run {
            gateway: self.clone(),
            number,
            plan,
            id: new.id,
            rates,
            credit,
            drawn: 0,
            left: false,
            closed: false,
            marks: Marks::default(),
        };
        run.drive(events, &controls).await
    }

    async fn begin(self: &Arc<Self>, plan: &Plan, new: &NewRequest, credit: Option<&Credit>) -> bool {
        if plan.begins_twice {
            let (gateway, new) = (self.clone(), new.clone());
            self.world.counts.repeats.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move { gateway.journal.begin(&new).await });
        }
        match tokio::time::timeout(plan.patience, self.journal.begin(new)).await {
            Ok(Err(BillingError::ReservationClosed(_))) if self.world.buries_the_living() => {
                if let Some(credit) = credit {
                    credit.hold().is_closed();
                }
                false
            }
            Ok(begun) => {
                begun.expect("the writer tries until it is written");
                true
            }
            Err(_) => {
                let (gateway, id) = (self.clone(), new.id.clone());
                let account = plan.account.clone();
                tokio::spawn(async move {
                    let nothing = Quantities::default();
                    if let Ok(true) = gateway.journal.settle(&id, nothing, Finish::Error, None).await {
                        gateway.engine.add(account.as_str(), BASE, nothing);
                    }
                });
                false
            }
        }
    }

    /// Gives everything back and signs off, as a server does that is asked to stop.
    pub async fn stop(&self) {
        while passing(self.wallets.give_back_all().await).is_none() {}
        let open = "SELECT COUNT(*) FROM reservations WHERE instance = $1 AND closed_ms IS NULL";
        let open = sqlx::query_scalar::<_, i64>(open).bind(self.journal.instance()).fetch_one(&self.pool).await;
        assert_eq!(open.expect("the database answers"), 0, "a server that has stopped still holds credit");
        // Of rows that it gave up before they were open it has settled some.
        self.journal.flush().await.expect("the writer lives");
        let found = reconcile(&self.journal, &self.engine, now_ms(), Extent::Since).await.expect("the books are read");
        assert_eq!(found.listed, [], "a server that stops has counted something else");
        self.journal.close().await.expect("the database answers");
    }
}

/// What came of it, unless the database was away.
pub fn passing<T>(answer: Result<T, BillingError>) -> Option<T> {
    match answer {
        Ok(done) => Some(done),
        Err(error) if error.is_passing() => None,
        Err(error) => panic!("{error}"),
    }
}

/// One request that runs.
struct Run {
    gateway: Arc<Gateway>,
    number: u64,
    plan: Plan,
    id: RequestId,
    rates: Option<Rates>,
    credit: Option<Credit>,
    /// Tokens that the engine has given.
    drawn: u64,
    left: bool,
    /// A mark has found the row closed by another server.
    closed: bool,
    marks: Marks,
}

impl Run {
    async fn drive(mut self, mut events: tokio::sync::mpsc::Receiver<Event>, controls: &Controls) -> Seen {
        let mut extension: Option<Extension> = None;
        let end = loop {
            if extension.is_none() {
                extension = self.credit.as_mut().and_then(|credit| credit.next(self.drawn));
            }
            tokio::select! {
                event = events.recv() => match event {
                    Some(Event::Token) => self.token(controls).await,
                    Some(Event::Finished(end)) => break end,
                    None => panic!("the engine does not stop"),
                },
                answer = answered(&mut extension) => {
                    extension = None;
                    self.gateway.step().await;
                    if let Some(credit) = &mut self.credit {
                        credit.extended(answer, controls);
                    }
                }
            }
        };
        drop(extension);
        self.settle(end).await
    }

    async fn token(&mut self, controls: &Controls) {
        if self.closed {
            return;
        }
        self.drawn += 1;
        if self.plan.leaves_after.is_some_and(|after| self.drawn > after) {
            self.left = true;
            controls.cancel();
        }
        self.gateway.step().await;
        self.gateway.world.view(self.number).delivered = self.drawn;
        // After the delivery: what a mark says is charged if the next thing that happens is a kill.
        self.gateway.step().await;
        let open = self.marks.keep_up(&self.gateway.journal, &self.id, self.quantities()).await;
        self.gateway.world.view(self.number).durable = self.marks.durable();
        if !open {
            assert!(self.gateway.world.buries_the_living(), "a row of a living server was closed");
            self.closed = true;
            controls.cancel();
        }
    }

    const fn quantities(&self) -> Quantities {
        let Plan { prompt_tokens, cached_tokens, .. } = self.plan;
        match self.drawn {
            0 => Quantities { prompt_tokens: 0, cached_tokens: 0, completion_tokens: 0 },
            drawn => Quantities { prompt_tokens, cached_tokens, completion_tokens: drawn },
        }
    }

    async fn settle(mut self, end: End) -> Seen {
        let Plan { prompt_tokens, cached_tokens, max_tokens, .. } = self.plan;
        let quantities = Quantities { prompt_tokens, cached_tokens, completion_tokens: self.drawn };
        let finish = match end {
            End::Failed => Finish::Error,
            _ if self.left => Finish::Cancelled,
            End::Allowance => Finish::Credit,
            _ if self.drawn == max_tokens => Finish::Length,
            _ => Finish::Stop,
        };
        self.gateway.world.view(self.number).settling = Some((quantities, finish));
        let (engine, account) = (&self.gateway.engine, self.plan.account.as_str());
        engine.add(account, BASE, quantities);
        self.gateway.step().await;
        let charge = self.credit.take().and_then(|credit| credit.settle(&quantities, finish));
        self.gateway.step().await;
        let journal = &self.gateway.journal;
        let settled = tokio::spawn(self.end(quantities, finish, charge.clone()));
        let settled = tokio::time::timeout(self.plan.patience, settled).await;
        if self.plan.marks_late {
            drop(journal.mark(&self.id, Quantities::default()).expect("the writer lives"));
        }
        if self.plan.settles_twice {
            self.gateway.world.counts.repeats.fetch_add(2, Ordering::SeqCst);
            let other = Quantities { completion_tokens: self.drawn + 1, ..quantities };
            let other = journal.settle(&self.id, other, Finish::Error, None);
            let same = journal.settle(&self.id, quantities, finish, charge);
            let (same, other) = futures::future::join(same, other).await;
            let closed_by_another = self.gateway.world.buries_the_living();
            assert!(same.expect("it is written") || closed_by_another, "{} was not settled", self.id);
            assert!(!other.expect("it is written"), "{} was settled twice", self.id);
        }
        self.gateway.step().await;
        let cost = self.rates.map_or(0, |rates| rates.cost(&quantities, finish.name()));
        match settled {
            Err(_) => Seen::Failed,
            Ok(settled) => {
                let settled = settled.expect("no panic");
                assert!(settled || self.gateway.world.buries_the_living(), "{} was closed by another", self.id);
                let failed = self.left || finish == Finish::Error || !settled;
                if failed { Seen::Failed } else { Seen::Finished { cost } }
            }
        }
    }
}

impl Run {
    /// Settles the row and tells the reconciler what the engine has counted for it, as the gateway does.
    fn end(
        &self,
        quantities: Quantities,
        finish: Finish,
        charge: Option<Charge>,
    ) -> impl Future<Output = bool> + use<> {
        let (gateway, id, account) = (self.gateway.clone(), self.id.clone(), self.plan.account.clone());
        async move {
            let settled = gateway.journal.end(&id, quantities, finish, charge).await;
            let settled = settled.expect("the writer tries until it is written");
            gateway.engine.settled(account.as_str(), BASE, quantities, settled);
            settled == Settled::AsSaid
        }
    }
}

async fn answered(extension: &mut Option<Extension>) -> <Extension as Future>::Output {
    match extension {
        Some(extension) => extension.await,
        None => std::future::pending().await,
    }
}
