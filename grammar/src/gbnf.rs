//! Grammars in llama.cpp's form (GBNF), as rules.
//!
//! A grammar that does not lead back to itself is one regular expression. Otherwise what is regular in it becomes lexemes, where
//! none of them can be the beginning of another: the lexer takes the longest, and would read on where the grammar may not. Where that
//! cannot be had every character is a lexeme.

use std::collections::HashMap;

use llguidance::derivre::RegexAst;

use crate::GrammarError;
use crate::builder::{Builder, Symbol};
use crate::limits::GRAMMAR_RULES;
use crate::schema::pattern;

type Result<T> = std::result::Result<T, GrammarError>;

/// Most repetitions that may be asked for.
const REPEATS: usize = 2_000;

/// Largest regular expression that one lexeme is made of, in characters and classes.
const LEXEME_SIZE: usize = 4_000;

enum Item {
    Text(String),
    /// A class of characters as a regular expression writes it.
    Class(String),
    Rule(String),
    Sequence(Vec<Item>),
    Choice(Vec<Item>),
    Repeat(Box<Item>, usize, Option<usize>),
}

fn wrong(line: usize, reason: &str) -> GrammarError {
    GrammarError::Source { kind: "grammar", reason: format!("line {line} {reason}") }
}

/// Adds the rules of a grammar and returns the symbol of its `root`.
pub fn lower(text: &str, builder: &mut Builder) -> Result<Symbol> {
    let rules = Parser { text, at: 0 }.rules()?;
    let by_name: HashMap<&str, &Item> = rules.iter().map(|(name, item)| (name.as_str(), item)).collect();
    for (_, item) in &rules {
        known(item, &by_name)?;
    }
    if !by_name.contains_key("root") {
        return Err(GrammarError::Source { kind: "grammar", reason: "there is no rule 'root'".into() });
    }
    let real = real_rules(&rules);
    if !real.contains(&"root") {
        let reason = "the rule 'root' leads back to itself without an end".into();
        return Err(GrammarError::Unsatisfiable { kind: "grammar", reason });
    }
    match Lowering::new(by_name.clone(), Cut::Lexemes).emit(builder, true)? {
        Some(root) => Ok(root),
        None => {
            Lowering::new(by_name, Cut::Characters).emit(builder, false)?.ok_or_else(|| wrong(1, "cannot be compiled"))
        }
    }
}

fn known(item: &Item, rules: &HashMap<&str, &Item>) -> Result<()> {
    match item {
        Item::Rule(name) if !rules.contains_key(name.as_str()) => {
            Err(GrammarError::Source { kind: "grammar", reason: format!("the rule '{name}' is used and not defined") })
        }
        Item::Sequence(items) | Item::Choice(items) => items.iter().try_for_each(|item| known(item, rules)),
        Item::Repeat(item, _, _) => known(item, rules),
        _ => Ok(()),
    }
}

/// Rules with a finite text.
fn real_rules(rules: &[(String, Item)]) -> Vec<&str> {
    fn real(item: &Item, found: &[&str]) -> bool {
        match item {
            Item::Text(_) | Item::Class(_) => true,
            Item::Rule(name) => found.contains(&name.as_str()),
            Item::Sequence(items) => items.iter().all(|item| real(item, found)),
            Item::Choice(items) => items.iter().any(|item| real(item, found)),
            Item::Repeat(item, least, _) => *least == 0 || real(item, found),
        }
    }
    let mut found: Vec<&str> = Vec::new();
    loop {
        let before = found.len();
        for (name, item) in rules {
            if !found.contains(&name.as_str()) && real(item, &found) {
                found.push(name);
            }
        }
        if found.len() == before {
            return found;
        }
    }
}

/// What becomes a lexeme.
#[derive(Clone, Copy, PartialEq)]
enum Cut {
    /// The longest stretches that are regular and of which no text begins another.
    Lexemes,
    Characters,
}

