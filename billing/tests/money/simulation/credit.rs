//! A running request's credit, as the gateway keeps it: one prompt, one choice.

use crate::support::spender;
use billing::{BillingError, Charge, Finish, Hold, Quantities, Rates, Refusal, Wallets};
use futures::FutureExt;
use futures::future::BoxFuture;
use platform::AccountName;

use super::engine::Controls;

/// Fewer than in the gateway, so that short answers need more than one.
const SLICE_TOKENS: u64 = 24;

pub type Extension = BoxFuture<'static, Result<Result<Hold, Refusal>, BillingError>>;

pub struct Credit {
    hold: Hold,
    rates: Rates,
    prompt_tokens: u64,
    pub granted: u64,
    most: u64,
    short: bool,
    refused: bool,
}

impl Credit {
    /// `whole`: the answer's length was asked for, so all of it must be there.
    pub async fn open(
        wallets: &Wallets,
        account: &AccountName,
        rates: Rates,
        (prompt_tokens, most): (u64, u64),
        whole: bool,
    ) -> Result<Result<Self, Refusal>, BillingError> {
        let cost = |tokens: u64| rates.most(prompt_tokens, tokens).max(1);
        let (least, wanted) = if whole { (most, most) } else { (1.min(most), SLICE_TOKENS.min(most)) };
        Ok(wallets.reserve(&spender(account), cost(least), cost(wanted)).await?.map(|hold| {
            let mut credit = Self { hold, rates, prompt_tokens, granted: least, most, short: false, refused: false };
            credit.granted = credit.affordable(wanted);
            credit
        }))
    }

    fn affordable(&self, wanted: u64) -> u64 {
        let affordable = |tokens: &u64| self.cost(*tokens) <= self.hold.amount();
        (self.granted..=wanted).rev().find(affordable).unwrap_or(self.granted)
    }

    fn cost(&self, tokens: u64) -> i64 {
        self.rates.most(self.prompt_tokens, tokens)
    }

    pub fn next(&mut self, used: u64) -> Option<Extension> {
        let patient = self.short && used >= self.granted;
        let early = !self.short && used + SLICE_TOKENS / 2 >= self.granted;
        if self.refused || self.granted >= self.most || !(patient || early) {
            return None;
        }
        let held = self.hold.amount();
        let wanted = (self.granted + SLICE_TOKENS).min(self.most);
        let (least, wanted) = (self.cost(self.granted + 1) - held, self.cost(wanted) - held);
        Some(self.hold.more(least.max(1), wanted.max(1), patient).boxed())
    }

    pub fn extended(&mut self, answer: Result<Result<Hold, Refusal>, BillingError>, controls: &Controls) {
        match answer {
            Ok(Ok(more)) => {
                self.hold.add(more);
                self.granted = self.affordable((self.granted + SLICE_TOKENS).min(self.most));
                self.short = false;
                controls.allow(self.granted);
            }
            Ok(Err(_)) if !self.short => self.short = true,
            Ok(Err(_)) | Err(_) => {
                self.refused = true;
                controls.allow_no_more();
            }
        }
    }

    pub const fn hold(&self) -> &Hold {
        &self.hold
    }

    pub fn settle(self, quantities: &Quantities, finish: Finish) -> Option<Charge> {
        self.hold.settle(self.rates.cost(quantities, finish.name()))
    }
}
