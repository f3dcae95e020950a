//! Amounts of money as people type and read them: dollars, exact to the nano-dollar.

use serde_json::Value;

const NANOS: i64 = 1_000_000_000;

/// Nano-dollars as dollars, all decimals.
pub fn shown(nano: i64) -> String {
    let sign = if nano < 0 { "-" } else { "" };
    let nano = nano.unsigned_abs();
    format!("{sign}${}.{:09}", nano / NANOS.unsigned_abs(), nano % NANOS.unsigned_abs())
}

/// The field of an answer that holds nano-dollars.
pub fn of(row: &Value, field: &str) -> String {
    row[field].as_i64().map_or_else(|| "-".into(), shown)
}

/// Dollars as they are typed, such as `5`, `0.25` or `-1.5`, in nano-dollars.
pub fn parse(text: &str) -> Result<i64, String> {
    billing::nano_usd(text).map_err(|error| format!("{text:?} {error}"))
}

/// The same for what is never below 0.
pub fn parse_cost(text: &str) -> Result<i64, String> {
    match parse(text)? {
        nano if nano < 0 => Err(format!("{text:?} must not be below 0")),
        nano => Ok(nano),
    }
}

/// The same for what an account gets: more than nothing, and no more than the ledger takes.
pub fn parse_credit(text: &str) -> Result<i64, String> {
    match parse(text)? {
        nano @ 1..=billing::LARGEST => Ok(nano),
        _ => Err(format!("{text:?} must be above 0 and at most {}", field(billing::LARGEST))),
    }
}

/// Nano-dollars as the endpoints read dollars: all decimals, as text.
pub fn field(nano: i64) -> String {
    shown(nano).replace('$', "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_is_shown_and_sent_to_the_nano_dollar() {
        assert_eq!((shown(-1), shown(12_000_000_000)), ("-$0.000000001".into(), "$12.000000000".into()));
        for nano in [0, 1, -1, 1_500_000_000, 12_345_678_123_456_789] {
            assert_eq!((parse(&shown(nano)), parse(&field(nano))), (Ok(nano), Ok(nano)));
        }
        assert!(parse_cost("-1").is_err() && parse("nan").is_err());
        assert_eq!((parse_credit("1e-9"), parse_credit("1000000000")), (Ok(1), Ok(billing::LARGEST)));
        for wrong in ["0", "-1", "1000000000.000000001", "1000000001"] {
            assert!(parse_credit(wrong).is_err(), "{wrong}");
        }
    }
}
