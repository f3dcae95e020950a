//! The driver: owns a request's replies until they are settled, whether or not the client is still there.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use billing::{BillingError, Charge, Finish, Marks, NewRequest, Quantities, Rates, Settled, Spender};
use futures::StreamExt;
use futures::future::select_all;
use futures::stream::SelectAll;
use platform::{AccountName, RequestId};
use serving_engine::{Controls, Event, FinishReason, Finished, Reply, Request, Token, Usage};
use text::StreamDecoder;

use super::credit::{Credit, Extension};
use super::piece::{Ending, Piece, ScoredToken};
use super::pieces::{Outlet, Pieces, pieces};
use crate::error::{ApiError, overloaded};
use crate::state::Platform;

/// A database that takes longer is away: new requests are refused, ended ones are told so and settled when it is back.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// When a failure that passes is worth another try.
const RETRY_MS: u64 = 1_000;

/// What it takes to start a request.
pub struct Start {
    pub row: NewRequest,
    /// What the request is charged at; none: it is free.
    pub rates: Option<Rates>,
    /// One engine request for each prompt, all with as many choices.
    pub requests: Vec<Request>,
    /// Whether the request says how long its answer may be.
    pub length_given: bool,
    pub decoders: Vec<StreamDecoder>,
    pub started: Instant,
}

/// A request that runs.
pub struct Run {
    pub id: RequestId,
    pub pieces: Pieces,
    /// Time from the request's arrival until the engine had it.
    pub overhead: Duration,
}

/// Gives the prompts to the engine and opens the row. Returns when the row is durable, so that what is sent from then on is
/// accounted for.
pub async fn start(platform: Arc<Platform>, mut start: Start) -> Result<Run, ApiError> {
    let choices = start.requests.first().map_or(1, |request| request.choices);
    let Start { row, rates, requests, length_given, .. } = &mut start;
    let adapter = row.adapter.as_ref().map(|(name, _)| name.as_str());
    let spender = Spender { account: &row.account, key_id: &row.key_id, adapter };
    let credit = Credit::open(&platform.wallets, &spender, *rates, requests, *length_given).await?;
    row.reservation = credit.as_ref().map(Credit::reservation);
    // On a task of its own: a client that leaves now must not leave a row behind that nobody settles.
    tokio::spawn(begin(platform, start, credit, choices)).await.map_err(ApiError::internal)?
}

async fn begin(platform: Arc<Platform>, start: Start, credit: Option<Credit>, choices: u32) -> Result<Run, ApiError> {
    let prompts = start.requests.iter().map(|request| request.tokens.clone()).collect();
    let mut replies: Vec<Reply> =
        start.requests.into_iter().map(|request| platform.engine.submit(request)).collect::<Result<_, _>>()?;
    let overhead = start.started.elapsed();
    // The engine works on the prompt while the row is written; dropping the replies cancels it.
    let begun = in_time(async {
        let begun = platform.journal.begin(&start.row).await;
        if let (Err(BillingError::ReservationClosed(_)), Some(credit)) = (&begun, &credit) {
            credit.is_closed();
        }
        Ok(begun?)
    });
    let (begun, waited) = after(begun, &mut replies).await;
    platform.metrics.row_wait(waited);
    if let Err(error) = begun {
        // It may be written yet: then it ends at once, and nothing was used.
        tokio::spawn(async move {
            let nothing = Quantities::default();
            if let Ok(true) = platform.journal.settle(&start.row.id, nothing, Finish::Error, None).await {
                platform.reconciler.engine.add(start.row.account.as_str(), &start.row.base, nothing);
            }
        });
        return Err(error);
    }
    let (outlet, pieces) = pieces();
    let id = start.row.id.clone();
    let driver = Driver {
        usages: vec![Usage::default(); replies.len()],
        choices: start.decoders.into_iter().map(Choice::new).collect(),
        per_prompt: choices as usize,
        prompts,
        platform,
        id: id.clone(),
        account: start.row.account,
        base: start.row.base,
        rates: start.rates,
        credit,
        client: Some(outlet),
        finished: 0,
        failure: None,
        cancelled: false,
        closed: false,
        started: start.started,
        last_token: None,
        marks: Marks::default(),
    };
    tokio::spawn(driver.run(replies));
    Ok(Run { id, pieces, overhead })
}