/// What a rule is written as: lexemes and other rules.
enum Node<'g> {
    Lexeme(RegexAst),
    Rule(&'g str),
    Sequence(Vec<Node<'g>>),
    Choice(Vec<Node<'g>>),
    Repeat(Box<Node<'g>>, usize, Option<usize>),
}

struct Lowering<'g> {
    rules: HashMap<&'g str, &'g Item>,
    cut: Cut,
    /// What is a regular expression, and its size; none for rules that lead back to themselves, and while that is found out.
    sets: HashMap<&'g str, Option<(RegexAst, usize)>>,
    /// The texts of all lexemes.
    lexemes: Vec<RegexAst>,
}

impl<'g> Lowering<'g> {
    fn new(rules: HashMap<&'g str, &'g Item>, cut: Cut) -> Self {
        Self { rules, cut, sets: HashMap::new(), lexemes: Vec::new() }
    }

    /// Adds the rules; none if a lexeme could begin another.
    fn emit(mut self, builder: &mut Builder, checked: bool) -> Result<Option<Symbol>> {
        if let Some((set, _)) = self.set_of("root") {
            return builder.lexeme(set).map(Some);
        }
        let mut nodes: Vec<(&'g str, Node<'g>)> = Vec::new();
        let mut todo = vec!["root"];
        while let Some(name) = todo.pop() {
            if nodes.iter().any(|(known, _)| *known == name) {
                continue;
            }
            let node = self.node(self.rules[name]);
            used(&node, &mut todo);
            nodes.push((name, node));
        }
        if checked && !prefix_free(&RegexAst::Or(self.lexemes.clone())) {
            return Ok(None);
        }
        let mut symbols = HashMap::new();
        for (name, _) in &nodes {
            symbols.insert(*name, builder.symbol("rule")?);
        }
        for (name, node) in &nodes {
            let inside = add(node, &symbols, builder)?;
            builder.rule(symbols[name], &[inside])?;
        }
        Ok(Some(symbols["root"]))
    }

    fn set_of(&mut self, name: &'g str) -> Option<(RegexAst, usize)> {
        if let Some(known) = self.sets.get(name) {
            return known.clone();
        }
        self.sets.insert(name, None);
        let set = self.set(self.rules[name]);
        self.sets.insert(name, set.clone());
        set
    }

    /// The regular expression of an item, with its size.
    fn set(&mut self, item: &'g Item) -> Option<(RegexAst, usize)> {
        let (set, size) = match item {
            Item::Text(text) => (RegexAst::Literal(text.clone()), text.len()),
            Item::Class(class) => (RegexAst::Regex(class.clone()), 1),
            Item::Rule(name) => self.set_of(name)?,
            Item::Sequence(items) => {
                let (sets, size) = self.sets(items)?;
                (RegexAst::Concat(sets), size)
            }
            Item::Choice(items) => {
                let (sets, size) = self.sets(items)?;
                (RegexAst::Or(sets), size)
            }
            Item::Repeat(item, least, most) => {
                let (set, size) = self.set(item)?;
                let times = most.unwrap_or(*least).max(1);
                let most = most.map_or(u32::MAX, |most| most as u32);
                (RegexAst::Repeat(Box::new(set), *least as u32, most), size.saturating_mul(times))
            }
        };
        (size <= LEXEME_SIZE).then_some((set, size + 1))
    }

    fn sets(&mut self, items: &'g [Item]) -> Option<(Vec<RegexAst>, usize)> {
        let mut all = (Vec::new(), 0usize);
        for item in items {
            let (set, size) = self.set(item)?;
            all.0.push(set);
            all.1 = all.1.saturating_add(size);
        }
        Some(all)
    }

    fn lexeme(&mut self, set: RegexAst) -> Node<'g> {
        self.lexemes.push(set.clone());
        Node::Lexeme(set)
    }

    /// An item as one lexeme, if no text of it begins another.
    fn whole(&mut self, items: &'g [Item]) -> Option<RegexAst> {
        if self.cut == Cut::Characters && !matches!(items, [Item::Class(_)]) {
            return None;
        }
        let (sets, _) = self.sets(items)?;
        let set = if sets.len() == 1 { sets.into_iter().next()? } else { RegexAst::Concat(sets) };
        prefix_free(&set).then_some(set)
    }

    fn node(&mut self, item: &'g Item) -> Node<'g> {
        if let Some(set) = self.whole(std::slice::from_ref(item)) {
            return self.lexeme(set);
        }
        match item {
            Item::Text(text) => {
                let characters: Vec<RegexAst> = text.chars().map(|c| RegexAst::Literal(c.to_string())).collect();
                Node::Sequence(characters.into_iter().map(|set| self.lexeme(set)).collect())
            }
            Item::Class(class) => self.lexeme(RegexAst::Regex(class.clone())),
            Item::Rule(name) => Node::Rule(name),
            Item::Choice(items) => Node::Choice(items.iter().map(|item| self.node(item)).collect()),
            Item::Repeat(item, least, most) => Node::Repeat(Box::new(self.node(item)), *least, *most),
            Item::Sequence(items) => {
                let (mut nodes, mut at) = (Vec::new(), 0);
                while at < items.len() {
                    let far =
                        (at + 2..=items.len()).rev().find_map(|end| self.whole(&items[at..end]).map(|set| (end, set)));
                    let (end, node) = match far {
                        Some((end, set)) => (end, self.lexeme(set)),
                        None => (at + 1, self.node(&items[at])),
                    };
                    nodes.push(node);
                    at = end;
                }
                Node::Sequence(nodes)
            }
        }
    }
}

/// Whether no text of a set begins another; false also if that takes too long to tell.
fn prefix_free(set: &RegexAst) -> bool {
    let longer = RegexAst::Concat(vec![set.clone(), pattern::any(), RegexAst::Regex("(?s:.)".into())]);
    pattern::is_empty(&RegexAst::And(vec![set.clone(), longer])) == Some(true)
}

fn used<'g>(node: &Node<'g>, names: &mut Vec<&'g str>) {
    match node {
        Node::Rule(name) => names.push(name),
        Node::Sequence(nodes) | Node::Choice(nodes) => nodes.iter().for_each(|node| used(node, names)),
        Node::Repeat(node, _, _) => used(node, names),
        Node::Lexeme(_) => {}
    }
}

fn add(node: &Node<'_>, symbols: &HashMap<&str, Symbol>, builder: &mut Builder) -> Result<Symbol> {
    match node {
        Node::Lexeme(set) => builder.lexeme(set.clone()),
        Node::Rule(name) => Ok(symbols[name]),
        Node::Sequence(nodes) | Node::Choice(nodes) => {
            let parts = nodes.iter().map(|node| add(node, symbols, builder)).collect::<Result<Vec<_>>>()?;
            if matches!(node, Node::Sequence(_)) { builder.join(&parts) } else { builder.select(&parts) }
        }
        Node::Repeat(node, least, most) => {
            let symbol = add(node, symbols, builder)?;
            builder.repeat(symbol, *least, *most)
        }
    }
}

struct Parser<'t> {
    text: &'t str,
    at: usize,
}

