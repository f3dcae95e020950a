//! A plan as rules.

use std::collections::HashMap;

use llguidance::derivre::RegexAst;
use llguidance::earley::{ParamCond, ParamExpr, ParamRef, ParamValue};
use serde_json::Value;

use super::plan::{ArrayPlan, ObjectPlan, Plan, State, is_real, longest_real, quoted, real_states};
use crate::GrammarError;
use crate::builder::{Builder, Symbol};
use crate::source::{SchemaOptions, Whitespace};

type Result<T> = std::result::Result<T, GrammarError>;

/// Adds a plan's rules and returns the symbol of its documents.
pub fn emit(plan: &Plan, options: &SchemaOptions, builder: &mut Builder) -> Result<Symbol> {
    let space = match options.whitespace {
        Whitespace::Compact => "",
        Whitespace::OneSpace => " ?",
    };
    let comma = match options.whitespace {
        Whitespace::Compact => builder.text(",")?,
        Whitespace::OneSpace => builder.lexeme(RegexAst::Regex(", ?".into()))?,
    };
    let (open, close) = ((builder.text("[")?, builder.text("{")?), (builder.text("]")?, builder.text("}")?));
    let mut emitter = Emitter {
        plan,
        builder,
        symbols: HashMap::new(),
        todo: Vec::new(),
        comma,
        open,
        close,
        space,
        any_order: options.any_order,
    };
    let root = emitter.node(plan.root)?;
    while let Some(node) = emitter.todo.pop() {
        emitter.fill(node)?;
    }
    Ok(root)
}

struct Emitter<'a> {
    plan: &'a Plan,
    builder: &'a mut Builder,
    symbols: HashMap<usize, Symbol>,
    todo: Vec<usize>,
    comma: Symbol,
    open: (Symbol, Symbol),
    close: (Symbol, Symbol),
    /// What may stand behind a colon.
    space: &'static str,
    any_order: bool,
}

/// Most members whose presence the bits of a symbol can hold, beside the one for others.
const BITS: usize = 63;

impl Emitter<'_> {
    fn node(&mut self, node: usize) -> Result<Symbol> {
        if let Some(&symbol) = self.symbols.get(&node) {
            return Ok(symbol);
        }
        let symbol = self.builder.symbol("value")?;
        self.symbols.insert(node, symbol);
        self.todo.push(node);
        Ok(symbol)
    }

    fn fill(&mut self, node: usize) -> Result<()> {
        let (symbol, plan) = (self.symbols[&node], &self.plan.nodes[node]);
        if !plan.scalars.is_empty() {
            let set =
                if plan.scalars.len() == 1 { plan.scalars[0].clone() } else { RegexAst::Or(plan.scalars.clone()) };
            let lexeme = self.builder.lexeme(set)?;
            self.builder.rule(symbol, &[lexeme])?;
        }
        for array in &plan.arrays {
            if let Some(inside) = self.array(array)? {
                self.builder.rule(symbol, &[self.open.0, inside, self.close.0])?;
            }
        }
        for object in &plan.objects {
            if is_real(object, &self.plan.real) {
                let inside = Members { object, known: HashMap::new(), emitter: self }.inside()?;
                if let Some(inside) = inside {
                    self.builder.rule(symbol, &[self.open.1, inside, self.close.1])?;
                }
            }
        }
        Ok(())
    }

    fn array(&mut self, array: &ArrayPlan) -> Result<Option<Symbol>> {
        match array {
            ArrayPlan::States(states) => self.states(states),
            ArrayPlan::Plain { first, rest, shortest, longest } => {
                let most = longest_real(first, *rest, *longest, &self.plan.real);
                if most < *shortest {
                    return Ok(None);
                }
                self.items(first, *rest, *shortest, most).map(Some)
            }
        }
    }

    /// Items: the first ones each of its own kind, then any number of another.
    fn items(&mut self, first: &[usize], rest: usize, shortest: usize, longest: usize) -> Result<Symbol> {
        let count = first.len().min(longest);
        let bound = |done: usize| (longest != usize::MAX).then(|| longest - done);
        // What may follow the first items.
        let mut tail = self.builder.empty();
        let mut from = count;
        if longest > count {
            let item = self.node(rest)?;
            let more = self.builder.join(&[self.comma, item])?;
            from = count.max(1);
            tail = self.builder.repeat(more, shortest.saturating_sub(from), bound(from))?;
            if count == 0 {
                tail = self.builder.join(&[item, tail])?;
                from = 0;
            }
        }
        if count == 0 && longest > 0 && shortest == 0 {
            tail = self.optional(tail)?;
        }
        for at in (0..from.min(count)).rev() {
            let item = self.node(first[at])?;
            let here = if at == 0 {
                self.builder.join(&[item, tail])?
            } else {
                self.builder.join(&[self.comma, item, tail])?
            };
            tail = if at >= shortest { self.optional(here)? } else { here };
        }
        Ok(tail)
    }

    fn optional(&mut self, symbol: Symbol) -> Result<Symbol> {
        let optional = self.builder.symbol("optional")?;
        self.builder.rule(optional, &[])?;
        self.builder.rule(optional, &[symbol])?;
        Ok(optional)
    }

    fn states(&mut self, states: &[State]) -> Result<Option<Symbol>> {
        let good = real_states(states, &self.plan.real);
        if !good[0] {
            return Ok(None);
        }
        let mut symbols = Vec::new();
        for _ in states {
            symbols.push(self.builder.symbol("items")?);
        }
        let beginning = self.builder.symbol("items")?;
        for (at, state) in states.iter().enumerate().filter(|(at, _)| good[*at]) {
            for (symbol, comma) in [(symbols[at], Some(self.comma)), (beginning, None)] {
                if comma.is_none() && at != 0 {
                    continue;
                }
                if state.accepts {
                    self.builder.rule(symbol, &[])?;
                }
                for &(node, next) in state.edges.iter().filter(|(node, next)| self.plan.real[*node] && good[*next]) {
                    let item = self.node(node)?;
                    let parts: Vec<Symbol> = comma.into_iter().chain([item, symbols[next]]).collect();
                    self.builder.rule(symbol, &parts)?;
                }
            }
        }
        Ok(Some(beginning))
    }

    /// A member with this name.
    fn member(&mut self, name: &str, node: usize) -> Result<Symbol> {
        // Names are lexemes of their own: with the colon they would be longer than the same name among others, and win.
        let key = self.builder.text(&Value::from(name).to_string())?;
        let (colon, value) = (self.colon()?, self.node(node)?);
        self.builder.join(&[key, colon, value])
    }

    fn colon(&mut self) -> Result<Symbol> {
        match self.space {
            "" => self.builder.text(":"),
            space => self.builder.lexeme(RegexAst::Regex(format!(":{space}"))),
        }
    }

    /// Members with names of a set.
    fn others(&mut self, others: &[(RegexAst, usize)]) -> Result<Option<Symbol>> {
        let mut options = Vec::new();
        for (names, node) in others.iter().filter(|(_, node)| self.plan.real[*node]) {
            let key = self.builder.lexeme(quoted(names.clone()))?;
            let colon = self.colon()?;
            let value = self.node(*node)?;
            options.push(self.builder.join(&[key, colon, value])?);
        }
        if options.is_empty() { Ok(None) } else { self.builder.select(&options).map(Some) }
    }
}

