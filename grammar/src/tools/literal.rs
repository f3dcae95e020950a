//! Turns one written value, a Python literal or JSON, into JSON, character by character.
//!
//! Python's values differ from JSON in their words (`True`, `None`), quotes, escapes, numbers (`1_000`, `.5`), tuples and commas
//! before a closing bracket. What is neither is refused: nothing is guessed.

/// How backslashes in strings are read. In Python an unknown escape is a backslash and the character; JSON has `\/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    Python,
    Json,
}

/// What a reader says about the character that it was given.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    More,
    /// It is the last one.
    Last,
    /// What it reads ended before it.
    Behind,
    /// With it this is none of what it reads.
    Broken,
}

/// Containers may be nested this deep.
const DEPTH: usize = 128;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Container {
    /// A list or tuple with the bracket that closes it.
    List(char),
    Dict,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A value must come; inside a container that is open it may also be closed.
    Value,
    Key,
    Colon,
    /// After a value in a container.
    After,
    /// After one quote: a string of this quote, or three of them.
    Quote(char),
    /// After a string's second quote: empty, or the third follows.
    Quotes(char),
    Text {
        quote: char,
        triple: bool,
        /// Quotes of a triple quoted string's end that have come.
        ending: usize,
    },
    Escape {
        quote: char,
        triple: bool,
    },
    Digits {
        quote: char,
        triple: bool,
        left: u32,
        code: u32,
    },
    /// A word or number.
    Word,
}

pub struct Literal {
    dialect: Dialect,
    open: Vec<Container>,
    state: State,
    word: String,
    /// A comma came and waits for the next value.
    comma: bool,
    /// The string being read is a key.
    key: bool,
    /// The first half of a pair of `\u` escapes.
    high: Option<u32>,
}

impl Literal {
    pub fn new(dialect: Dialect) -> Self {
        Self {
            dialect,
            open: Vec::new(),
            state: State::Value,
            word: String::new(),
            comma: false,
            key: false,
            high: None,
        }
    }

    /// Appends to `json` what `c` makes certain.
    pub fn step(&mut self, c: char, json: &mut String) -> Step {
        match self.state {
            State::Value | State::Key => self.begin(c, json),
            State::Colon => match c {
                ':' => {
                    json.push_str(": ");
                    self.state = State::Value;
                    Step::More
                }
                _ if c.is_whitespace() => Step::More,
                _ => Step::Broken,
            },
            State::After => self.after(c, json),
            State::Word => self.word(c, json),
            _ => self.string(c, json),
        }
    }

    fn begin(&mut self, c: char, json: &mut String) -> Step {
        if c.is_whitespace() {
            return Step::More;
        }
        if let Some(container) = self.open.last()
            && c == closing(*container)
            && (self.state == State::Key || matches!(container, Container::List(_)))
        {
            self.comma = false;
            return self.close(json);
        }
        self.key = self.state == State::Key;
        let opened = match c {
            '[' => Some(Container::List(']')),
            '(' if self.dialect == Dialect::Python => Some(Container::List(')')),
            '{' => Some(Container::Dict),
            _ => None,
        };
        if self.key && opened.is_some() || self.open.len() == DEPTH {
            return Step::Broken;
        }
        if opened.is_some() || matches!(c, '"' | '\'') {
            self.separate(json);
        }
        match (opened, c) {
            (Some(container), _) => {
                json.push(if container == Container::Dict { '{' } else { '[' });
                self.open.push(container);
                self.state = if container == Container::Dict { State::Key } else { State::Value };
            }
            (None, '"' | '\'') => {
                json.push('"');
                self.state = State::Quote(c);
            }
            _ if c.is_ascii_alphanumeric() || matches!(c, '-' | '+' | '.') => {
                self.word.clear();
                self.word.push(c);
                self.state = State::Word;
            }
            _ => return Step::Broken,
        }
        Step::More
    }

    fn separate(&mut self, json: &mut String) {
        if std::mem::take(&mut self.comma) {
            json.push_str(", ");
        }
    }

    fn close(&mut self, json: &mut String) -> Step {
        json.push(if self.open.pop() == Some(Container::Dict) { '}' } else { ']' });
        self.state = State::After;
        if self.open.is_empty() { Step::Last } else { Step::More }
    }

    fn after(&mut self, c: char, json: &mut String) -> Step {
        let Some(container) = self.open.last() else { return Step::Behind };
        match c {
            _ if c.is_whitespace() => Step::More,
            ',' => {
                self.comma = true;
                self.state = if *container == Container::Dict { State::Key } else { State::Value };
                Step::More
            }
            _ if c == closing(*container) => self.close(json),
            _ => Step::Broken,
        }
    }

    fn word(&mut self, c: char, json: &mut String) -> Step {
        if c.is_ascii_alphanumeric() || matches!(c, '-' | '+' | '.' | '_') {
            self.word.push(c);
            return Step::More;
        }
        let Some(value) = word_as_json(&self.word) else { return Step::Broken };
        self.separate(json);
        if self.key {
            json.push_str(&format!("\"{value}\""));
            self.state = State::Colon;
            return self.step(c, json);
        }
        json.push_str(&value);
        self.state = State::After;
        self.after(c, json)
    }