impl Parser<'_> {
    fn rules(mut self) -> Result<Vec<(String, Item)>> {
        let mut rules: Vec<(String, Item)> = Vec::new();
        self.blanks(true);
        while self.at < self.text.len() {
            let name = self.name()?;
            self.blanks(false);
            if !self.eat("::=") {
                return Err(self.wrong("has no '::=' behind the name of a rule"));
            }
            self.blanks(true);
            let item = self.choice(false)?;
            if rules.iter().any(|(known, _)| *known == name) {
                return Err(self.wrong(&format!("defines the rule '{name}' again")));
            }
            rules.push((name, item));
            if rules.len() > GRAMMAR_RULES {
                return Err(GrammarError::Limit { what: "the number of rules of the grammar", limit: GRAMMAR_RULES });
            }
            self.blanks(true);
        }
        Ok(rules)
    }

    fn wrong(&self, reason: &str) -> GrammarError {
        let line = self.text[..self.at.min(self.text.len())].lines().count().max(1);
        wrong(line, reason)
    }

    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn eat(&mut self, text: &str) -> bool {
        let found = self.rest().starts_with(text);
        self.at += if found { text.len() } else { 0 };
        found
    }

    fn next(&mut self) -> Result<char> {
        let character = self.rest().chars().next().ok_or_else(|| self.wrong("ends too early"))?;
        self.at += character.len_utf8();
        Ok(character)
    }

    /// Skips blanks and comments, over ends of lines where a rule cannot end.
    fn blanks(&mut self, lines: bool) {
        loop {
            let skipped = self.rest().len() - self.rest().trim_start_matches([' ', '\t', '\r']).len();
            self.at += skipped;
            if self.rest().starts_with('#') {
                self.at += self.rest().find('\n').unwrap_or(self.rest().len());
            }
            if !lines || !self.eat("\n") {
                return;
            }
        }
    }

    fn name(&mut self) -> Result<String> {
        let length =
            self.rest().find(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_').unwrap_or(self.rest().len());
        if length == 0 {
            return Err(self.wrong("has something else where the name of a rule should be"));
        }
        let name = self.rest()[..length].to_owned();
        self.at += length;
        Ok(name)
    }

    fn choice(&mut self, inside: bool) -> Result<Item> {
        let mut options = vec![self.sequence(inside)?];
        loop {
            // An alternative may stand on the next line.
            let before = self.at;
            self.blanks(true);
            if !self.eat("|") {
                self.at = if inside { self.at } else { before };
                break;
            }
            self.blanks(true);
            options.push(self.sequence(inside)?);
        }
        Ok(if options.len() == 1 { options.remove(0) } else { Item::Choice(options) })
    }

    fn sequence(&mut self, inside: bool) -> Result<Item> {
        let mut items: Vec<Item> = Vec::new();
        loop {
            self.blanks(inside);
            let item = match self.rest().chars().next() {
                Some('"') => self.literal()?,
                Some('[') => self.class()?,
                Some('(') => {
                    self.at += 1;
                    self.blanks(true);
                    let item = self.choice(true)?;
                    self.blanks(true);
                    if !self.eat(")") {
                        return Err(self.wrong("has a '(' without its ')'"));
                    }
                    item
                }
                Some('.') => {
                    self.at += 1;
                    Item::Class("(?s:.)".into())
                }
                Some(c) if c.is_ascii_alphanumeric() || c == '-' || c == '_' => Item::Rule(self.name()?),
                Some('*' | '+' | '?' | '{') => match items.pop() {
                    Some(item) => self.repeated(item)?,
                    None => return Err(self.wrong("repeats nothing")),
                },
                _ => break,
            };
            items.push(item);
        }
        Ok(if items.len() == 1 { items.remove(0) } else { Item::Sequence(items) })
    }

    fn repeated(&mut self, item: Item) -> Result<Item> {
        let (least, most) = match self.next()? {
            '*' => (0, None),
            '+' => (1, None),
            '?' => (0, Some(1)),
            _ => {
                let end = self.rest().find('}').ok_or_else(|| self.wrong("has a '{' without its '}'"))?;
                let inside = self.rest()[..end].to_owned();
                self.at += end + 1;
                let number = |text: &str| text.trim().parse::<usize>().ok();
                let parsed = match inside.split_once(',') {
                    None => number(&inside).map(|times| (times, Some(times))),
                    Some((least, "")) => number(least).map(|least| (least, None)),
                    Some(("", most)) => number(most).map(|most| (0, Some(most))),
                    Some((least, most)) => number(least).zip(number(most)).map(|(least, most)| (least, Some(most))),
                };
                parsed.ok_or_else(|| self.wrong("has something else than numbers between '{' and '}'"))?
            }
        };
        if most.is_some_and(|most| most < least) || most.unwrap_or(least).max(least) > REPEATS {
            return Err(self.wrong(&format!("repeats more than {REPEATS} times, or fewer at most than at least")));
        }
        Ok(Item::Repeat(Box::new(item), least, most))
    }

    fn literal(&mut self) -> Result<Item> {
        self.at += 1;
        let mut text = String::new();
        loop {
            match self.next()? {
                '"' => return Ok(Item::Text(text)),
                '\n' => return Err(self.wrong("has a text without its end")),
                '\\' => text.push(self.escape()?),
                character => text.push(character),
            }
        }
    }

    fn class(&mut self) -> Result<Item> {
        self.at += 1;
        let mut class = String::from(if self.eat("^") { "[^" } else { "[" });
        let mut empty = true;
        loop {
            let character = match self.next()? {
                ']' => break,
                '\n' => return Err(self.wrong("has a '[' without its ']'")),
                '\\' => self.escape()?,
                '-' if !empty && !self.rest().starts_with(']') => {
                    class.push('-');
                    continue;
                }
                character => character,
            };
            class += &format!("\\u{{{:x}}}", character as u32);
            empty = false;
        }
        if empty {
            return Err(self.wrong("has a class without characters"));
        }
        class.push(']');
        match regex_syntax::parse(&class) {
            Ok(_) => Ok(Item::Class(class)),
            Err(_) => Err(self.wrong("has a class that is not valid")),
        }
    }

    fn escape(&mut self) -> Result<char> {
        let digits = match self.next()? {
            'n' => return Ok('\n'),
            'r' => return Ok('\r'),
            't' => return Ok('\t'),
            'x' => 2,
            'u' => 4,
            'U' => 8,
            other => return Ok(other),
        };
        let code =
            self.rest().get(..digits).and_then(|code| u32::from_str_radix(code, 16).ok()).and_then(char::from_u32);
        self.at += digits;
        code.ok_or_else(|| self.wrong("has a wrong escape"))
    }
}
