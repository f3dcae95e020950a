//! Usage and costs in the shapes of the OpenAI API, for dashboards that read those. The organisation is the caller's account;
//! users are its members. There are no projects and no batches.

use actix_web::{HttpResponse, web};
use billing::{BillingError, BucketRow, Buckets, Dimension};
use platform::units::{DAY_MS, now_ms};
use serde_json::{Value, json};

use super::reply::dollars;
use crate::accounts::Caller;
use crate::error::ApiError;
use crate::state::Platform;

/// Values of one filter.
const FILTER_VALUES: usize = 100;
const PAGE_PREFIX: &str = "page_";

/// A width of buckets, with how many there are on a page by default and at most.
struct Width {
    name: &'static str,
    ms: i64,
    default: i64,
    most: i64,
}

const USAGE_WIDTHS: [Width; 3] = [
    Width { name: "1d", ms: DAY_MS, default: 7, most: 31 },
    Width { name: "1h", ms: 3_600_000, default: 24, most: 168 },
    Width { name: "1m", ms: 60_000, default: 60, most: 1440 },
];
const COST_WIDTHS: [Width; 1] = [Width { name: "1d", ms: DAY_MS, default: 7, most: 180 }];

/// Names to group by, with what we have for them; for the others there is one value only.
type Groups = &'static [(&'static str, Option<Dimension>)];

const USAGE_GROUPS: Groups = &[
    ("project_id", None),
    ("user_id", Some(Dimension::Member)),
    ("api_key_id", Some(Dimension::Key)),
    ("model", Some(Dimension::Model)),
    ("batch", None),
    ("service_tier", None),
];
const COST_GROUPS: Groups = &[
    ("project_id", None),
    ("user_id", Some(Dimension::Member)),
    ("api_key_id", Some(Dimension::Key)),
    ("line_item", Some(Dimension::Model)),
];

/// The query as it came: lists are repeated names, with or without `[]`, or values between commas.
type Query = web::Query<Vec<(String, String)>>;

pub async fn completions(
    platform: web::Data<Platform>,
    caller: Caller,
    query: Query,
) -> Result<HttpResponse, ApiError> {
    let asked = Asked::read(&query, &USAGE_WIDTHS, USAGE_GROUPS)?;
    let shown = |row: &BucketRow| {
        json!({
            "object": "organization.usage.completions.result",
            "input_tokens": row.quantities.prompt_tokens,
            "output_tokens": row.quantities.completion_tokens,
            "input_cached_tokens": row.quantities.cached_tokens,
            "input_audio_tokens": 0,
            "output_audio_tokens": 0,
            "num_model_requests": row.requests,
            "project_id": null,
            "user_id": asked.value(row, Dimension::Member),
            "api_key_id": asked.value(row, Dimension::Key),
            "model": asked.value(row, Dimension::Model),
            "batch": asked.names.contains(&"batch").then_some(false),
            "service_tier": null,
        })
    };
    asked.page(platform.journal.buckets(&caller.account, &asked.buckets), shown).await
}

pub async fn costs(platform: web::Data<Platform>, caller: Caller, query: Query) -> Result<HttpResponse, ApiError> {
    let asked = Asked::read(&query, &COST_WIDTHS, COST_GROUPS)?;
    let shown = |row: &BucketRow| {
        json!({
            "object": "organization.costs.result",
            "amount": { "value": dollars(row.cost_nano_usd), "currency": "usd", "value_nano_usd": row.cost_nano_usd },
            "line_item": asked.value(row, Dimension::Model),
            "project_id": null,
            "user_id": asked.value(row, Dimension::Member),
            "api_key_id": asked.value(row, Dimension::Key),
            "quantity": null,
        })
    };
    asked.page(platform.journal.costs(&caller.account, &asked.buckets), shown).await
}

/// What the query asks for, checked.
struct Asked {
    buckets: Buckets,
    /// Where the last page ends.
    end_ms: i64,
    names: Vec<&'static str>,
    /// A filter that nothing can pass: projects and batches that we do not have.
    is_empty: bool,
}

impl Asked {
    fn read(query: &Query, widths: &[Width], groups: Groups) -> Result<Self, ApiError> {
        let width = width(query, widths)?;
        let start_ms = seconds(query, "start_time")?
            .ok_or_else(|| ApiError::param("start_time", "start_time is missing: Unix seconds"))?;
        let end_ms = seconds(query, "end_time")?.unwrap_or_else(now_ms);
        if end_ms <= start_ms {
            return Err(ApiError::param("end_time", "end_time must be after start_time"));
        }
        let from_ms = page_start(query, start_ms, end_ms)?;
        let limit = number(query, "limit")?.unwrap_or(width.default);
        if !(1..=width.most).contains(&limit) {
            let message = format!("limit must be from 1 to {} with buckets of {}", width.most, width.name);
            return Err(ApiError::param("limit", message));
        }
        let to_ms = ((from_ms / width.ms + limit) * width.ms).min(end_ms);
        let (names, by) = group_by(query, groups)?;
        let is_empty = !list(query, "project_ids").is_empty() || one(query, "batch") == Some("true");
        let buckets = Buckets { from_ms, to_ms, width_ms: width.ms, by, only: filters(query)? };
        Ok(Self { buckets, end_ms, names, is_empty })
    }

