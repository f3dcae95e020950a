//! Sets of JSON values of one type, as conjunctions of simple conditions: what schemas are taken apart into.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use llguidance::derivre::RegexAst;

use super::number::{self, Bound, Decimal};
use super::{formats, pattern};

/// The types of JSON values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Null,
    Boolean,
    Number,
    String,
    Array,
    Object,
}

impl Kind {
    pub const ALL: [Self; 6] = [Self::Null, Self::Boolean, Self::Number, Self::String, Self::Array, Self::Object];

    pub fn name(self) -> &'static str {
        ["null", "boolean", "number", "string", "array", "object"][self as usize]
    }
}

/// A condition on a value that some schema states, or its opposite: an index into the table of the algebra.
pub type Literal = u32;
/// Conditions that a value meets all of, in order, none twice. Empty: any value.
pub type All = Rc<[Literal]>;

pub const TRUE: Literal = 0;
pub const FALSE: Literal = 1;

/// The conditions of several conjunctions.
pub fn both(left: &[Literal], right: &[Literal]) -> All {
    let mut all: Vec<Literal> = left.iter().chain(right).copied().filter(|&literal| literal != TRUE).collect();
    all.sort_unstable();
    all.dedup();
    let opposed = all.windows(2).any(|pair| pair[0] ^ 1 == pair[1] && pair[0] & 1 == 0);
    if opposed || all.first() == Some(&FALSE) { [FALSE].into() } else { all.into() }
}

