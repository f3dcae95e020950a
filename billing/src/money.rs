//! Amounts as they are written: decimal text to nano-dollars, exactly or not at all. Never through a binary fraction, which has no 0.1.

use crate::Nano;

/// Decimals of a dollar in nano-dollars.
const DECIMALS: i64 = 9;
/// Longest text of an amount, in bytes, and largest exponent.
const TEXT_BYTES: usize = 64;
const EXPONENT: i64 = 40;

/// Why a text is no amount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MoneyError {
    #[error("must be dollars, such as 5 or 0.25")]
    Form,
    #[error("must have at most 9 decimals: the smallest amount is a nano-dollar")]
    TooFine,
    #[error("is more than can be counted")]
    TooLarge,
}

/// Dollars such as `5`, `0.25`, `-1.5`, `$3` or `1e3` as nano-dollars.
pub fn nano_usd(text: &str) -> Result<Nano, MoneyError> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let digits = digits.strip_prefix('$').unwrap_or(digits);
    if digits.len() > TEXT_BYTES {
        return Err(MoneyError::Form);
    }
    let (digits, exponent) = match digits.split_once(['e', 'E']) {
        Some((digits, exponent)) => (digits, exponent.parse::<i64>().map_err(|_| MoneyError::Form)?),
        None => (digits, 0),
    };
    let (whole, part) = digits.split_once('.').unwrap_or((digits, "0"));
    let plain = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !plain(whole) || !plain(part) || !(-EXPONENT..=EXPONENT).contains(&exponent) {
        return Err(MoneyError::Form);
    }
    let part = part.trim_end_matches('0');
    let all = format!("{whole}{part}");
    // How many places the digits move to the left to become nano-dollars.
    let places = DECIMALS + exponent - part.len() as i64;
    let digits = all.trim_start_matches('0');
    if digits.is_empty() {
        return Ok(0);
    }
    let nano = if places >= 0 {
        format!("{digits}{}", "0".repeat(places as usize))
    } else {
        let fine = digits.len().saturating_sub(places.unsigned_abs() as usize);
        let (kept, lost) = digits.split_at(fine);
        if kept.is_empty() || lost.bytes().any(|digit| digit != b'0') {
            return Err(MoneyError::TooFine);
        }
        kept.to_owned()
    };
    let nano: Nano = nano.parse().map_err(|_| MoneyError::TooLarge)?;
    Ok(if negative { -nano } else { nano })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_is_read_to_the_nano_dollar_or_refused() {
        for (text, nano) in [
            ("5", 5_000_000_000),
            ("0.1", 100_000_000),
            ("-1.5", -1_500_000_000),
            ("$0.000000001", 1),
            ("007.50", 7_500_000_000),
            ("12345678.123456789", 12_345_678_123_456_789),
            ("0.1000000000000", 100_000_000),
            ("1e3", 1_000_000_000_000),
            ("1E-09", 1),
            ("10e-10", 1),
            ("1.5e+1", 15_000_000_000),
            ("0e-30", 0),
            ("-0.0", 0),
        ] {
            assert_eq!(nano_usd(text), Ok(nano), "{text}");
        }
        for wrong in ["", "five", "nan", "inf", "1.", ".5", "1,5", "--1", "1 ", "e3", "1e", "1e99", "+1", "0x1"] {
            assert_eq!(nano_usd(wrong), Err(MoneyError::Form), "{wrong:?}");
        }
        for fine in ["0.0000000001", "1e-10", "0.1234567891", "0.30000000000000004"] {
            assert_eq!(nano_usd(fine), Err(MoneyError::TooFine), "{fine}");
        }
        for large in ["99999999999999999999", "1e30"] {
            assert_eq!(nano_usd(large), Err(MoneyError::TooLarge), "{large}");
        }
    }
}
