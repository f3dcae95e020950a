//! Exact decimals, and the texts of the numbers between two of them.

use std::cmp::Ordering;

use llguidance::derivre::RegexAst;
use serde_json::Number;

/// Digits on either side of the point that a decimal may have here; those of f64 do.
const DIGITS: usize = 400;

/// Remainders are states of the lexer: with a larger divisor looking for a number among them does not end.
const LARGEST_UNIT: u32 = 10_000;

/// A decimal number, exactly.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Decimal {
    negative: bool,
    /// No leading zeros; empty below one.
    whole: String,
    /// No trailing zeros.
    fraction: String,
}

impl Decimal {
    /// The value of a JSON number's text; none when it has too many digits.
    pub fn parse(text: &str) -> Option<Self> {
        let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
        let (mantissa, exponent) = match text.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, exponent.parse::<i64>().ok()?),
            None => (text, 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let digits = format!("{whole}{fraction}");
        let point = whole.len() as i64 + exponent;
        if point.unsigned_abs() as usize + digits.len() > DIGITS {
            return None;
        }
        let (whole, fraction) = if point <= 0 {
            (String::new(), "0".repeat(point.unsigned_abs() as usize) + &digits)
        } else if point as usize >= digits.len() {
            (digits.clone() + &"0".repeat(point as usize - digits.len()), String::new())
        } else {
            (digits[..point as usize].to_owned(), digits[point as usize..].to_owned())
        };
        let whole = whole.trim_start_matches('0').to_owned();
        let fraction = fraction.trim_end_matches('0').to_owned();
        let zero = whole.is_empty() && fraction.is_empty();
        Some(Self { negative: negative && !zero, whole, fraction })
    }

    pub fn of(number: &Number) -> Option<Self> {
        Self::parse(&number.to_string())
    }

    pub fn is_integer(&self) -> bool {
        self.fraction.is_empty()
    }

    pub fn is_negative(&self) -> bool {
        self.negative
    }

    pub fn is_zero(&self) -> bool {
        self.whole.is_empty() && self.fraction.is_empty()
    }

    pub fn text(&self) -> String {
        let sign = if self.negative { "-" } else { "" };
        let whole = if self.whole.is_empty() { "0" } else { &self.whole };
        let point = if self.fraction.is_empty() { "" } else { "." };
        format!("{sign}{whole}{point}{}", self.fraction)
    }

    /// The value as a whole number of units of 10^-places; none when it does not fit.
    pub fn scaled(&self, places: usize) -> Option<i128> {
        let missing = places.checked_sub(self.fraction.len())?;
        let digits = format!("0{}{}{}", self.whole, self.fraction, "0".repeat(missing));
        let value: i128 = digits.parse().ok()?;
        Some(if self.negative { -value } else { value })
    }

    /// Whether it is a multiple of another; none when that cannot be told.
    pub fn is_multiple_of(&self, of: &Self) -> Option<bool> {
        let places = self.fraction.len().max(of.fraction.len());
        let (value, of) = (self.scaled(places)?, of.scaled(places)?);
        (of != 0).then(|| value % of == 0)
    }

    /// Digits behind the point.
    pub fn places(&self) -> usize {
        self.fraction.len()
    }

    /// A whole number of units of 10^-places.
    pub fn from_scaled(value: i128, places: usize) -> Option<Self> {
        Self::parse(&format!("{value}e-{places}"))
    }

    /// The text pattern of its multiples; none when it has too many digits.
    pub fn multiples(&self) -> Option<RegexAst> {
        let places = self.fraction.len();
        let unit =
            u32::try_from(self.scaled(places)?.unsigned_abs()).ok().filter(|unit| (1..=LARGEST_UNIT).contains(unit))?;
        let minus = RegexAst::Regex("-?".into());
        Some(RegexAst::Concat(vec![minus, RegexAst::MultipleOf(unit, u32::try_from(places).ok()?)]))
    }

    /// Integers at or above (below) it, as the nearest of them.
    pub fn rounded(&self, up: bool) -> Self {
        if self.is_integer() {
            return self.clone();
        }
        let toward_zero = Self { fraction: String::new(), ..self.clone() };
        let toward_zero = Self { negative: self.negative && !toward_zero.whole.is_empty(), ..toward_zero };
        if up == self.negative { toward_zero } else { toward_zero.away_from_zero(self.negative) }
    }

