//! Amounts of money as people type and read them: dollars, exact to the nano-dollar.

use serde_json::Value;

const NANOS: i64 = 1_000_000_000;
/// Decimals of a dollar in nano-dollars.
const DECIMALS: usize = 9;

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

/// Dollars such as `5`, `0.25` or `-1.5` as nano-dollars; never through a binary fraction, which has no 0.1.
pub fn parse(text: &str) -> Result<i64, String> {
    let wrong = || format!("{text:?} must be dollars, such as 5 or 0.25, with at most {DECIMALS} decimals");
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let digits = digits.strip_prefix('$').unwrap_or(digits);
    let (whole, part) = digits.split_once('.').unwrap_or((digits, "0"));
    let plain = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !plain(whole) || !plain(part) || part.len() > DECIMALS {
        return Err(wrong());
    }
    let whole: i64 = whole.parse().map_err(|_| wrong())?;
    let part: i64 = format!("{part:0<DECIMALS$}").parse().map_err(|_| wrong())?;
    let nano = whole.checked_mul(NANOS).and_then(|nano| nano.checked_add(part)).ok_or_else(wrong)?;
    Ok(if negative { -nano } else { nano })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_is_read_to_the_nano_dollar() {
        for (text, nano) in [
            ("5", 5 * NANOS),
            ("0.1", 100_000_000),
            ("-1.5", -1_500_000_000),
            ("$0.000000001", 1),
            ("007.50", 7_500_000_000),
        ] {
            assert_eq!(parse(text), Ok(nano), "{text}");
        }
        for wrong in ["", "five", "1.", ".5", "1e3", "0.0000000001", "1,5", "--1", "99999999999999999999", "1 "] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!((shown(-1), shown(12_000_000_000)), ("-$0.000000001".into(), "$12.000000000".into()));
    }
}