pub fn never(all: &All) -> bool {
    all[..] == [FALSE]
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Shape {
    Null,
    /// Bit 0: false is in it; bit 1: true is.
    Boolean(u8),
    Number(Numbers),
    String(Strings),
    Array(Arrays),
    Object(Objects),
}

impl Shape {
    pub fn any(kind: Kind) -> Self {
        match kind {
            Kind::Null => Self::Null,
            Kind::Boolean => Self::Boolean(3),
            Kind::Number => Self::Number(Numbers::default()),
            Kind::String => Self::String(Strings::default()),
            Kind::Array => Self::Array(Arrays::default()),
            Kind::Object => Self::Object(Objects::default()),
        }
    }

    /// Values in both; none if that is plainly no value.
    pub fn meet(&self, other: &Self) -> Result<Option<Self>, TooComplex> {
        Ok(match (self, other) {
            (Self::Null, Self::Null) => Some(Self::Null),
            (Self::Boolean(left), Self::Boolean(right)) => {
                Some(left & right).filter(|&both| both != 0).map(Self::Boolean)
            }
            (Self::Number(left), Self::Number(right)) => left.meet(right)?.map(Self::Number),
            (Self::String(left), Self::String(right)) => left.meet(right)?.map(Self::String),
            (Self::Array(left), Self::Array(right)) => left.meet(right).map(Self::Array),
            (Self::Object(left), Self::Object(right)) => left.meet(right).map(Self::Object),
            _ => None,
        })
    }
}

/// Something could not be decided within its limits.
#[derive(Debug, Clone, Copy)]
pub struct TooComplex;

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Numbers {
    pub low: Option<Bound>,
    pub high: Option<Bound>,
    pub integer: Option<bool>,
    pub multiples: BTreeSet<Decimal>,
    pub not_multiples: BTreeSet<Decimal>,
    /// Only these, with how they are written.
    pub only: Option<BTreeMap<Decimal, String>>,
    pub except: BTreeSet<Decimal>,
}

fn tighter(left: &Option<Bound>, right: &Option<Bound>, low: bool) -> Option<Bound> {
    match (left, right) {
        (Some(a), Some(b)) => {
            let order = if low { a.at.cmp(&b.at) } else { b.at.cmp(&a.at) };
            let first = order.is_gt() || (order.is_eq() && !a.inclusive);
            Some(if first { a.clone() } else { b.clone() })
        }
        (one, other) => one.clone().or(other.clone()),
    }
}

fn least_common_multiple(a: i128, b: i128) -> Option<i128> {
    let (mut left, mut right) = (a, b);
    while right != 0 {
        (left, right) = (right, left % right);
    }
    (a / left).checked_mul(b)
}

fn union<T: Ord + Clone>(left: &BTreeSet<T>, right: &BTreeSet<T>) -> BTreeSet<T> {
    left.union(right).cloned().collect()
}

impl Numbers {
    fn meet(&self, other: &Self) -> Result<Option<Self>, TooComplex> {
        if matches!((self.integer, other.integer), (Some(a), Some(b)) if a != b) {
            return Ok(None);
        }
        let only = match (&self.only, &other.only) {
            (Some(a), Some(b)) => {
                Some(a.iter().filter(|(value, _)| b.contains_key(value)).map(|(k, v)| (k.clone(), v.clone())).collect())
            }
            (one, two) => one.clone().or(two.clone()),
        };
        let mut met = Self {
            low: tighter(&self.low, &other.low, true),
            high: tighter(&self.high, &other.high, false),
            integer: self.integer.or(other.integer),
            multiples: union(&self.multiples, &other.multiples),
            not_multiples: union(&self.not_multiples, &other.not_multiples),
            only: None,
            except: union(&self.except, &other.except),
        };
        if let Some(only) = only {
            let mut kept = BTreeMap::new();
            for (value, text) in only {
                if met.has(&value).ok_or(TooComplex)? {
                    kept.insert(value, text);
                }
            }
            let integer = met.integer;
            met = Self { only: Some(kept), integer, ..Self::default() };
        }
        let nothing = met.only.as_ref().is_some_and(BTreeMap::is_empty) || met.no_room();
        Ok((!nothing).then_some(met))
    }

    /// Whether a value is in it; none if that cannot be told.
    fn has(&self, value: &Decimal) -> Option<bool> {
        let above = |low: &Bound| *value > low.at || (*value == low.at && low.inclusive);
        let below = |high: &Bound| *value < high.at || (*value == high.at && high.inclusive);
        let mut within = self.low.as_ref().is_none_or(above) && self.high.as_ref().is_none_or(below);
        within &= self.integer.is_none_or(|integer| integer == value.is_integer()) && !self.except.contains(value);
        for of in &self.multiples {
            within &= value.is_multiple_of(of)?;
        }
        for of in &self.not_multiples {
            within &= !value.is_multiple_of(of)?;
        }
        Some(within)
    }

    fn no_room(&self) -> bool {
        let (Some(low), Some(high)) = (&self.low, &self.high) else { return false };
        match self.integer {
            Some(true) => {
                let (first, last) = (low.at.rounded(true), high.at.rounded(false));
                first > last
                    || (first == last && (first == low.at && !low.inclusive || last == high.at && !high.inclusive))
            }
            _ => low.at > high.at || (low.at == high.at && !(low.inclusive && high.inclusive)),
        }
    }

    /// Whether there is a number in it; none if that is not known. Numbers are tried from a bound, or from zero, in the steps that
    /// could be in it.
    pub fn has_any(&self) -> Option<bool> {
        const TRIED: i128 = 10_000;
        if let Some(only) = &self.only {
            return Some(!only.is_empty());
        }
        let bounds = self.low.iter().chain(&self.high).map(|bound| &bound.at);
        let numbers = bounds.chain(&self.multiples).chain(&self.not_multiples).chain(&self.except);
        // One more digit than any of them has, so that what lies between is seen.
        let places = numbers.map(Decimal::places).max().unwrap_or(0) + usize::from(self.integer != Some(true));
        let unit = 10i128.checked_pow(u32::try_from(places).ok()?)?;
        let mut step = if self.integer == Some(true) { unit } else { 1 };
        for of in &self.multiples {
            step = least_common_multiple(step, of.scaled(places)?)?;
        }
        let low = self.low.as_ref().map(|low| low.at.scaled(places)).map_or(Some(None), |low| low.map(Some))?;
        let high = self.high.as_ref().map(|high| high.at.scaled(places)).map_or(Some(None), |high| high.map(Some))?;
        let upward = low.is_some() || high.is_none();
        let start = low.or(high.filter(|_| !upward)).unwrap_or(0);
        let first = if upward { -(-start).div_euclid(step) } else { start.div_euclid(step) };
        for tried in 0..TRIED {
            let value = (if upward { first + tried } else { first - tried }).checked_mul(step)?;
            if upward && high.is_some_and(|high| value > high) || !upward && low.is_some_and(|low| value < low) {
                return Some(false);
            }
            if self.has(&Decimal::from_scaled(value, places)?)? {
                return Some(value.unsigned_abs() < 10u128.pow(15)).filter(|written| *written);
            }
        }
        None
    }

    /// The texts of its numbers.
    pub fn set(&self) -> Option<RegexAst> {
        if let Some(only) = &self.only {
            let integer = self.integer == Some(true);
            let texts = only.iter().map(|(value, text)| number::exactly(value, text, integer));
            return Some(RegexAst::Or(texts.collect()));
        }
        let integer = self.integer == Some(true);
        let delicate = !self.multiples.is_empty() || !self.not_multiples.is_empty() || !self.except.is_empty();
        let exact = self.integer == Some(false) || (delicate && !integer);
        let mut parts = vec![number::range(self.low.as_ref(), self.high.as_ref(), integer, exact)];
        for of in &self.multiples {
            parts.push(of.multiples()?);
        }
        if !self.not_multiples.is_empty() {
            // The text pattern of multiples knows no zeros at the end of a fraction.
            parts.push(RegexAst::Regex(r"-?[0-9]+(?:\.[0-9]*[1-9])?".into()));
        }
        for of in &self.not_multiples {
            parts.push(RegexAst::Not(Box::new(of.multiples()?)));
        }
        for value in &self.except {
            let bound = Bound { at: value.clone(), inclusive: true };
            let same = number::range(Some(&bound), Some(&bound), false, false);
            parts.push(RegexAst::Not(Box::new(same)));
        }
        if self.integer == Some(false) {
            parts.push(RegexAst::Not(Box::new(RegexAst::Regex(r"-?[0-9]+(?:\.0+)?".into()))));
        }
        Some(if parts.len() == 1 { parts.remove(0) } else { RegexAst::And(parts) })
    }
}

/// What a string is tested for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Test {
    Pattern(Rc<str>),
    Format(&'static str),
}

impl Test {
    pub fn set(&self) -> RegexAst {
        match self {
            // Patterns are translated once before, where what is wrong with them can be said.
            Self::Pattern(text) => pattern::search(text).unwrap_or(RegexAst::NoMatch),
            Self::Format(name) => RegexAst::Regex(formats::pattern(name).unwrap_or("").into()),
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Strings {
    pub shortest: usize,
    pub longest: Option<usize>,
    /// Tests and whether a string passes or fails them.
    pub tests: BTreeSet<(Test, bool)>,
    pub only: Option<BTreeSet<String>>,
    pub except: BTreeSet<String>,
}

impl Strings {
    fn meet(&self, other: &Self) -> Result<Option<Self>, TooComplex> {
        let only = match (&self.only, &other.only) {
            (Some(a), Some(b)) => Some(a.intersection(b).cloned().collect()),
            (one, two) => one.clone().or(two.clone()),
        };
        let mut met = Self {
            shortest: self.shortest.max(other.shortest),
            longest: [self.longest, other.longest].into_iter().flatten().min(),
            tests: union(&self.tests, &other.tests),
            only: None,
            except: union(&self.except, &other.except),
        };
        if let Some(only) = only {
            let mut kept = BTreeSet::new();
            for text in only {
                if met.has(&text).ok_or(TooComplex)? {
                    kept.insert(text);
                }
            }
            met = Self { only: Some(kept), ..Self::default() };
        }
        let opposed = met.tests.iter().any(|(test, passes)| *passes && met.tests.contains(&(test.clone(), false)));
        let nothing = met.longest.is_some_and(|longest| longest < met.shortest)
            || met.only.as_ref().is_some_and(BTreeSet::is_empty)
            || opposed;
        Ok((!nothing).then_some(met))
    }

    pub fn has(&self, text: &str) -> Option<bool> {
        let length = text.chars().count();
        if length < self.shortest || self.longest.is_some_and(|longest| length > longest) || self.except.contains(text)
        {
            return Some(false);
        }
        if let Some(only) = &self.only {
            return Some(only.contains(text));
        }
        for (test, passes) in &self.tests {
            if pattern::has(&test.set(), text)? != *passes {
                return Some(false);
            }
        }
        Some(true)
    }

    /// Its strings, before they are quoted.
    pub fn set(&self) -> RegexAst {
        if let Some(only) = &self.only {
            return RegexAst::Or(only.iter().cloned().map(RegexAst::Literal).collect());
        }
        let longest = self.longest.map(|longest| longest.to_string()).unwrap_or_default();
        let mut parts = match (self.shortest, self.longest) {
            (0, None) => vec![pattern::any()],
            (shortest, _) => vec![RegexAst::Regex(format!("(?s:.{{{shortest},{longest}}})"))],
        };
        for (test, passes) in &self.tests {
            parts.push(if *passes { test.set() } else { RegexAst::Not(Box::new(test.set())) });
        }
        if !self.except.is_empty() {
            let except = self.except.iter().cloned().map(RegexAst::Literal).collect();
            parts.push(RegexAst::Not(Box::new(RegexAst::Or(except))));
        }
        if parts.len() == 1 { parts.remove(0) } else { RegexAst::And(parts) }
    }
}

/// So many items, from a place on, meet a condition.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Contains {
    pub from: usize,
    pub literal: Literal,
    pub least: usize,
    pub most: Option<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Arrays {
    pub first: Vec<All>,
    pub rest: All,
    pub shortest: usize,
    pub longest: Option<usize>,
    pub contains: Vec<Contains>,
    pub unique: bool,
}

impl Default for Arrays {
    fn default() -> Self {
        Self { first: Vec::new(), rest: [].into(), shortest: 0, longest: None, contains: Vec::new(), unique: false }
    }
}

impl Arrays {
    pub fn item(&self, at: usize) -> &All {
        self.first.get(at).unwrap_or(&self.rest)
    }

    fn meet(&self, other: &Self) -> Option<Self> {
        let length = self.first.len().max(other.first.len());
        let mut contains = self.contains.clone();
        contains.extend(other.contains.iter().filter(|more| !self.contains.contains(more)).cloned());
        let mut met = Self {
            first: (0..length).map(|at| both(self.item(at), other.item(at))).collect(),
            rest: both(&self.rest, &other.rest),
            shortest: self.shortest.max(other.shortest),
            longest: [self.longest, other.longest].into_iter().flatten().min(),
            contains,
            unique: self.unique || other.unique,
        };
        if let Some(end) = (0..=met.first.len()).find(|&at| never(met.item(at))) {
            met.longest = Some(met.longest.map_or(end, |longest| longest.min(end)));
        }
        if let Some(longest) = met.longest {
            met.first.truncate(longest);
        }
        (met.longest.is_none_or(|longest| met.shortest <= longest)).then_some(met)
    }
}

/// What one schema says about the members of an object.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rule {
    pub named: Vec<(String, All)>,
    pub patterns: Vec<(Rc<str>, All)>,
    /// Members that are neither.
    pub others: All,
}

impl Rule {
    /// A rule about one name.
    pub fn one(name: &str, value: All) -> Rc<Self> {
        Rc::new(Self { named: vec![(name.to_owned(), value)], patterns: Vec::new(), others: [].into() })
    }

    /// The conditions on the value of a member of this name.
    pub fn value(&self, name: &str) -> Result<All, TooComplex> {
        let named = self.named.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
        let mut met = named.is_some();
        let mut value = named.unwrap_or_else(|| [].into());
        for (text, condition) in &self.patterns {
            if pattern::has(&Test::Pattern(text.clone()).set(), name).ok_or(TooComplex)? {
                met = true;
                value = both(&value, condition);
            }
        }
        Ok(if met { value } else { self.others.clone() })
    }
}

/// Some member whose name is in a set meets a condition.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Exists {
    pub names: Names,
    pub value: All,
}

/// A set of names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Names {
    pub not: BTreeSet<String>,
    pub tests: BTreeSet<(Test, bool)>,
    /// The name, as a string, meets these.
    pub conditions: Vec<Literal>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Objects {
    pub rules: Vec<Rc<Rule>>,
    pub required: Vec<String>,
    pub fewest: usize,
    pub most: Option<usize>,
    pub exists: Vec<Exists>,
    /// All names meet these.
    pub names: Vec<Literal>,
}

impl Objects {
    fn meet(&self, other: &Self) -> Option<Self> {
        let mut met = self.clone();
        met.rules.extend(other.rules.iter().filter(|rule| !self.rules.contains(rule)).cloned());
        met.required.extend(other.required.iter().filter(|name| !self.required.contains(name)).cloned());
        met.exists.extend(other.exists.iter().filter(|exists| !self.exists.contains(exists)).cloned());
        met.names.extend(other.names.iter().filter(|literal| !self.names.contains(literal)));
        met.fewest = self.fewest.max(other.fewest);
        met.most = [self.most, other.most].into_iter().flatten().min();
        let room = met.most.is_none_or(|most| met.fewest.max(met.required.len()) <= most);
        room.then_some(met)
    }

    /// The conditions on the value of a member of this name.
    pub fn value(&self, name: &str) -> Result<All, TooComplex> {
        let mut value: All = [].into();
        for rule in &self.rules {
            value = both(&value, &rule.value(name)?);
        }
        Ok(value)
    }

    /// All names that are spoken of, in their order.
    pub fn spoken(&self) -> Vec<&str> {
        let mut seen = BTreeSet::new();
        let named = self.rules.iter().flat_map(|rule| rule.named.iter().map(|(name, _)| name.as_str()));
        named.chain(self.required.iter().map(String::as_str)).filter(|name| seen.insert(*name)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whether_there_is_a_number_is_known() {
        let bound = |at: &str, inclusive| Some(Bound { at: Decimal::parse(at).unwrap(), inclusive });
        let range = |low, high, integer| Numbers { low, high, integer, ..Numbers::default() };
        let of = |of: &str, numbers: Numbers| Numbers { multiples: [Decimal::parse(of).unwrap()].into(), ..numbers };
        let table = [
            (range(bound("-10", true), bound("0", false), None), true),
            (range(bound("0", false), bound("1", false), None), true),
            (range(bound("0", false), bound("1", false), Some(true)), false),
            (range(bound("1", true), bound("1", true), Some(false)), false),
            (range(bound("1.5", true), bound("1.5", true), Some(false)), true),
            (of("7", range(bound("8", true), bound("13", true), None)), false),
            (of("7", range(bound("8", true), bound("14", true), None)), true),
            (of("0.3", range(bound("-1", true), bound("-0.1", true), Some(false))), true),
            (of("7", range(None, bound("-1", true), Some(true))), true),
            (range(None, bound("0", false), None), true),
            (of("0.5", range(None, None, Some(false))), true),
        ];
        for (numbers, expected) in table {
            assert_eq!(numbers.has_any(), Some(expected), "{numbers:?}");
            assert_eq!(numbers.no_room() && expected, false, "{numbers:?}");
        }
    }
}