/// What the row's opening ends with, and how long the engine's first answer waited for that.
async fn after<T>(opening: impl Future<Output = T>, replies: &mut [Reply]) -> (T, Duration) {
    let mut opening = std::pin::pin!(opening);
    let answering = select_all(replies.iter_mut().map(|reply| Box::pin(reply.answering())));
    tokio::select! {
        biased;
        opened = &mut opening => return (opened, Duration::ZERO),
        _ = answering => {}
    }
    let answered = Instant::now();
    (opening.await, answered.elapsed())
}

/// One answer on its way to text.
struct Choice {
    decoder: StreamDecoder,
    /// Scores of tokens whose text is still held back, each with the bytes up to its beginning.
    held: VecDeque<(u64, ScoredToken)>,
    bytes: u64,
    ending: Option<Ending>,
}

impl Choice {
    fn new(decoder: StreamDecoder) -> Self {
        Self { decoder, held: VecDeque::new(), bytes: 0, ending: None }
    }

    /// Scores of the tokens that begin before `shown` bytes, or that have no bytes and follow those.
    fn take_scores(&mut self, shown: u64) -> Vec<ScoredToken> {
        let ready = self.held.iter().take_while(|(begin, _)| *begin < shown).count();
        self.held.drain(..ready).map(|(_, token)| token).collect()
    }
}

struct Driver {
    platform: Arc<Platform>,
    id: RequestId,
    account: AccountName,
    base: String,
    rates: Option<Rates>,
    /// None for what is free.
    credit: Option<Credit>,
    /// Nobody, once the client has left.
    client: Option<Outlet>,
    prompts: Vec<Arc<[u32]>>,
    choices: Vec<Choice>,
    per_prompt: usize,
    usages: Vec<Usage>,
    /// Prompts whose `Finished` has come.
    finished: usize,
    failure: Option<String>,
    cancelled: bool,
    /// A mark has found the row closed: nothing is delivered any more.
    closed: bool,
    started: Instant,
    last_token: Option<Instant>,
    marks: Marks,
}

impl Driver {
    async fn run(mut self, replies: Vec<Reply>) {
        let controls: Vec<Controls> = replies.iter().map(Reply::controls).collect();
        let mut events: SelectAll<_> =
            replies.into_iter().enumerate().map(|(prompt, reply)| numbered(prompt, reply)).collect();
        let mut extension = None;
        loop {
            if extension.is_none() {
                extension = self.next_credit();
            }
            let gone = gone(self.client.as_ref());
            tokio::select! {
                event = events.next() => match event {
                    None => break,
                    Some((prompt, event)) => self.take(prompt, event, &controls).await,
                },
                () = gone => self.leave(&controls),
                answer = answered(&mut extension) => {
                    extension = None;
                    let used = self.most_used();
                    if let Some(credit) = &mut self.credit {
                        credit.extended(answer, used, &controls);
                    }
                }
            }
        }
        self.settle().await;
    }

    /// The client has left: what it no longer reads is not computed.
    fn leave(&mut self, controls: &[Controls]) {
        self.client = None;
        self.cancelled = true;
        controls.iter().for_each(Controls::cancel);
    }

    /// What is to be reserved next for the answer, if anything.
    fn next_credit(&mut self) -> Option<Extension> {
        let used = self.most_used();
        self.credit.as_mut().and_then(|credit| credit.next(used))
    }

    /// The most completion tokens that one prompt's answers may have drawn: a choice that has ended can have drawn one, its stop
    /// token, that was not sent.
    fn most_used(&self) -> u64 {
        let ended = |choices: &[Choice]| choices.iter().filter(|choice| choice.ending.is_some()).count() as u64;
        let prompts = self.usages.iter().zip(self.choices.chunks(self.per_prompt.max(1)));
        prompts.map(|(usage, choices)| usage.completion + ended(choices)).max().unwrap_or(0)
    }

    async fn take(&mut self, prompt: usize, event: Event, controls: &[Controls]) {
        let piece = match event {
            Event::Prompt(scores) => Some(self.prompt_scores(prompt, scores)),
            Event::Started { cached } => {
                self.usages[prompt].cached = cached;
                None
            }
            Event::Token { choice, token } => {
                self.mark(controls).await;
                self.token(prompt * self.per_prompt + choice as usize, prompt, token)
            }
            Event::Choice { choice, reason, visible_bytes } => {
                self.choice_ended(prompt * self.per_prompt + choice as usize, reason, visible_bytes)
            }
            Event::Finished(Finished { usage, error }) => {
                self.usages[prompt] = usage;
                self.finished += 1;
                self.failure = self.failure.take().or(error);
                None
            }
        };
        let (Some(piece), Some(client), false) = (piece, &self.client, self.closed) else { return };
        if !client.send(piece, self.quantities().completion_tokens).await {
            self.leave(controls);
        }
    }

