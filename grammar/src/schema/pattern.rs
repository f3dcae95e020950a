//! Regular expressions as JSON Schema writes them (ECMA 262), as sets of strings.
//!
//! Taken: everything regular, anchors at either end, and lookaheads at the beginning. Refused: what is not regular (references back),
//! word boundaries, lookbehind, anchors in the middle.

use llguidance::derivre::{RegexAst, RegexBuilder};
use regex_syntax::hir::{Hir, HirKind, Look};

/// What deciding about one set of strings may cost.
const FUEL: u64 = 40_000;
/// Most parts that a pattern is taken apart into.
const PARTS: usize = 64;

/// Every string.
pub fn any() -> RegexAst {
    RegexAst::Regex("(?s:.*)".into())
}

/// Strings in which the pattern is found somewhere.
pub fn search(pattern: &str) -> Result<RegexAst, String> {
    translate(pattern, true)
}

/// Strings that the pattern matches from end to end.
pub fn whole(pattern: &str) -> Result<RegexAst, String> {
    translate(pattern, false)
}

fn translate(pattern: &str, search: bool) -> Result<RegexAst, String> {
    if let Some((lookaheads, rest)) = lookaheads(pattern)? {
        let mut parts = vec![translate(&rest, search)?];
        for (positive, inner) in lookaheads {
            // What is ahead of the beginning, and anything behind it.
            let ahead = translate(&format!("^(?:{inner})"), true)?;
            parts.push(if positive { ahead } else { RegexAst::Not(Box::new(ahead)) });
        }
        parts.push(any());
        return Ok(RegexAst::And(parts));
    }
    let hir = parse(pattern)?;
    let mut parts = Vec::new();
    spread(&hir, &mut parts)?;
    let sets = parts.into_iter().map(|part| part.set(search)).collect::<Result<Vec<_>, _>>()?;
    Ok(if sets.len() == 1 { sets.into_iter().next().expect("one") } else { RegexAst::Or(sets) })
}

fn parse(pattern: &str) -> Result<Hir, String> {
    let text = of_ecma(pattern)?;
    let mut parser = regex_syntax::ParserBuilder::new().nest_limit(128).build();
    parser.parse(&text).map_err(|e| {
        let shown = e.to_string();
        let reason = shown.lines().last().unwrap_or_default().trim().trim_start_matches("error: ");
        format!("is no regular expression: {reason}")
    })
}

/// Lookaheads at the beginning (behind `^`), and what follows them.
#[allow(clippy::type_complexity)]
fn lookaheads(pattern: &str) -> Result<Option<(Vec<(bool, String)>, String)>, String> {
    let Some(mut rest) = pattern.strip_prefix('^') else { return Ok(None) };
    let mut found = Vec::new();
    while let Some((positive, inside)) =
        rest.strip_prefix("(?=").map(|inside| (true, inside)).or(rest.strip_prefix("(?!").map(|inside| (false, inside)))
    {
        let end = closing(inside).ok_or("has a group without its end")?;
        found.push((positive, inside[..end].to_owned()));
        rest = &inside[end + 1..];
    }
    if found.is_empty() {
        return Ok(None);
    }
    // An alternative at the top would not be behind the lookahead.
    let alternatives = top_level(rest).any(|byte| byte == b'|');
    let quantified = rest.starts_with(['*', '+', '?', '{']);
    if alternatives || quantified {
        return Err("has a lookahead whose reach is not clear".into());
    }
    Ok(Some((found, format!("^{rest}"))))
}

/// Bytes outside groups, classes and escapes.
fn top_level(text: &str) -> impl Iterator<Item = u8> {
    let (mut level, mut class, mut escaped) = (0usize, false, false);
    text.bytes().filter(move |&byte| {
        if std::mem::take(&mut escaped) {
            return false;
        }
        match byte {
            b'\\' => escaped = true,
            b'[' if !class => class = true,
            b']' if class => class = false,
            b'(' if !class => level += 1,
            b')' if !class => level = level.saturating_sub(1),
            _ => return level == 0 && !class,
        }
        false
    })
}

/// Where the group that is open ends.
fn closing(text: &str) -> Option<usize> {
    let (mut level, mut class, mut escaped) = (0usize, false, false);
    for (at, byte) in text.bytes().enumerate() {
        if std::mem::take(&mut escaped) {
            continue;
        }
        match byte {
            b'\\' => escaped = true,
            b'[' => class = true,
            b']' => class = false,
            b'(' if !class => level += 1,
            b')' if !class && level == 0 => return Some(at),
            b')' if !class => level -= 1,
            _ => {}
        }
    }
    None
}