/// Where one is among the members of an object: how many are behind, whether a comma is due, and how many optional ones are still
/// needed and still allowed.
type Position = (usize, bool, usize, Option<usize>);

struct Members<'e, 'a> {
    object: &'e ObjectPlan,
    known: HashMap<Position, Option<Symbol>>,
    emitter: &'e mut Emitter<'a>,
}

impl Members<'_, '_> {
    fn inside(&mut self) -> Result<Option<Symbol>> {
        let object = self.object;
        let mut symbols = Vec::new();
        for member in &object.members {
            let real = self.emitter.plan.real[member.node];
            symbols.push(if real { Some(self.emitter.member(&member.name, member.node)?) } else { None });
        }
        let others = self.emitter.others(&object.others)?;
        let last = match &object.last {
            Some(last) => Some(self.emitter.others(last)?),
            None => None,
        };
        let counted =
            object.most.is_some() && others.is_some() || last.is_some() && object.fewest + object.most.unwrap_or(0) > 0;
        if self.emitter.any_order && object.members.len() <= BITS && !counted {
            return self.in_any_order(&symbols, others, last.flatten());
        }
        self.from((0, false, object.fewest, object.most), &symbols, others, last)
    }

    /// Members in any order, none of those with names twice. Bits say which are there: first those required, then the others with
    /// names, then whether there is one without.
    fn in_any_order(
        &mut self,
        symbols: &[Option<Symbol>],
        others: Option<Symbol>,
        last: Option<Symbol>,
    ) -> Result<Option<Symbol>> {
        let object = self.object;
        let (comma, builder) = (self.emitter.comma, &mut *self.emitter.builder);
        let required = object.members.iter().filter(|member| member.required).count();
        let (list, inside) = (builder.symbol_with_bits("members")?, builder.symbol("members")?);
        let all = |range: ParamRef| ParamCond::EQ(range, ParamValue(range.mask() >> range.start()));
        let complete = if required > 0 { all(ParamRef::new(0, required as u8)) } else { ParamCond::True };
        let counts = ParamRef::new(required as u8, object.members.len() as u8 + 1);
        let enough = match object.fewest {
            0 => complete.clone(),
            fewest => both(complete.clone(), ParamCond::BitCountGE(counts, fewest.min(64) as u8)),
        };
        let with = |symbol: Symbol| (symbol, ParamExpr::Null);
        if object.last.is_none() {
            builder.rule_if(list, enough, Vec::new())?;
            if required == 0 && object.fewest == 0 {
                builder.rule(inside, &[])?;
            }
        }
        if let Some(last) = last {
            builder.rule_if(list, complete, vec![with(comma), with(last)])?;
            if required == 0 {
                builder.rule(inside, &[last])?;
            }
        }
        let (mut next_required, mut next_optional) = (0, required);
        for (member, symbol) in object.members.iter().zip(symbols) {
            let next = if member.required { &mut next_required } else { &mut next_optional };
            let bit = std::mem::replace(next, *next + 1) as u8;
            let Some(symbol) = *symbol else { continue };
            let mut free = ParamCond::EQ(ParamRef::single_bit(bit), ParamValue(0));
            if let Some(most) = object.most.filter(|_| !member.required) {
                free = both(free, ParamCond::BitCountLT(counts, most.min(64) as u8));
            }
            if member.required || object.most != Some(0) {
                let set = ParamValue(1 << bit);
                builder.rule_if(list, free, vec![with(comma), with(symbol), (list, ParamExpr::BitOr(set))])?;
                builder.rule_if(inside, ParamCond::True, vec![with(symbol), (list, ParamExpr::Const(set))])?;
            }
        }
        if let Some(others) = others {
            let set = ParamValue(1 << object.members.len());
            builder.rule_if(list, ParamCond::True, vec![with(comma), with(others), (list, ParamExpr::BitOr(set))])?;
            builder.rule_if(inside, ParamCond::True, vec![with(others), (list, ParamExpr::Const(set))])?;
        }
        Ok(Some(inside))
    }

