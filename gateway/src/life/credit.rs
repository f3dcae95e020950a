//! A running request's credit: reserved before it begins, raised while its answer grows, settled when it ends.

use std::time::Duration;

use actix_web::http::StatusCode;
use billing::{BillingError, Charge, Finish, Hold, Quantities, Rates, Refusal, Spender, Wallets};
use futures::FutureExt;
use futures::future::BoxFuture;
use serving_engine::{Controls, Request};

use crate::error::ApiError;

/// Tokens per choice that are reserved at a time where the request does not say how many it wants.
const SLICE_TOKENS: u64 = 128;

/// What a request holds. Tokens are counted per prompt.
pub struct Credit {
    hold: Hold,
    rates: Rates,
    prompts: u64,
    prompt_tokens: u64,
    /// Completion tokens that are reserved, of `most`.
    granted: u64,
    most: u64,
    slice: u64,
    /// There was nothing left when the next slice was asked for.
    short: bool,
    refused: bool,
    /// The ledger did not answer: it is asked again, and the answer waits at what is granted.
    away: bool,
}

/// A ledger that did not answer is asked again after so long.
const AGAIN: Duration = Duration::from_secs(1);

/// Credit on its way.
pub type Extension = BoxFuture<'static, Result<Result<Hold, Refusal>, BillingError>>;

impl Credit {
    /// Reserves what the requests need to begin, and tells them how far they may go. `whole`: the answer's length was asked for,
    /// so all of it must be there. None for what is free.
    pub async fn open(
        wallets: &Wallets,
        spender: &Spender<'_>,
        rates: Option<Rates>,
        requests: &mut [Request],
        whole: bool,
    ) -> Result<Option<Self>, ApiError> {
        let Some(rates) = rates.filter(|rates| !rates.are_free()) else { return Ok(None) };
        let Some(first) = requests.first() else { return Ok(None) };
        let choices = u64::from(first.choices);
        let prompts = requests.len() as u64;
        let prompt_tokens = requests.iter().map(|request| request.tokens.len() as u64).sum();
        let most = requests.iter().map(|request| u64::from(request.max_tokens)).max().unwrap_or(0) * choices;
        let slice = SLICE_TOKENS * choices;
        let cost = |tokens: u64| rates.most(prompt_tokens, tokens * prompts).max(1);
        let (least, wanted) = match whole {
            true => (most, most),
            false => (choices.min(most), slice.min(most)),
        };
        let hold = wallets.reserve(spender, cost(least), cost(wanted)).await?.map_err(|refusal| {
            let need = cost(least) as f64 / 1e9;
            let lower = if whole { "; a lower max_tokens needs less" } else { "" };
            let reason = match refusal {
                Refusal::CapReached => "a spending cap of this account, key or adapter is reached",
                _ => "this account is out of credit",
            };
            insufficient(format!("{reason}: the request needs {need} USD{lower}"))
        })?;
        let mut credit = Self {
            hold,
            rates,
            prompts,
            prompt_tokens,
            granted: least,
            most,
            slice,
            short: false,
            refused: false,
            away: false,
        };
        credit.granted = credit.affordable(wanted);
        for request in requests {
            request.allowance = Some(credit.granted);
        }
        Ok(Some(credit))
    }

    /// What the request is charged to.
    pub fn reservation(&self) -> String {
        self.hold.reservation().to_owned()
    }

    /// Others have closed what it was to be charged to.
    pub fn is_closed(&self) {
        self.hold.is_closed();
    }

    /// Completion tokens per prompt that what is held pays for, up to `wanted`.
    fn affordable(&self, wanted: u64) -> u64 {
        let (mut low, mut high) = (self.granted, wanted.max(self.granted));
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            match self.cost(middle) <= self.hold.amount() {
                true => low = middle,
                false => high = middle - 1,
            }
        }
        low
    }

    fn cost(&self, tokens: u64) -> i64 {
        self.rates.most(self.prompt_tokens, tokens * self.prompts)
    }

    /// What is to be reserved next, if anything: when half of a slice is used the next one, without waiting; when all of it is
    /// used and there was none, whatever others give back. `used` is the most that one prompt's answers have drawn.
    pub fn next(&mut self, used: u64) -> Option<Extension> {
        let patient = self.short && used >= self.granted;
        let early = !self.short && used + self.slice / 2 >= self.granted;
        if self.refused || self.granted >= self.most || !(patient || early) {
            return None;
        }
        let held = self.hold.amount();
        let wanted = (self.granted + self.slice).min(self.most);
        let (least, wanted) = (self.cost(self.granted + 1) - held, self.cost(wanted) - held);
        let more = self.hold.more(least.max(1), wanted.max(1), patient);
        let pause = if self.away { AGAIN } else { Duration::ZERO };
        let asked = async move {
            tokio::time::sleep(pause).await;
            more.await
        };
        Some(asked.boxed())
    }

    /// Takes the ledger's answer in.
    pub fn extended(&mut self, answer: Result<Result<Hold, Refusal>, BillingError>, used: u64, controls: &[Controls]) {
        self.away = answer.is_err();
        match answer {
            Ok(Ok(more)) => {
                self.hold.add(more);
                self.granted = self.affordable((self.granted + self.slice).min(self.most));
                self.short = false;
                controls.iter().for_each(|control| control.allow(self.granted));
            }
            Ok(Err(_)) if !self.short => self.short = true,
            Ok(Err(_)) => self.refuse(controls),
            // That is no refusal: there may be credit enough.
            Err(error) => tracing::warn!(%error, used, "no more credit could be reserved yet"),
        }
    }

    fn refuse(&mut self, controls: &[Controls]) {
        self.refused = true;
        controls.iter().for_each(Controls::allow_no_more);
    }

    /// Takes what the request has cost; the rest goes back.
    pub fn settle(self, quantities: &Quantities, finish: Finish) -> Option<Charge> {
        self.hold.settle(self.rates.cost(quantities, finish.name()))
    }
}

/// 402, which a retry does not change.
fn insufficient(message: String) -> ApiError {
    ApiError::new(StatusCode::PAYMENT_REQUIRED, message).with_code("insufficient_quota")
}