/// ECMA's classes and escapes in the words of the regex crate.
fn of_ecma(pattern: &str) -> Result<String, String> {
    const SPACE: &str =
        r"\t\n\x0b\x0c\r \u{a0}\u{1680}\u{2000}-\u{200a}\u{2028}\u{2029}\u{202f}\u{205f}\u{3000}\u{feff}";
    let mut text = String::new();
    let mut characters = pattern.chars().peekable();
    let mut class = false;
    while let Some(character) = characters.next() {
        match character {
            '\\' => {
                let escaped = characters.next().ok_or("ends in a backslash")?;
                let set = |inside: &str, negated: bool| match (class, negated) {
                    (true, false) => inside.to_owned(),
                    (_, true) => format!("[^{inside}]"),
                    (false, false) => format!("[{inside}]"),
                };
                match escaped {
                    'd' => text += &set("0-9", false),
                    'D' => text += &set("0-9", true),
                    'w' => text += &set("0-9A-Za-z_", false),
                    'W' => text += &set("0-9A-Za-z_", true),
                    's' => text += &set(SPACE, false),
                    'S' => text += &set(SPACE, true),
                    'b' if class => text += r"\x08",
                    'b' | 'B' => return Err("has a word boundary".into()),
                    'n' | 'r' | 't' | 'f' | 'v' => text.extend(['\\', escaped]),
                    '0' => text += r"\x00",
                    '1'..='9' | 'k' => return Err("refers back to a group".into()),
                    'c' => {
                        let letter =
                            characters.next().filter(char::is_ascii_alphabetic).ok_or("has a wrong escape \\c")?;
                        text += &format!("\\x{:02x}", letter.to_ascii_uppercase() as u8 - b'A' + 1);
                    }
                    'x' => text += &escape(&mut characters, 2)?,
                    'u' if characters.peek() == Some(&'{') => text += r"\u",
                    'u' => text += &escape(&mut characters, 4)?,
                    'p' | 'P' => text.extend(['\\', escaped]),
                    // Python's ends of the text.
                    'A' if !class => text.push('^'),
                    'z' | 'Z' if !class => text.push('$'),
                    other if other.is_ascii_alphanumeric() => return Err(format!("has an unknown escape \\{other}")),
                    other => text += &regex_syntax::escape(&other.to_string()),
                }
            }
            '[' if class => text += r"\[",
            '[' => {
                class = true;
                text.push('[');
                if characters.peek() == Some(&'^') {
                    text.push('^');
                    characters.next();
                }
                if characters.peek() == Some(&']') {
                    return Err("has a class that is empty or everything; write [\\s\\S] for everything".into());
                }
            }
            ']' if class => {
                class = false;
                text.push(']');
            }
            // Two of these would be an operation on classes.
            '&' | '~' if class => text.extend(['\\', character]),
            '-' if class && characters.peek() == Some(&'-') => text += r"\-",
            '.' if !class => text += r"[^\n\r\u{2028}\u{2029}]",
            '{' if !class && !counted(characters.clone()) => text += r"\{",
            '/' => text.push('/'),
            '(' if !class && characters.peek() == Some(&'?') => {
                let ahead: String = characters.clone().take(3).collect();
                if ahead.starts_with("?=")
                    || ahead.starts_with("?!")
                    || ahead.starts_with("?<=")
                    || ahead.starts_with("?<!")
                {
                    return Err("looks ahead or behind in the middle".into());
                }
                text.push('(');
            }
            other => text.push(other),
        }
    }
    Ok(text)
}

