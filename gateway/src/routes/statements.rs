//! The account's statements, month by month, as JSON and as a spreadsheet.

use actix_web::http::header::{CONTENT_DISPOSITION, ContentDisposition, DispositionParam, DispositionType};
use actix_web::{HttpResponse, web};
use billing::{ChargeLine, CorrectionLine, CreditLine, Nano, Statement, StorageLine};
use platform::AccountName;
use platform::units::{DAY_MS, Month, day_of, now_ms};
use serde::Deserialize;
use serde_json::{Value, json};

use super::reply::{self, dollars};
use crate::accounts::Caller;
use crate::error::ApiError;
use crate::state::Platform;

const CSV_HEADING: [&str; 12] = [
    "date",
    "line",
    "id_or_model",
    "memo_or_adapter",
    "price_version",
    "requests",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "byte_hours",
    "amount_usd",
    "amount_nano_usd",
];

/// Months in which something happened, oldest first.
pub async fn list(platform: web::Data<Platform>, caller: Caller) -> Result<HttpResponse, ApiError> {
    list_of(&platform, &caller.account, "/v1/account").await
}

/// `at`: where the account is found.
pub async fn list_of(platform: &Platform, account: &AccountName, at: &str) -> Result<HttpResponse, ApiError> {
    let months = platform.ledger.statement_months(account).await?;
    let data: Vec<Value> = months
        .iter()
        .map(|month| {
            let path = format!("{at}/statements/{month}");
            json!({ "object": "account.statement", "month": month.to_string(), "path": path })
        })
        .collect();
    Ok(reply::list(data))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Form {
    format: Option<String>,
}

pub async fn show(
    platform: web::Data<Platform>,
    caller: Caller,
    month: web::Path<String>,
    form: web::Query<Form>,
) -> Result<HttpResponse, ApiError> {
    show_of(&platform, &caller.account, &month, &form).await
}

pub async fn show_of(
    platform: &Platform,
    account: &AccountName,
    month: &str,
    form: &Form,
) -> Result<HttpResponse, ApiError> {
    let month = Month::parse(month).filter(|month| *month <= Month::of_ms(now_ms()));
    let month =
        month.ok_or_else(|| ApiError::param("month", "month must be this month or an earlier one, such as 2026-11"))?;
    let as_csv = match form.format.as_deref() {
        None | Some("json") => false,
        Some("csv") => true,
        Some(_) => return Err(ApiError::param("format", "format must be json or csv")),
    };
    let statement = platform.ledger.statement(account, month).await?;
    if !as_csv {
        return Ok(HttpResponse::Ok().json(shown(account, &statement)));
    }
    let name = format!("statement-{account}-{month}.csv");
    let attachment = ContentDisposition {
        disposition: DispositionType::Attachment,
        parameters: vec![DispositionParam::Filename(name)],
    };
    Ok(HttpResponse::Ok()
        .content_type("text/csv; charset=utf-8")
        .insert_header((CONTENT_DISPOSITION, attachment))
        .body(csv(&statement)))
}

fn shown(account: &AccountName, statement: &Statement) -> Value {
    let (first, last) = days(statement.month);
    json!({
        "object": "account.statement",
        "account": account,
        "month": statement.month.to_string(),
        "from": first,
        "to": last,
        "final": statement.is_final,
        "currency": "usd",
        "opening_balance": dollars(statement.opening),
        "opening_balance_nano_usd": statement.opening,
        "credits": statement.credits.iter().map(credit).collect::<Vec<_>>(),
        "charges": statement.charges.iter().map(charge).collect::<Vec<_>>(),
        "storage": statement.storage.iter().map(storage).collect::<Vec<_>>(),
        "corrections": statement.corrections.iter().map(correction).collect::<Vec<_>>(),
        "closing_balance": dollars(statement.closing),
        "closing_balance_nano_usd": statement.closing,
    })
}

fn credit(line: &CreditLine) -> Value {
    json!({
        "id": line.id,
        "kind": line.kind,
        "memo": line.memo,
        "created_ms": line.created_ms,
        "amount": dollars(line.amount),
        "amount_nano_usd": line.amount,
    })
}

fn charge(line: &ChargeLine) -> Value {
    json!({
        "model": line.model,
        "adapter": line.adapter,
        "price_version": line.price_version,
        "requests": line.requests,
        "prompt_tokens": line.quantities.prompt_tokens,
        "cached_tokens": line.quantities.cached_tokens,
        "completion_tokens": line.quantities.completion_tokens,
        "amount": dollars(line.amount),
        "amount_nano_usd": line.amount,
    })
}

fn storage(line: &StorageLine) -> Value {
    json!({
        "adapter": line.adapter,
        "price_version": line.price_version,
        "hours": line.hours,
        "byte_hours": line.byte_hours,
        "uncharged_byte_hours": line.uncharged_byte_hours,
        "amount": dollars(line.amount),
        "amount_nano_usd": line.amount,
    })
}

fn correction(line: &CorrectionLine) -> Value {
    json!({
        "price_version": line.price_version,
        "requests": line.requests,
        "amount": dollars(line.amount),
        "amount_nano_usd": line.amount,
    })
}

/// The first and the last day of a month.
fn days(month: Month) -> (String, String) {
    (day_of(month.start_ms() / DAY_MS), day_of(month.end_ms() / DAY_MS - 1))
}

/// RFC 4180. The column of amounts adds up: the last row is the sum of the others.
fn csv(statement: &Statement) -> String {
    let (first, last) = days(statement.month);
    let mut text = record(CSV_HEADING.map(str::to_owned));
    text += &row([&first, "opening balance", "", ""], &Counts::default(), statement.opening);
    for line in &statement.credits {
        let memo = line.memo.as_deref().unwrap_or_default();
        text += &row([&day_of(line.created_ms / DAY_MS), &line.kind, &line.id, memo], &Counts::default(), line.amount);
    }
    for line in &statement.charges {
        let (model, adapter) = (line.model.as_deref().unwrap_or_default(), line.adapter.as_deref().unwrap_or_default());
        text += &row([&last, "charge", model, adapter], &Counts::of(line), line.amount);
    }
    for line in &statement.storage {
        let memo = if line.uncharged_byte_hours > 0 { "in part not charged" } else { "" };
        let counts =
            Counts { price_version: Some(line.price_version), byte_hours: Some(line.byte_hours), ..Counts::default() };
        text += &row([&last, "storage", &line.adapter, memo], &counts, line.amount);
    }
    for line in &statement.corrections {
        let counts = Counts {
            price_version: Some(line.price_version),
            requests: Some(line.requests.unsigned_abs()),
            ..Counts::default()
        };
        text += &row([&last, "correction", "", ""], &counts, line.amount);
    }
    text += &row([&last, "closing balance", "", ""], &Counts::default(), statement.closing);
    text
}

/// The columns of numbers; empty where a line has none.
#[derive(Default)]
struct Counts {
    price_version: Option<i64>,
    requests: Option<u64>,
    tokens: [Option<u64>; 3],
    byte_hours: Option<u64>,
}

impl Counts {
    fn of(line: &ChargeLine) -> Self {
        let used = line.quantities;
        Self {
            price_version: line.price_version,
            requests: Some(line.requests.unsigned_abs()),
            tokens: [used.prompt_tokens, used.cached_tokens, used.completion_tokens].map(Some),
            byte_hours: None,
        }
    }
}

fn row([date, line, id, memo]: [&str; 4], counts: &Counts, amount: Nano) -> String {
    let number = |count: Option<u64>| count.map(|count| count.to_string()).unwrap_or_default();
    let [prompt, cached, completion] = counts.tokens.map(number);
    record([
        date.to_owned(),
        line.to_owned(),
        cell(id),
        cell(memo),
        counts.price_version.map(|version| version.to_string()).unwrap_or_default(),
        number(counts.requests),
        prompt,
        cached,
        completion,
        number(counts.byte_hours),
        exact_dollars(amount),
        amount.to_string(),
    ])
}

fn record(cells: [String; 12]) -> String {
    cells.join(",") + "\r\n"
}

/// A text that others have chosen, as a cell.
fn cell(text: &str) -> String {
    // Spreadsheets run what begins like this as a formula.
    let risky = text.starts_with(['=', '+', '-', '@', '\t', '\r']);
    let text = if risky { format!("'{text}") } else { text.to_owned() };
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
}

/// All nine decimals: a spreadsheet must not lose what the ledger has.
pub fn exact_dollars(nano: Nano) -> String {
    let sign = if nano < 0 { "-" } else { "" };
    let nano = nano.unsigned_abs();
    format!("{sign}{}.{:09}", nano / 1_000_000_000, nano % 1_000_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_cannot_break_out_of_its_column_or_become_a_formula() {
        for (text, written) in [
            ("plain text", "plain text"),
            ("a, b", "\"a, b\""),
            ("say \"hi\"", "\"say \"\"hi\"\"\""),
            ("=SUM(A1:A9)", "'=SUM(A1:A9)"),
            ("@x,y", "\"'@x,y\""),
        ] {
            assert_eq!(cell(text), written);
        }
    }

    #[test]
    fn dollars_keep_their_sign_and_all_decimals() {
        for (nano, text) in
            [(0, "0.000000000"), (-1, "-0.000000001"), (1_500_000_000, "1.500000000"), (-2_000_000_007, "-2.000000007")]
        {
            assert_eq!(exact_dollars(nano), text);
        }
    }
}
