//! Rules and lexemes put together into what llguidance compiles.

use std::collections::HashMap;

use llguidance::api::{GrammarInit, SkipSpec};
use llguidance::derivre::RegexAst;
use llguidance::earley::lexerspec::{LexemeClass, LexerSpec};
use llguidance::earley::{Grammar, ParamCond, ParamExpr, SymIdx, SymbolProps};

use crate::GrammarError;
use crate::limits::GRAMMAR_SYMBOLS;

type Result<T> = std::result::Result<T, GrammarError>;

/// A symbol of the grammar.
pub type Symbol = SymIdx;

/// Above this many copies a repetition is put together from groups, so that its size grows with the logarithm.
const GROUP: usize = 4;

pub struct Builder {
    grammar: Grammar,
    lexer: LexerSpec,
    class: LexemeClass,
    start: Symbol,
    empty: Symbol,
    texts: HashMap<String, Symbol>,
    exact: HashMap<(usize, usize), Symbol>,
    at_most: HashMap<(usize, usize), Symbol>,
}

fn failed(e: impl std::fmt::Display) -> GrammarError {
    GrammarError::Source { kind: "grammar", reason: e.to_string() }
}

impl Builder {
    pub fn new() -> Result<Self> {
        let mut lexer = LexerSpec::new().map_err(failed)?;
        let class = lexer.setup_lexeme_class_with_skip(SkipSpec::once(RegexAst::NoMatch)).map_err(failed)?;
        let mut grammar = Grammar::new(None);
        let start = grammar
            .fresh_symbol_ext("start", SymbolProps { is_start: true, grammar_id: class, ..SymbolProps::default() });
        let empty = grammar.fresh_symbol_ext("empty", SymbolProps { grammar_id: class, ..SymbolProps::default() });
        grammar.add_rule(empty, Vec::new()).map_err(failed)?;
        let (texts, exact, at_most) = Default::default();
        Ok(Self { grammar, lexer, class, start, empty, texts, exact, at_most })
    }

    pub fn symbol(&mut self, name: &str) -> Result<Symbol> {
        if self.grammar.num_symbols() >= GRAMMAR_SYMBOLS {
            return Err(GrammarError::Limit { what: "the number of rules", limit: GRAMMAR_SYMBOLS });
        }
        Ok(self.grammar.fresh_symbol_ext(name, SymbolProps { grammar_id: self.class, ..SymbolProps::default() }))
    }

    /// One more way to write a symbol.
    pub fn rule(&mut self, symbol: Symbol, parts: &[Symbol]) -> Result<()> {
        let parts = parts.iter().copied().filter(|&part| part != self.empty).collect();
        self.grammar.add_rule(symbol, parts).map_err(failed)
    }

    /// A symbol with 64 bits that its rules can read and pass on.
    pub fn symbol_with_bits(&mut self, name: &str) -> Result<Symbol> {
        let symbol = self.symbol(name)?;
        self.grammar.make_parametric(symbol).map_err(failed)?;
        Ok(symbol)
    }

    /// A way to write a symbol that holds under a condition on its bits.
    pub fn rule_if(&mut self, symbol: Symbol, condition: ParamCond, parts: Vec<(Symbol, ParamExpr)>) -> Result<()> {
        self.grammar.add_rule_ext(symbol, condition, parts).map_err(failed)
    }

    pub fn empty(&self) -> Symbol {
        self.empty
    }

    /// A text that is what it is.
    pub fn text(&mut self, text: &str) -> Result<Symbol> {
        if text.is_empty() {
            return Ok(self.empty);
        }
        if let Some(&symbol) = self.texts.get(text) {
            return Ok(symbol);
        }
        let symbol = self.lexeme(RegexAst::Literal(text.to_owned()))?;
        self.texts.insert(text.to_owned(), symbol);
        Ok(symbol)
    }

    /// A text that a regular expression takes, the longest one.
    pub fn lexeme(&mut self, set: RegexAst) -> Result<Symbol> {
        let lexeme = self.lexer.add_greedy_lexeme(String::new(), set, false, None, usize::MAX).map_err(failed)?;
        let symbol = self.symbol("lexeme")?;
        self.grammar.make_terminal(symbol, lexeme, &self.lexer).map_err(failed)?;
        Ok(symbol)
    }

    pub fn join(&mut self, parts: &[Symbol]) -> Result<Symbol> {
        let parts: Vec<Symbol> = parts.iter().copied().filter(|&part| part != self.empty).collect();
        match parts[..] {
            [] => Ok(self.empty),
            [one] => Ok(one),
            _ => {
                let symbol = self.symbol("join")?;
                self.rule(symbol, &parts)?;
                Ok(symbol)
            }
        }
    }

    pub fn select(&mut self, options: &[Symbol]) -> Result<Symbol> {
        if let [one] = options {
            return Ok(*one);
        }
        let symbol = self.symbol("select")?;
        for &option in options {
            self.rule(symbol, &[option])?;
        }
        Ok(symbol)
    }

    /// Between `least` and `most` times the same.
    pub fn repeat(&mut self, symbol: Symbol, least: usize, most: Option<usize>) -> Result<Symbol> {
        let first = self.exactly(symbol, least)?;
        let more = match most {
            Some(most) => self.at_most(symbol, most - least)?,
            None => {
                let many = self.symbol("many")?;
                self.rule(many, &[])?;
                self.rule(many, &[many, symbol])?;
                many
            }
        };
        self.join(&[first, more])
    }

    fn exactly(&mut self, symbol: Symbol, times: usize) -> Result<Symbol> {
        if times <= 2 * GROUP {
            return self.join(&vec![symbol; times]);
        }
        let key = (symbol.as_usize(), times);
        if let Some(&known) = self.exact.get(&key) {
            return Ok(known);
        }
        let group = self.exactly(symbol, GROUP)?;
        let groups = self.exactly(group, times / GROUP)?;
        let left = self.exactly(symbol, times % GROUP)?;
        let all = self.join(&[left, groups])?;
        self.exact.insert(key, all);
        Ok(all)
    }

    fn at_most(&mut self, symbol: Symbol, times: usize) -> Result<Symbol> {
        let key = (symbol.as_usize(), times);
        if let Some(&known) = self.at_most.get(&key) {
            return Ok(known);
        }
        let all = if times == 0 {
            self.empty
        } else if times < 3 * GROUP {
            let fewer = self.at_most(symbol, times - 1)?;
            let all = self.symbol("at_most")?;
            self.rule(all, &[])?;
            self.rule(all, &[symbol, fewer])?;
            all
        } else {
            // Either as many groups as fit and a few more, or fewer groups and less than a group.
            let group = self.exactly(symbol, GROUP)?;
            let (full, few) = (self.exactly(group, times / GROUP)?, self.at_most(symbol, times % GROUP)?);
            let (groups, part) = (self.at_most(group, times / GROUP - 1)?, self.at_most(symbol, GROUP - 1)?);
            let (most, less) = (self.join(&[full, few])?, self.join(&[groups, part])?);
            self.select(&[most, less])?
        };
        self.at_most.insert(key, all);
        Ok(all)
    }

    /// The grammar whose texts are this symbol's.
    pub fn finish(mut self, root: Symbol) -> Result<GrammarInit> {
        self.grammar.add_rule(self.start, vec![root]).map_err(failed)?;
        Ok(GrammarInit::Internal(self.grammar, self.lexer))
    }
}