/// Whether what follows a brace is a count.
fn counted(characters: impl Iterator<Item = char>) -> bool {
    let inside: String = characters.take_while(|&character| character != '}').take(24).collect();
    let (low, high) = inside.split_once(',').unwrap_or((&inside, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    !low.is_empty() && digits(low) && digits(high)
}

fn escape(characters: &mut impl Iterator<Item = char>, digits: usize) -> Result<String, String> {
    let code: String = characters.take(digits).collect();
    let value = u32::from_str_radix(&code, 16).ok().filter(|_| code.len() == digits).ok_or("has a wrong escape")?;
    char::from_u32(value).ok_or("has half of a surrogate pair")?;
    Ok(format!("\\u{{{value:x}}}"))
}

/// One alternative of a pattern.
struct Part {
    start: bool,
    end: bool,
    inside: Vec<Hir>,
}

impl Part {
    fn set(self, search: bool) -> Result<RegexAst, String> {
        let inside = Hir::concat(self.inside);
        if !inside.properties().look_set().is_empty() {
            return Err("has an anchor in the middle".into());
        }
        let set = RegexAst::Regex(inside.to_string());
        let mut parts = Vec::new();
        if search && !self.start {
            parts.push(any());
        }
        parts.push(set);
        if search && !self.end {
            parts.push(any());
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { RegexAst::Concat(parts) })
    }
}

/// Takes a pattern apart until anchors are at the ends of its parts.
fn spread(hir: &Hir, parts: &mut Vec<Part>) -> Result<(), String> {
    if parts.len() > PARTS {
        return Err("has too many alternatives with anchors".into());
    }
    if hir.properties().look_set().is_empty() {
        parts.push(Part { start: false, end: false, inside: vec![hir.clone()] });
        return Ok(());
    }
    match hir.kind() {
        HirKind::Look(Look::Start) => parts.push(Part { start: true, end: false, inside: Vec::new() }),
        HirKind::Look(Look::End) => parts.push(Part { start: false, end: true, inside: Vec::new() }),
        HirKind::Look(_) => return Err("has an anchor that is not ^ or $".into()),
        HirKind::Capture(capture) => spread(&capture.sub, parts)?,
        HirKind::Alternation(options) => {
            for option in options {
                spread(option, parts)?;
            }
        }
        HirKind::Concat(sequence) => concatenated(sequence, parts)?,
        _ => return Err("repeats an anchor".into()),
    }
    Ok(())
}

/// A sequence whose parts may have anchors: those at the beginning open it, those at the end close it.
fn concatenated(sequence: &[Hir], parts: &mut Vec<Part>) -> Result<(), String> {
    let mut open = vec![Part { start: false, end: false, inside: Vec::new() }];
    for hir in sequence {
        let mut options = Vec::new();
        spread(hir, &mut options)?;
        let mut next = Vec::new();
        for left in &open {
            for right in &options {
                let empty = |part: &Part| part.inside.iter().all(|hir| matches!(hir.kind(), HirKind::Empty));
                if (right.start && !empty(left)) || (left.end && !empty(right)) {
                    return Err("has an anchor in the middle".into());
                }
                let inside = left.inside.iter().chain(&right.inside).cloned().collect();
                next.push(Part { start: left.start || right.start, end: left.end || right.end, inside });
            }
        }
        open = next;
        if open.len() > PARTS {
            return Err("has too many alternatives with anchors".into());
        }
    }
    parts.extend(open);
    Ok(())
}

/// Whether a set has no string; none when that takes too long to tell.
pub fn is_empty(set: &RegexAst) -> Option<bool> {
    let mut builder = RegexBuilder::new();
    let expression = builder.mk(set).ok()?;
    if builder.exprset().is_positive(expression) {
        return Some(false);
    }
    Some(builder.into_regex_limited(expression, FUEL).ok()?.always_empty())
}

/// Whether a set has this string; none when that takes too long to tell.
pub fn has(set: &RegexAst, text: &str) -> Option<bool> {
    let mut builder = RegexBuilder::new();
    let expression = builder.mk(set).ok()?;
    Some(builder.into_regex_limited(expression, FUEL).ok()?.is_match(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_found_where_ecma_finds_them() {
        let table = [
            ("a+", "xaay", true),
            ("^a+$", "aa", true),
            ("^a+$", "xaa", false),
            ("^a|b$", "ax", true),
            ("^a|b$", "xb", true),
            ("^a|b$", "xax", false),
            ("^(?:a|b)$", "b", true),
            ("(^a|b)c", "xbc", true),
            ("(^a|b)c", "xac", false),
            (r"^\d{3}-\w*$", "123-ab_", true),
            (r"^\d{3}$", "１２３", false),
            (r"^\S+$", "a b", false),
            (r"^[\w.-]+$", "a.b-c", true),
            (r"^.$", "\n", false),
            (r"^[\s\S]$", "\n", true),
            (r"^(?!abc)[a-z]+$", "abcd", false),
            (r"^(?!abc)[a-z]+$", "abd", true),
            (r"^(?!abc$)[a-z]+$", "abcd", true),
            (r"^(?=.*[0-9])[a-z0-9]+$", "abc", false),
            (r"^(?=.*[0-9])[a-z0-9]+$", "a1c", true),
            (r"^\/a\-b$", "/a-b", true),
            (r"^{x}$", "{x}", true),
            (r"^$", "", true),
            (r"", "anything", true),
            (r"^[A-Z][^/\\]*$", "A\"b", true),
            (r"^é$", "é", true),
        ];
        for (pattern, text, expected) in table {
            assert_eq!(has(&search(pattern).unwrap(), text), Some(expected), "{pattern} in {text}");
        }
        for pattern in [r"(a)\1", r"\bword", "a(?=b)c", "a^b", "(", "[a"] {
            assert!(search(pattern).is_err(), "{pattern}");
        }
    }
}