    /// Notes how much of the answer was delivered. One that is sent as a whole has nothing to note before its end.
    async fn mark(&mut self, controls: &[Controls]) {
        let delivered = self.client.as_ref().map_or(0, Outlet::delivered);
        if delivered == 0 || self.closed {
            return;
        }
        let quantities = Quantities { completion_tokens: delivered, ..self.quantities() };
        if !self.marks.keep_up(&self.platform.journal, &self.id, quantities).await {
            // What more it would deliver, nobody would be charged for.
            self.closed = true;
            controls.iter().for_each(Controls::cancel);
        }
    }

    fn prompt_scores(&self, prompt: usize, scores: Vec<Token>) -> Piece {
        let first = ScoredToken { id: self.prompts[prompt][0], logprob: None, top: Vec::new() };
        let tokens = std::iter::once(first).chain(scores.into_iter().map(scored)).collect();
        Piece::Prompt { prompt, tokens }
    }

    fn token(&mut self, index: usize, prompt: usize, token: Token) -> Option<Piece> {
        self.measure();
        self.usages[prompt].completion += 1;
        self.usages[prompt].prompt = self.prompts[prompt].len() as u64;
        let choice = self.choices.get_mut(index)?;
        let (id, held_bytes) = (token.id, token.held_bytes);
        choice.held.push_back((choice.bytes, scored(token)));
        choice.bytes += choice.decoder.bytes_of(id);
        let text = choice.decoder.push(id, held_bytes);
        let tokens = choice.take_scores(choice.decoder.passed());
        (!text.is_empty() || !tokens.is_empty()).then_some(Piece::Text { index, text, tokens })
    }

    fn choice_ended(&mut self, index: usize, reason: FinishReason, visible_bytes: u64) -> Option<Piece> {
        let choice = self.choices.get_mut(index)?;
        choice.ending = match reason {
            FinishReason::Stop => Some(Ending::Stop),
            FinishReason::Length => Some(Ending::Length),
            FinishReason::Allowance => Some(Ending::Credit),
            FinishReason::Cancelled => None,
        };
        let text = choice.decoder.finish(visible_bytes);
        let tokens = match reason {
            // Tokens without bytes at the end belong to the answer, unless a stop string has cut it.
            FinishReason::Length | FinishReason::Allowance => choice.held.drain(..).map(|(_, token)| token).collect(),
            _ => choice.take_scores(visible_bytes),
        };
        (!text.is_empty() || !tokens.is_empty()).then_some(Piece::Text { index, text, tokens })
    }

    fn measure(&mut self) {
        let now = Instant::now();
        match self.last_token.replace(now) {
            None => self.platform.metrics.first_token(now - self.started),
            Some(last) => self.platform.metrics.inter_token(now - last),
        }
    }

    fn quantities(&self) -> Quantities {
        let sum = |count: fn(&Usage) -> u64| self.usages.iter().map(count).sum();
        Quantities {
            prompt_tokens: sum(|usage| usage.prompt),
            cached_tokens: sum(|usage| usage.cached),
            completion_tokens: sum(|usage| usage.completion),
        }
    }

