//! Typed access to a request's fields; every refusal names its field.

use std::collections::HashMap;

use billing::{LARGEST, MoneyError, Nano, nano_usd};
use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::names::nearest_names;

/// Most characters of a value or a name that an error repeats.
const SHOWN_CHARS: usize = 80;

pub struct Fields<'a> {
    json: &'a Map<String, Value>,
    /// Numbers as they were written.
    numbers: Option<&'a HashMap<String, String>>,
}

impl<'a> Fields<'a> {
    pub fn new(json: &'a Map<String, Value>) -> Self {
        Self { json, numbers: None }
    }

    /// The fields of a body that has no others than `known`: a name that is misspelt must not pass for one that is absent.
    pub fn only(
        json: &'a Map<String, Value>,
        numbers: &'a HashMap<String, String>,
        known: &[&'static str],
    ) -> Result<Self, ApiError> {
        let Some(unknown) = json.keys().find(|name| !known.contains(&name.as_str())) else {
            return Ok(Self { json, numbers: Some(numbers) });
        };
        let unknown: String = unknown.chars().take(SHOWN_CHARS).collect();
        let meant = match nearest_names(&unknown, known.iter().copied()).first() {
            Some(name) => format!("did you mean {name:?}? "),
            None => String::new(),
        };
        let message = format!("unknown field {unknown:?}: {meant}the fields are {}", known.join(", "));
        Err(ApiError::param(unknown, message).with_code("unknown_field"))
    }

    pub fn get(&self, name: &str) -> Option<&'a Value> {
        self.json.get(name).filter(|value| !value.is_null())
    }

    /// A field as it is given, null included.
    pub fn given(&self, name: &str) -> Option<&'a Value> {
        self.json.get(name)
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

    /// A field that holds dollars, as a number or as text, in nano-dollars: exactly, or it is refused.
    pub fn dollars(&self, name: &str) -> Result<Option<Nano>, ApiError> {
        let wrong = |text: &str, error: MoneyError| {
            let text: String = text.chars().take(SHOWN_CHARS).collect();
            ApiError::param(name, format!("{name} {text:?} {error}"))
        };
        let Some(value) = self.get(name) else { return Ok(None) };
        let text = match (value, self.numbers.and_then(|numbers| numbers.get(name))) {
            (Value::String(text), _) => text.clone(),
            (Value::Number(_), Some(text)) => text.clone(),
            (value, _) => value.to_string(),
        };
        nano_usd(&text).map(Some).map_err(|error| wrong(&text, error))
    }

    /// `amount` in dollars, or `amount_nano_usd` as an exact integer.
    pub fn nano_usd(&self) -> Result<Nano, ApiError> {
        let (nano, usd) = (self.integer("amount_nano_usd", -LARGEST..=LARGEST)?, self.dollars("amount")?);
        let most = LARGEST / 1_000_000_000;
        match (nano, usd) {
            (Some(nano), Some(usd)) if nano != usd => {
                Err(ApiError::param("amount", "amount and amount_nano_usd are not the same; give one of them"))
            }
            (None, Some(usd)) if !(-LARGEST..=LARGEST).contains(&usd) => {
                Err(ApiError::param("amount", format!("amount must be at most {most} dollars")))
            }
            (nano, usd) => nano.or(usd).ok_or_else(|| ApiError::param("amount", "amount is missing: dollars")),
        }
    }

    pub fn real(&self, name: &str, range: std::ops::RangeInclusive<f64>) -> Result<Option<f32>, ApiError> {
        let Some(number) = self.typed(name, "a number", Value::as_f64)? else { return Ok(None) };
        if range.contains(&number) {
            return Ok(Some(number as f32));
        }
        Err(ApiError::param(name, format!("{name} must be from {} to {}, not {number}", range.start(), range.end())))
    }
}
