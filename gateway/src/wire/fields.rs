//! Typed access to a request's fields; every refusal names its field.

use billing::{LARGEST, Nano};
use serde_json::{Map, Value};

use crate::error::ApiError;

pub struct Fields<'a> {
    json: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    pub fn new(json: &'a Map<String, Value>) -> Self {
        Self { json }
    }

    pub fn get(&self, name: &str) -> Option<&'a Value> {
        self.json.get(name).filter(|value| !value.is_null())
    }

    fn typed<T>(&self, name: &str, what: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>, ApiError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| ApiError::param(name, format!("{name} must be {what}")))
    }

    pub fn text(&self, name: &str) -> Result<Option<&'a str>, ApiError> {
        self.typed(name, "a string", Value::as_str)
    }

    pub fn flag(&self, name: &str) -> Result<bool, ApiError> {
        Ok(self.truth(name)?.unwrap_or(false))
    }

    pub fn truth(&self, name: &str) -> Result<Option<bool>, ApiError> {
        self.typed(name, "true or false", Value::as_bool)
    }

    pub fn array(&self, name: &str) -> Result<Option<&'a Vec<Value>>, ApiError> {
        self.typed(name, "an array", Value::as_array)
    }

    pub fn object(&self, name: &str) -> Result<Option<&'a Map<String, Value>>, ApiError> {
        self.typed(name, "an object", Value::as_object)
    }

    pub fn integer(&self, name: &str, range: std::ops::RangeInclusive<i64>) -> Result<Option<i64>, ApiError> {
        // Some clients write whole numbers as 5.0.
        let whole = |value: &Value| {
            value.as_i64().or_else(|| {
                value.as_f64().filter(|real| real.fract() == 0.0 && real.abs() < 1e15).map(|real| real as i64)
            })
        };
        let Some(number) = self.typed(name, "a whole number", whole)? else { return Ok(None) };
        if range.contains(&number) {
            return Ok(Some(number));
        }
        let bounds = match (*range.start(), *range.end()) {
            (low, i64::MAX) => format!("at least {low}"),
            (low, high) => format!("from {low} to {high}"),
        };
        Err(ApiError::param(name, format!("{name} must be {bounds}, not {number}")))
    }

    /// `amount` in dollars, or `amount_nano_usd` as an exact integer.
    pub fn nano_usd(&self) -> Result<Nano, ApiError> {
        if let Some(nano) = self.integer("amount_nano_usd", -LARGEST..=LARGEST)? {
            return Ok(nano);
        }
        let most = LARGEST as f64 / 1e9;
        let usd = self.get("amount").and_then(Value::as_f64).filter(|usd| usd.abs() <= most);
        let usd = usd.ok_or_else(|| ApiError::param("amount", format!("amount must be dollars, at most {most}")))?;
        Ok((usd * 1e9).round() as Nano)
    }

    pub fn real(&self, name: &str, range: std::ops::RangeInclusive<f64>) -> Result<Option<f32>, ApiError> {
        let Some(number) = self.typed(name, "a number", Value::as_f64)? else { return Ok(None) };
        if range.contains(&number) {
            return Ok(Some(number as f32));
        }
        Err(ApiError::param(name, format!("{name} must be from {} to {}, not {number}", range.start(), range.end())))
    }
}