    /// Closes the row; only then the client hears that the answer is complete.
    async fn settle(mut self) {
        if self.finished < self.prompts.len() {
            self.failure.get_or_insert_with(|| "the engine has stopped".into());
        }
        // From then on a kill can no longer lose what is charged.
        if let Some(client) = &self.client
            && !client.drain().await
        {
            (self.client, self.cancelled) = (None, true);
        }
        let quantities = self.quantities();
        let finish = match (&self.failure, self.cancelled) {
            (Some(_), _) => Finish::Error,
            (None, true) => Finish::Cancelled,
            (None, false) if self.closed => Finish::Cancelled,
            (None, false) if self.choices.iter().any(|choice| choice.ending == Some(Ending::Credit)) => Finish::Credit,
            (None, false) if self.choices.iter().all(|choice| choice.ending == Some(Ending::Length)) => Finish::Length,
            _ => Finish::Stop,
        };
        let charge = self.credit.take().and_then(|credit| credit.settle(&quantities, finish));
        let settled = tokio::spawn(self.write_end(quantities, finish, charge));
        let settled = in_time(async { Ok(settled.await.map_err(ApiError::internal)??) }).await;
        self.platform.metrics.end_to_end(self.started.elapsed());
        let Some(client) = self.client.take() else {
            if let Err(error) = settled {
                tracing::error!(request = %self.id, ?error, "a request's row could not be settled yet");
            }
            return;
        };
        let pieces = match (settled, self.failure.take()) {
            (Err(error), _) => vec![Piece::Failed(error)],
            // Another server took this one for dead and closed the row at its last mark: what is charged is not this answer.
            (Ok(Settled::Free | Settled::Before(_)), _) => {
                vec![Piece::Failed(overloaded("the answer was closed at its last mark; send it again", RETRY_MS))]
            }
            (Ok(Settled::AsSaid), Some(failure)) => vec![Piece::Failed(ApiError::gave_up(&failure))],
            (Ok(Settled::AsSaid), None) => self.endings(quantities, finish),
        };
        for piece in pieces {
            if !client.send(piece, quantities.completion_tokens).await {
                return;
            }
        }
    }

    /// Settles the row and tells the reconciler what the engine has counted for it, also where nobody waits for the answer any more.
    fn write_end(
        &self,
        quantities: Quantities,
        finish: Finish,
        charge: Option<Charge>,
    ) -> impl Future<Output = Result<Settled, BillingError>> + Send + use<> {
        let (platform, id) = (self.platform.clone(), self.id.clone());
        let (account, base) = (self.account.clone(), self.base.clone());
        platform.reconciler.engine.add(account.as_str(), &base, quantities);
        async move {
            let settled = platform.journal.end(&id, quantities, finish, charge).await?;
            let unbilled = platform.reconciler.engine.settled(account.as_str(), &base, quantities, settled);
            if settled != Settled::AsSaid {
                tracing::warn!(request = %id, unbilled, ?settled, "a request's row was closed otherwise; this was computed and not charged");
            }
            Ok(settled)
        }
    }

    fn endings(&self, quantities: Quantities, finish: Finish) -> Vec<Piece> {
        let end =
            |(index, choice): (usize, &Choice)| Piece::End { index, ending: choice.ending.unwrap_or(Ending::Stop) };
        let usage = Usage {
            prompt: quantities.prompt_tokens,
            cached: quantities.cached_tokens,
            completion: quantities.completion_tokens,
            guessed: self.usages.iter().map(|usage| usage.guessed).sum(),
            accepted: self.usages.iter().map(|usage| usage.accepted).sum(),
        };
        let cost_nano_usd = self.rates.map_or(0, |rates| rates.cost(&quantities, finish.name()));
        self.choices.iter().enumerate().map(end).chain([Piece::Done { usage, cost_nano_usd }]).collect()
    }
}

/// What the database does not answer in time is refused as an overload: it is worth a retry.
async fn in_time<T>(work: impl Future<Output = Result<T, ApiError>>) -> Result<T, ApiError> {
    match tokio::time::timeout(WRITE_TIMEOUT, work).await {
        Ok(done) => done,
        Err(_) => Err(overloaded("the database does not answer; try again later", RETRY_MS)),
    }
}

fn scored(token: Token) -> ScoredToken {
    ScoredToken { id: token.id, logprob: Some(token.logprob), top: token.top }
}

/// The answer to what was asked for; never, where nothing was.
async fn answered(extension: &mut Option<Extension>) -> <Extension as Future>::Output {
    match extension {
        Some(extension) => extension.await,
        None => std::future::pending().await,
    }
}

/// Resolves when the client has left; never, when it has left already.
async fn gone(client: Option<&Outlet>) {
    match client {
        Some(client) => client.closed().await,
        None => std::future::pending().await,
    }
}

fn numbered(prompt: usize, reply: Reply) -> futures::stream::BoxStream<'static, (usize, Event)> {
    futures::stream::unfold(
        reply,
        move |mut reply| async move { reply.next().await.map(|event| ((prompt, event), reply)) },
    )
    .boxed()
}