    fn string(&mut self, c: char, json: &mut String) -> Step {
        if let Some(high) = self.high {
            let second = matches!(self.state, State::Escape { .. } | State::Digits { .. })
                || (c == '\\' && matches!(self.state, State::Text { ending: 0, .. }));
            if !second {
                self.half(high, json);
            }
        }
        match self.state {
            State::Quote(quote) if c == quote && self.dialect == Dialect::Json => return self.ended(json),
            State::Quote(quote) if c == quote => self.state = State::Quotes(quote),
            State::Quote(quote) => {
                self.state = State::Text { quote, triple: false, ending: 0 };
                return self.string(c, json);
            }
            State::Quotes(quote) if c == quote && self.dialect == Dialect::Python => {
                self.state = State::Text { quote, triple: true, ending: 0 };
            }
            State::Quotes(_) => return if self.ended(json) == Step::Last { Step::Behind } else { self.step(c, json) },
            State::Text { quote, triple, ending } if c == quote => {
                if !triple || ending == 2 {
                    // The end of a string whose emptiness was never in doubt needs no look at what follows.
                    return self.ended(json);
                }
                self.state = State::Text { quote, triple, ending: ending + 1 };
            }
            State::Text { quote, triple, ending } => {
                (0..ending).for_each(|_| escape(quote, json));
                self.state = State::Text { quote, triple, ending: 0 };
                match c {
                    '\\' => self.state = State::Escape { quote, triple },
                    _ => escape(c, json),
                }
            }
            State::Escape { quote, triple } => self.escaped(c, quote, triple, json),
            State::Digits { quote, triple, left, code } => {
                let Some(digit) = c.to_digit(16) else { return Step::Broken };
                let code = code * 16 + digit;
                if left > 1 {
                    self.state = State::Digits { quote, triple, left: left - 1, code };
                } else {
                    self.state = State::Text { quote, triple, ending: 0 };
                    self.unit(code, json);
                }
            }
            _ => return Step::Broken,
        }
        Step::More
    }

    fn ended(&mut self, json: &mut String) -> Step {
        if let Some(high) = self.high {
            self.half(high, json);
        }
        json.push('"');
        if self.key {
            self.state = State::Colon;
            return Step::More;
        }
        self.state = State::After;
        if self.open.is_empty() { Step::Last } else { Step::More }
    }

    fn escaped(&mut self, c: char, quote: char, triple: bool, json: &mut String) {
        let digits = match c {
            'u' => 4,
            'x' if self.dialect == Dialect::Python => 2,
            'U' if self.dialect == Dialect::Python => 8,
            _ => 0,
        };
        if digits > 0 {
            self.state = State::Digits { quote, triple, left: digits, code: 0 };
            return;
        }
        if let Some(high) = self.high {
            self.half(high, json);
        }
        self.state = State::Text { quote, triple, ending: 0 };
        match c {
            'n' => escape('\n', json),
            't' => escape('\t', json),
            'r' => escape('\r', json),
            'b' => escape('\u{8}', json),
            'f' => escape('\u{c}', json),
            '\\' | '\'' | '"' => escape(c, json),
            '/' if self.dialect == Dialect::Json => json.push('/'),
            'a' if self.dialect == Dialect::Python => escape('\u{7}', json),
            'v' if self.dialect == Dialect::Python => escape('\u{b}', json),
            '0' if self.dialect == Dialect::Python => escape('\0', json),
            '\n' if self.dialect == Dialect::Python => {}
            _ => {
                escape('\\', json);
                escape(c, json);
            }
        }
    }

    /// One `\u` escape: a character, or half of one.
    fn unit(&mut self, code: u32, json: &mut String) {
        match (self.high.take(), code) {
            (Some(high), 0xdc00..=0xdfff) => {
                let joined = 0x10000 + ((high - 0xd800) << 10) + (code - 0xdc00);
                json.extend(char::from_u32(joined));
            }
            (Some(high), _) => {
                self.half(high, json);
                self.unit(code, json);
            }
            (None, 0xd800..=0xdbff) => self.high = Some(code),
            (None, _) => match char::from_u32(code) {
                Some(c) => escape(c, json),
                None => self.half(code, json),
            },
        }
    }

    /// A half of a character that stands alone cannot be text; the replacement character says that something was there.
    fn half(&mut self, _code: u32, json: &mut String) {
        self.high = None;
        json.push('\u{fffd}');
    }
}

fn closing(container: Container) -> char {
    match container {
        Container::List(close) => close,
        Container::Dict => '}',
    }
}

/// Writes a character of a JSON string.
pub fn escape(c: char, json: &mut String) {
    match c {
        '"' => json.push_str("\\\""),
        '\\' => json.push_str("\\\\"),
        '\n' => json.push_str("\\n"),
        '\r' => json.push_str("\\r"),
        '\t' => json.push_str("\\t"),
        c if (c as u32) < 0x20 => json.push_str(&format!("\\u{:04x}", c as u32)),
        c => json.push(c),
    }
}

/// `True`, `none`, `1_000`, `.5` as JSON.
pub fn word_as_json(word: &str) -> Option<String> {
    match word {
        "True" | "true" => return Some("true".into()),
        "False" | "false" => return Some("false".into()),
        "None" | "null" => return Some("null".into()),
        _ => {}
    }
    if is_number(word) {
        return Some(word.into());
    }
    let (sign, digits) = match word.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", word.strip_prefix('+').unwrap_or(word)),
    };
    let mut digits: String = digits.replace('_', "");
    if digits.starts_with('.') {
        digits.insert(0, '0');
    }
    if let Some(dot) = digits.find('.')
        && !digits[dot + 1..].starts_with(|c: char| c.is_ascii_digit())
    {
        digits.insert(dot + 1, '0');
    }
    let text = format!("{sign}{digits}");
    is_number(&text).then_some(text)
}

/// Whether this is a number as JSON writes it, of any size.
pub fn is_number(text: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let text = text.strip_prefix('-').unwrap_or(text);
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.strip_prefix(['+', '-']).unwrap_or(exponent)),
        None => (text, "0"),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, "0"));
    digits(whole) && digits(fraction) && digits(exponent) && (whole == "0" || !whole.starts_with('0'))
}