    /// One further from zero, for an integer.
    fn away_from_zero(&self, negative: bool) -> Self {
        let mut digits: Vec<u8> = self.whole.bytes().collect();
        let mut at = digits.len();
        loop {
            match at.checked_sub(1) {
                Some(last) if digits[last] == b'9' => {
                    digits[last] = b'0';
                    at = last;
                }
                Some(last) => {
                    digits[last] += 1;
                    break;
                }
                None => {
                    digits.insert(0, b'1');
                    break;
                }
            }
        }
        Self { negative, whole: String::from_utf8(digits).expect("digits"), fraction: String::new() }
    }

    fn magnitude(&self, other: &Self) -> Ordering {
        let whole = self.whole.len().cmp(&other.whole.len()).then_with(|| self.whole.cmp(&other.whole));
        whole.then_with(|| self.fraction.cmp(&other.fraction))
    }
}

impl Ord for Decimal {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self.negative, other.negative) {
            (false, true) => Ordering::Greater,
            (true, false) => Ordering::Less,
            (false, false) => self.magnitude(other),
            (true, true) => other.magnitude(self),
        }
    }
}

impl PartialOrd for Decimal {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// An end of a range.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Bound {
    pub at: Decimal,
    pub inclusive: bool,
}

/// Integers have no more digits than 64 bits hold: longer ones would be other numbers to who reads them, or infinity.
const INTEGER: &str = "-?(?:0|[1-9][0-9]{0,17})";
/// The same for numbers with a fraction; f64 writes up to 17 digits, and up to 16 zeros before them.
const DECIMAL: &str = r"-?(?:0|[1-9][0-9]{0,19})(?:\.[0-9]{1,24})?";
/// Numbers without bounds may have an exponent.
const NUMBER: &str = r"-?(?:0|[1-9][0-9]{0,19})(?:\.[0-9]{1,24})?(?:[eE][+-]?[0-9]{1,2})?";
/// At most 15 digits: decimals that f64 keeps in their order, so that none is rounded onto a bound that it stays off.
const EXACT: &str = r"-?(?:[0-9]{1,15}|[0-9]{1,13}\.[0-9]{1,2}|[0-9]{1,11}\.[0-9]{1,4}|[0-9]{1,8}\.[0-9]{1,7}|[0-9]{1,5}\.[0-9]{1,10}|[0-9]{1,2}\.[0-9]{1,13})";

/// Texts of the numbers within bounds; `exact` ones have no more digits than f64 keeps apart.
pub fn range(low: Option<&Bound>, high: Option<&Bound>, integer: bool, exact: bool) -> RegexAst {
    let all = match (integer, exact || low.is_some() || high.is_some()) {
        (true, _) => INTEGER,
        (false, true) => DECIMAL,
        (false, false) => NUMBER,
    };
    let mut parts = vec![RegexAst::Regex(all.into())];
    let open = |bound: Option<&Bound>| bound.is_some_and(|bound| !bound.inclusive);
    if !integer && (exact || open(low) || open(high)) {
        parts.push(RegexAst::Regex(EXACT.into()));
    }
    parts.extend(low.map(above));
    parts.extend(high.map(|high| {
        let rest = Bound { at: high.at.clone(), inclusive: !high.inclusive };
        RegexAst::Not(Box::new(above(&rest)))
    }));
    if parts.len() == 1 { parts.remove(0) } else { RegexAst::And(parts) }
}

/// Texts that are one number: the plain one, and the one that its schema uses; a whole number may have a fraction of zero where no
/// integer is asked for.
pub fn exactly(value: &Decimal, text: &str, integer: bool) -> RegexAst {
    let mut texts = vec![value.text(), text.to_owned()];
    if !integer && value.is_integer() {
        texts.push(format!("{}.0", value.text()));
    }
    RegexAst::Or(texts.into_iter().map(RegexAst::Literal).collect())
}

/// Texts of numbers above a bound.
fn above(low: &Bound) -> RegexAst {
    let size = Decimal { negative: false, ..low.at.clone() };
    if low.at.negative {
        // Everything without a sign, and what is nearer to zero with one.
        let further = Bound { at: size, inclusive: !low.inclusive };
        let nearer = RegexAst::Not(Box::new(RegexAst::Or(further_from_zero(&further))));
        let unsigned = RegexAst::Regex(r"[0-9]+(?:\.[0-9]+)?".into());
        let signed = RegexAst::And(vec![unsigned.clone(), nearer]);
        return RegexAst::Or(vec![unsigned, RegexAst::Concat(vec![RegexAst::Literal("-".into()), signed])]);
    }
    let mut texts = further_from_zero(low);
    if low.at.is_zero() && low.inclusive {
        texts.push(RegexAst::Regex(r"-0(?:\.0+)?".into()));
    }
    RegexAst::Or(texts)
}

