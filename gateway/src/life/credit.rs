//! A running request's credit: reserved before it begins, raised while its answer grows, settled when it ends.

use actix_web::http::StatusCode;
use billing::{Charge, Finish, Hold, Quantities, Rates, Wallets};
use platform::AccountName;
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
    refused: bool,
}

impl Credit {
    /// Reserves what the requests need to begin, and tells them how far they may go. `whole`: the answer's length was asked for,
    /// so all of it must be there. None for what is free.
    pub async fn open(
        wallets: &Wallets,
        account: &AccountName,
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
        let hold = wallets.reserve(account, cost(least), cost(wanted)).await?.map_err(|_| {
            let need = cost(least) as f64 / 1e9;
            let lower = if whole { "; a lower max_tokens needs less" } else { "" };
            insufficient(format!("this account is out of credit: the request needs {need} USD{lower}"))
        })?;
        let mut credit = Self { hold, rates, prompts, prompt_tokens, granted: least, most, slice, refused: false };
        credit.granted = credit.affordable(wanted);
        for request in requests {
            request.allowance = Some(credit.granted);
        }
        Ok(Some(credit))
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

    /// Reserves the next slice when half of this one is used; `used` is the most that one prompt's answers have drawn.
    pub async fn keep_ahead(&mut self, used: u64, controls: &[Controls]) -> Result<(), ApiError> {
        if self.refused || self.granted >= self.most || used + self.slice / 2 < self.granted {
            return Ok(());
        }
        let wanted = (self.granted + self.slice).min(self.most);
        let held = self.hold.amount();
        let (least, wanted_more) = (self.cost(self.granted + 1) - held, self.cost(wanted) - held);
        let more = wanted_more <= 0 || self.hold.extend(least.max(1), wanted_more).await?;
        let granted = self.affordable(wanted);
        if granted > self.granted {
            self.granted = granted;
            controls.iter().for_each(|control| control.allow(granted));
        } else if !more {
            self.refused = true;
            controls.iter().for_each(Controls::allow_no_more);
        }
        Ok(())
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