    /// What may stand from a position on; none if nothing can.
    fn from(
        &mut self,
        position: Position,
        symbols: &[Option<Symbol>],
        others: Option<Symbol>,
        last: Option<Option<Symbol>>,
    ) -> Result<Option<Symbol>> {
        if let Some(&known) = self.known.get(&position) {
            return Ok(known);
        }
        let (at, due, needed, room) = position;
        let found = match symbols.get(at) {
            None => self.tail(due, needed, room, others, last)?,
            Some(&symbol) => {
                let required = self.object.members[at].required;
                let mut options = Vec::new();
                let (taken, left) = if required {
                    (needed, room)
                } else {
                    (needed.saturating_sub(1), room.map(|room| room.saturating_sub(1)))
                };
                if let Some(symbol) = symbol
                    && (required || room != Some(0))
                    && let Some(after) = self.from((at + 1, true, taken, left), symbols, others, last)?
                {
                    let comma = if due { self.emitter.comma } else { self.emitter.builder.empty() };
                    options.push(self.emitter.builder.join(&[comma, symbol, after])?);
                }
                if !required {
                    options.extend(self.from((at + 1, due, needed, room), symbols, others, last)?);
                }
                if options.is_empty() { None } else { Some(self.emitter.builder.select(&options)?) }
            }
        };
        self.known.insert(position, found);
        Ok(found)
    }

    /// What may stand behind the members with names.
    fn tail(
        &mut self,
        due: bool,
        needed: usize,
        room: Option<usize>,
        others: Option<Symbol>,
        last: Option<Option<Symbol>>,
    ) -> Result<Option<Symbol>> {
        let (comma, empty) = (self.emitter.comma, self.emitter.builder.empty());
        let builder = &mut *self.emitter.builder;
        if let Some(last) = last {
            let Some(last) = last.filter(|_| room != Some(0) && needed <= 1) else { return Ok(None) };
            let before = match others {
                Some(others) => {
                    let other = builder.join(&[others, comma])?;
                    builder.repeat(other, 0, room.map(|room| room - 1))?
                }
                None => empty,
            };
            let comma = if due { comma } else { empty };
            return builder.join(&[comma, before, last]).map(Some);
        }
        let Some(others) = others.filter(|_| room != Some(0)) else {
            return Ok((needed == 0).then_some(empty));
        };
        if needed > 1 {
            return Ok(None);
        }
        let more = builder.join(&[comma, others])?;
        if due {
            return builder.repeat(more, needed, room).map(Some);
        }
        let rest = builder.repeat(more, 0, room.map(|room| room - 1))?;
        let all = builder.join(&[others, rest])?;
        if needed == 0 { self.emitter.optional(all).map(Some) } else { Ok(Some(all)) }
    }
}

fn both(left: ParamCond, right: ParamCond) -> ParamCond {
    if left.is_true() { right } else { ParamCond::And(Box::new(left), Box::new(right)) }
}