/// Texts without a sign whose value is above that of a bound without a sign.
fn further_from_zero(low: &Bound) -> Vec<RegexAst> {
    let Decimal { whole, fraction, .. } = &low.at;
    let shown = if whole.is_empty() { "0" } else { whole };
    let any = r"(?:\.[0-9]+)?";
    let mut texts = vec![format!("[1-9][0-9]{{{},}}{any}", shown.len())];
    for (at, digit) in shown.bytes().enumerate().filter(|(_, digit)| *digit < b'9') {
        let (kept, left) = (&shown[..at], shown.len() - at - 1);
        texts.push(format!("{kept}[{}-9][0-9]{{{left}}}{any}", char::from(digit + 1)));
    }
    for (at, digit) in fraction.bytes().enumerate().filter(|(_, digit)| *digit < b'9') {
        texts.push(format!("{shown}\\.{}[{}-9][0-9]*", &fraction[..at], char::from(digit + 1)));
    }
    texts.push(format!("{shown}\\.{fraction}[0-9]*[1-9][0-9]*"));
    if low.inclusive {
        texts.push(if fraction.is_empty() { format!(r"{shown}(?:\.0+)?") } else { format!("{shown}\\.{fraction}0*") });
    }
    texts.into_iter().map(RegexAst::Regex).collect()
}

#[cfg(test)]
mod tests {
    use llguidance::derivre::RegexBuilder;

    use super::*;

    fn matches(ast: &RegexAst, text: &str) -> bool {
        let mut builder = RegexBuilder::new();
        let expression = builder.mk(ast).unwrap();
        builder.to_regex(expression).is_match(text)
    }

    fn decimal(text: &str) -> Decimal {
        Decimal::parse(text).unwrap()
    }

    #[test]
    fn a_range_takes_the_numbers_in_it_and_no_other() {
        let samples = [
            "-1000", "-100", "-99.5", "-20", "-10.01", "-10", "-9.99", "-1.5", "-1", "-0.5", "-0.001", "0", "0.0",
            "0.001", "0.5", "0.99", "1", "1.0", "1.01", "1.5", "2", "9", "9.99", "10", "10.0", "10.5", "11", "19",
            "20", "99", "100", "101", "1000",
        ];
        let ends = ["-100", "-10", "-1.5", "-1", "-0.5", "0", "0.5", "1", "1.5", "9.99", "10", "19", "100"];
        for low in ends.iter().map(|end| decimal(end)) {
            for inclusive in [true, false] {
                let bound = Bound { at: low.clone(), inclusive };
                let (above, below) = (range(Some(&bound), None, false, false), range(None, Some(&bound), false, false));
                for sample in samples {
                    let order = decimal(sample).cmp(&low);
                    let on = order == Ordering::Equal && inclusive;
                    assert_eq!(matches(&above, sample), on || order == Ordering::Greater, "{sample} above {bound:?}");
                    assert_eq!(matches(&below, sample), on || order == Ordering::Less, "{sample} below {bound:?}");
                }
            }
        }
    }

    #[test]
    fn two_bounds_hold_together() {
        let bound = |at: &str, inclusive| Bound { at: decimal(at), inclusive };
        let set = range(Some(&bound("-10", true)), Some(&bound("0", false)), false, false);
        for (text, expected) in
            [("-1", true), ("-10", true), ("-0.5", true), ("-10.1", false), ("0", false), ("-0", false)]
        {
            assert_eq!(matches(&set, text), expected, "{text}");
        }
    }

    #[test]
    fn ranges_side_by_side() {
        let bound = |at: &str, inclusive| Bound { at: decimal(at), inclusive };
        let one = range(Some(&bound("-10", true)), Some(&bound("0", false)), false, false);
        let two = range(Some(&bound("0", true)), None, false, false);
        for set in [RegexAst::Or(vec![one.clone(), two.clone()]), RegexAst::Or(vec![two, one])] {
            for (text, expected) in
                [("-1", true), ("-10", true), ("0", true), ("-10.1", false), ("5", true), ("-", false)]
            {
                assert_eq!(matches(&set, text), expected, "{text}");
            }
        }
    }

    #[test]
    fn decimals_are_exact() {
        assert_eq!(decimal("1.50e2").text(), "150");
        assert_eq!(decimal("-12e-3").text(), "-0.012");
        assert_eq!(decimal("-0.0").text(), "0");
        assert_eq!(decimal("1.5").rounded(true).text(), "2");
        assert_eq!(decimal("-1.5").rounded(true).text(), "-1");
        assert_eq!(decimal("-99.5").rounded(false).text(), "-100");
        assert_eq!(decimal("0.0075").is_multiple_of(&decimal("0.0001")), Some(true));
        assert_eq!(decimal("0.00751").is_multiple_of(&decimal("0.0001")), Some(false));
    }
}