    /// The value of a dimension in a row; null where it was not asked for.
    fn value(&self, row: &BucketRow, dimension: Dimension) -> Option<String> {
        let index = self.buckets.by.iter().position(|known| *known == dimension)?;
        row.group.get(index).cloned().flatten()
    }

    async fn page(
        &self,
        rows: impl Future<Output = Result<Vec<BucketRow>, BillingError>>,
        shown: impl Fn(&BucketRow) -> Value,
    ) -> Result<HttpResponse, ApiError> {
        let rows = if self.is_empty { Vec::new() } else { rows.await? };
        let Buckets { from_ms, to_ms, width_ms, .. } = self.buckets;
        let data: Vec<Value> = (from_ms / width_ms..=(to_ms - 1) / width_ms)
            .map(|bucket| {
                // Rows come in the order of buckets.
                let first = rows.partition_point(|row| row.bucket < bucket);
                let past = rows.partition_point(|row| row.bucket <= bucket);
                let results: Vec<Value> = rows[first..past].iter().map(&shown).collect();
                // The first and the last one hold what is asked for of them, and say so.
                let (start, end) = ((bucket * width_ms).max(from_ms), ((bucket + 1) * width_ms).min(to_ms));
                json!({
                    "object": "bucket",
                    "start_time": start / 1000,
                    "end_time": end.div_euclid(1000) + i64::from(end % 1000 != 0),
                    "results": results,
                })
            })
            .collect();
        let has_more = to_ms < self.end_ms;
        let next = has_more.then(|| format!("{PAGE_PREFIX}{}", to_ms / 1000));
        Ok(HttpResponse::Ok().json(json!({ "object": "page", "data": data, "has_more": has_more, "next_page": next })))
    }
}

fn values<'a>(query: &'a Query, name: &str) -> impl Iterator<Item = &'a str> {
    query.iter().filter(move |(known, _)| known.strip_suffix("[]").unwrap_or(known) == name).map(|(_, value)| &**value)
}

fn one<'a>(query: &'a Query, name: &str) -> Option<&'a str> {
    values(query, name).last().filter(|value| !value.is_empty())
}

fn list<'a>(query: &'a Query, name: &str) -> Vec<&'a str> {
    values(query, name).flat_map(|value| value.split(',')).map(str::trim).filter(|value| !value.is_empty()).collect()
}

fn number(query: &Query, name: &'static str) -> Result<Option<i64>, ApiError> {
    let number = |text: &str| text.parse::<i64>().ok().filter(|number| (0..=i64::from(u32::MAX)).contains(number));
    let wrong = || ApiError::param(name, format!("{name} must be a whole number that is not negative"));
    one(query, name).map(|text| number(text).ok_or_else(wrong)).transpose()
}

fn seconds(query: &Query, name: &'static str) -> Result<Option<i64>, ApiError> {
    Ok(number(query, name)?.map(|seconds| seconds * 1000))
}

fn width<'a>(query: &Query, widths: &'a [Width]) -> Result<&'a Width, ApiError> {
    let name = one(query, "bucket_width").unwrap_or(widths[0].name);
    widths.iter().find(|width| width.name == name).ok_or_else(|| {
        let known: Vec<&str> = widths.iter().map(|width| width.name).collect();
        ApiError::param("bucket_width", format!("bucket_width must be {}", known.join(", ")))
    })
}

/// Where the page that is asked for begins.
fn page_start(query: &Query, start_ms: i64, end_ms: i64) -> Result<i64, ApiError> {
    let Some(page) = one(query, "page") else { return Ok(start_ms) };
    let start = page.strip_prefix(PAGE_PREFIX).and_then(|seconds| seconds.parse::<u32>().ok());
    start
        .map(|seconds| i64::from(seconds) * 1000)
        .filter(|start| (start_ms..end_ms).contains(start))
        .ok_or_else(|| ApiError::param("page", "page must be next_page of an answer to the same query"))
}

fn group_by(query: &Query, groups: Groups) -> Result<(Vec<&'static str>, Vec<Dimension>), ApiError> {
    let (mut names, mut by) = (Vec::new(), Vec::new());
    for asked in list(query, "group_by") {
        // Some clients write the names of the filters.
        let known = groups.iter().find(|(name, _)| *name == asked || asked.strip_suffix('s') == Some(*name));
        let (name, dimension) = known.ok_or_else(|| {
            let all: Vec<&str> = groups.iter().map(|(name, _)| *name).collect();
            ApiError::param("group_by", format!("group_by must be of {}, not {asked:.40}", all.join(", ")))
        })?;
        names.push(*name);
        by.extend(dimension.filter(|dimension| !by.contains(dimension)));
    }
    Ok((names, by))
}

fn filters(query: &Query) -> Result<Vec<(Dimension, Vec<String>)>, ApiError> {
    let mut only = Vec::new();
    for (name, dimension) in [
        ("api_key_ids", Dimension::Key),
        ("user_ids", Dimension::Member),
        ("models", Dimension::Model),
        ("line_items", Dimension::Model),
    ] {
        let values: Vec<String> = list(query, name).into_iter().map(str::to_owned).collect();
        if values.len() > FILTER_VALUES {
            return Err(ApiError::param(name, format!("{name} may have {FILTER_VALUES} values")));
        }
        if !values.is_empty() {
            only.push((dimension, values));
        }
    }
    Ok(only)
}
