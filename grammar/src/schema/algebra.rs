//! Schemas taken apart: each into sets of values of one type whose union it is. So is its opposite, which is what `not`, `oneOf` and
//! `if` need.
//!
//! A child's schema is not looked into here: it stays a literal, so that recursion ends and conjunctions of recursive schemas are
//! schemas like others.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::rc::Rc;

use serde_json::{Map, Value};

use super::document::{Document, Draft, Place};
use super::number::{Bound, Decimal};
use super::shape::*;
use super::{formats, pattern};
use crate::limits::{Budget, SCHEMA_CHAIN, SCHEMA_SHAPES, SCHEMA_STEPS};
use crate::{GrammarError, SchemaOptions};

type Result<T> = std::result::Result<T, GrammarError>;

/// What a literal is about.
enum Atom<'a> {
    True,
    Schema(Place<'a>),
    /// Equal to this value.
    Constant(Rc<Value>),
}

pub struct Algebra<'a> {
    document: Document<'a>,
    options: SchemaOptions,
    budget: &'a Budget,
    atoms: Vec<Atom<'a>>,
    by_address: HashMap<usize, Literal>,
    by_constant: HashMap<String, Literal>,
    known: HashMap<(Literal, Kind), Rc<Vec<Shape>>>,
    open: HashSet<(Literal, Kind)>,
    empty: HashMap<Strings, bool>,
    steps: usize,
}

/// How deep emptiness is looked for below a value.
const DEPTH: usize = 4;

impl<'a> Algebra<'a> {
    pub fn new(root: &'a Value, options: SchemaOptions, budget: &'a Budget) -> Self {
        Self {
            document: Document::new(root),
            options,
            budget,
            atoms: vec![Atom::True],
            by_address: HashMap::new(),
            by_constant: HashMap::new(),
            known: HashMap::new(),
            open: HashSet::new(),
            empty: HashMap::new(),
            steps: 0,
        }
    }

    pub fn root(&mut self) -> All {
        let place = self.document.root();
        let literal = self.literal(place);
        both(&[literal], &[])
    }

    /// The literal of a schema.
    fn literal(&mut self, place: Place<'a>) -> Literal {
        match place.value {
            Value::Bool(true) => return TRUE,
            Value::Bool(false) => return FALSE,
            Value::Object(members) if members.is_empty() => return TRUE,
            _ => {}
        }
        let address = std::ptr::from_ref(place.value) as usize;
        if let Some(&literal) = self.by_address.get(&address) {
            return literal;
        }
        let literal = (self.atoms.len() as Literal) << 1;
        self.atoms.push(Atom::Schema(place));
        self.by_address.insert(address, literal);
        literal
    }

    /// The literal of being equal to a value.
    pub fn constant(&mut self, value: &Value) -> Literal {
        let text = value.to_string();
        if let Some(&literal) = self.by_constant.get(&text) {
            return literal;
        }
        let literal = (self.atoms.len() as Literal) << 1;
        self.atoms.push(Atom::Constant(Rc::new(value.clone())));
        self.by_constant.insert(text, literal);
        literal
    }

    /// An error with its place, where it has none: the condition that has its keyword, or else the first one.
    pub fn placed(&self, error: GrammarError, all: &[Literal]) -> GrammarError {
        match error {
            GrammarError::Schema { pointer, keyword, reason, advice } if pointer.is_empty() => {
                let places: Vec<&Place<'_>> = all
                    .iter()
                    .filter_map(|&literal| match &self.atoms[(literal >> 1) as usize] {
                        Atom::Schema(place) => Some(place),
                        _ => None,
                    })
                    .collect();
                let has = |place: &&&Place<'_>| place.value.get(&keyword).is_some();
                let pointer = places.iter().find(has).or(places.first()).map_or("", |place| place.pointer.as_str());
                let pointer = if pointer.is_empty() { "/".into() } else { pointer.to_owned() };
                GrammarError::Schema { pointer, keyword, reason, advice }
            }
            error => error,
        }
    }

    fn all(&mut self, place: Place<'a>) -> All {
        let literal = self.literal(place);
        both(&[literal], &[])
    }

    fn step(&mut self) -> Result<()> {
        self.steps += 1;
        if self.steps > SCHEMA_STEPS {
            return Err(GrammarError::Limit { what: "the work that the schema takes, in steps,", limit: SCHEMA_STEPS });
        }
        if self.steps.is_multiple_of(256) { self.budget.check() } else { Ok(()) }
    }

    /// The values of a kind that meet all of these.
    pub fn shapes(&mut self, all: &[Literal], kind: Kind) -> Result<Vec<Shape>> {
        let mut shapes = vec![Shape::any(kind)];
        for &literal in all {
            let more = self.expand(literal, kind)?;
            shapes = self.product(&shapes, &more)?;
            if shapes.is_empty() {
                break;
            }
        }
        Ok(shapes)
    }

    fn product(&mut self, left: &[Shape], right: &[Shape]) -> Result<Vec<Shape>> {
        let mut shapes = Vec::new();
        for a in left {
            for b in right {
                self.step()?;
                if let Some(met) = a.meet(b).map_err(too_complex)?
                    && !self.plainly_empty(&met)?
                {
                    add(&mut shapes, met)?;
                }
            }
        }
        Ok(shapes)
    }

    fn expand(&mut self, literal: Literal, kind: Kind) -> Result<Rc<Vec<Shape>>> {
        if let Some(known) = self.known.get(&(literal, kind)) {
            return Ok(known.clone());
        }
        self.step()?;
        let (negated, atom) = (literal & 1 == 1, &self.atoms[literal as usize >> 1]);
        let shapes = match atom {
            Atom::True => {
                if negated {
                    Vec::new()
                } else {
                    vec![Shape::any(kind)]
                }
            }
            Atom::Constant(value) => {
                let value = value.clone();
                self.equal(&value, kind, negated)?
            }
            Atom::Schema(place) => {
                let place = place.clone();
                if self.open.len() >= SCHEMA_CHAIN {
                    return Err(GrammarError::Limit { what: "the chain of references", limit: SCHEMA_CHAIN });
                }
                if !self.open.insert((literal, kind)) {
                    let reason =
                        "refers to itself without a step into the document, so no finite document can satisfy it";
                    return Err(place.wrong("$ref", reason, "remove the circle"));
                }
                let shapes = if negated { self.opposite(&place, kind) } else { self.schema(&place, kind) };
                self.open.remove(&(literal, kind));
                shapes?
            }
        };
        let shapes = Rc::new(shapes);
        self.known.insert((literal, kind), shapes.clone());
        Ok(shapes)
    }

    /// The values equal to one, or all others.
    fn equal(&mut self, value: &Value, kind: Kind, negated: bool) -> Result<Vec<Shape>> {
        if kind_of(value) != kind {
            return Ok(if negated { vec![Shape::any(kind)] } else { Vec::new() });
        }
        let shape = match value {
            Value::Null => return Ok(if negated { Vec::new() } else { vec![Shape::Null] }),
            Value::Bool(value) => Shape::Boolean(if *value != negated { 2 } else { 1 }),
            Value::Number(number) => {
                let decimal = Decimal::of(number).ok_or_else(|| too_complex(TooComplex))?;
                let mut numbers = Numbers::default();
                match negated {
                    true => numbers.except = [decimal].into(),
                    false => numbers.only = Some([(decimal, number.to_string())].into()),
                }
                Shape::Number(numbers)
            }
            Value::String(text) => {
                let mut strings = Strings::default();
                match negated {
                    true => strings.except = [text.clone()].into(),
                    false => strings.only = Some([text.clone()].into()),
                }
                Shape::String(strings)
            }
            Value::Array(items) => return Ok(self.equal_array(items, negated)),
            Value::Object(members) => return Ok(self.equal_object(members, negated)),
        };
        Ok(vec![shape])
    }

    fn equal_array(&mut self, items: &[Value], negated: bool) -> Vec<Shape> {
        let literals: Vec<Literal> = items.iter().map(|item| self.constant(item)).collect();
        let length = items.len();
        if !negated {
            let first = literals.iter().map(|&literal| both(&[literal], &[])).collect();
            let shape =
                Arrays { first, rest: [FALSE].into(), shortest: length, longest: Some(length), ..Arrays::default() };
            return vec![Shape::Array(shape)];
        }
        let mut shapes = vec![Shape::Array(Arrays { shortest: length + 1, ..Arrays::default() })];
        if let Some(longest) = length.checked_sub(1) {
            shapes.push(Shape::Array(Arrays { longest: Some(longest), ..Arrays::default() }));
        }
        shapes.extend(literals.iter().enumerate().map(|(at, literal)| {
            let mut first: Vec<All> = vec![[].into(); at];
            first.push(both(&[literal ^ 1], &[]));
            Shape::Array(Arrays { first, shortest: at + 1, ..Arrays::default() })
        }));
        shapes
    }

    fn equal_object(&mut self, members: &Map<String, Value>, negated: bool) -> Vec<Shape> {
        let named: Vec<(String, Literal)> =
            members.iter().map(|(name, value)| (name.clone(), self.constant(value))).collect();
        if !negated {
            let required = members.keys().cloned().collect();
            let named = named.into_iter().map(|(name, literal)| (name, both(&[literal], &[]))).collect();
            let rule = Rule { named, patterns: Vec::new(), others: [FALSE].into() };
            return vec![Shape::Object(Objects { rules: vec![Rc::new(rule)], required, ..Objects::default() })];
        }
        let mut shapes = Vec::new();
        for (name, literal) in &named {
            shapes.push(absent(name));
            shapes.push(present(name, both(&[literal ^ 1], &[])));
        }
        let names = Names { not: members.keys().cloned().collect(), ..Names::default() };
        shapes.push(exists(names, [].into()));
        shapes
    }

    /// The values of a kind that a schema takes.
    fn schema(&mut self, place: &Place<'a>, kind: Kind) -> Result<Vec<Shape>> {
        let Some(members) = place.members() else {
            return Err(place.wrong("schema", "is neither an object nor a boolean", "write an object"));
        };
        let mut shapes = vec![Shape::any(kind)];
        for part in self.parts(place, members, kind)? {
            let more = self.part(place, &part, kind)?;
            shapes = self.product(&shapes, &more)?;
            if shapes.is_empty() {
                break;
            }
        }
        Ok(shapes)
    }

    /// The values of a kind that a schema does not take: those that one of its parts does not take.
    fn opposite(&mut self, place: &Place<'a>, kind: Kind) -> Result<Vec<Shape>> {
        let Some(members) = place.members() else {
            return Err(place.wrong("schema", "is neither an object nor a boolean", "write an object"));
        };
        let mut shapes = Vec::new();
        for part in self.parts(place, members, kind)? {
            for shape in self.opposite_part(place, &part, kind)? {
                add(&mut shapes, shape)?;
            }
        }
        Ok(shapes)
    }

    /// The parts of a schema that say something about values of a kind.
    fn parts(&mut self, place: &Place<'a>, members: &'a Map<String, Value>, kind: Kind) -> Result<Vec<Part<'a>>> {
        if place.draft.ref_stands_alone() && members.contains_key("$ref") {
            return Ok(vec![Part::Reference(self.reference(place, "$ref", &members["$ref"])?)]);
        }
        let mut parts = Vec::new();
        // First, so that its own properties lead the order.
        self.own_parts(place, members, kind, &mut parts)?;
        for (keyword, value) in members {
            if let Some(part) = self.part_of(place, members, kind, (keyword, value))? {
                parts.push(part);
            }
        }
        Ok(parts)
    }

    /// The part of one keyword.
    fn part_of(
        &mut self,
        place: &Place<'a>,
        members: &'a Map<String, Value>,
        kind: Kind,
        (keyword, value): (&'a String, &'a Value),
    ) -> Result<Option<Part<'a>>> {
        let wrong = |reason: &str| Err(place.wrong(keyword, reason, "correct it"));
        Ok(Some(match keyword.as_str() {
            "type" => Part::Types(types(place, value)?),
            "const" if place.draft >= Draft::D6 || !members.contains_key("$schema") => {
                Part::OneOfValues(vec![self.constant(value)])
            }
            "enum" => match value {
                Value::Array(values) => Part::OneOfValues(values.iter().map(|value| self.constant(value)).collect()),
                _ => return wrong("is not an array"),
            },
            "$ref" => Part::Reference(self.reference(place, "$ref", value)?),
            "$dynamicRef" | "$recursiveRef" => {
                let static_one =
                    value.as_str().is_some_and(|reference| self.document.is_static(reference) || reference == "#");
                if !static_one {
                    return Err(place.wrong(keyword, "cannot be resolved here", "use $ref"));
                }
                Part::Reference(self.reference(place, keyword, value)?)
            }
            "allOf" => Part::All(self.branches(place, keyword, value)?),
            "anyOf" => Part::Any(self.branches(place, keyword, value)?),
            "oneOf" => Part::One(self.branches(place, keyword, value)?),
            "not" => Part::All(vec![self.literal(place.below(&self.document, value, &["not"])) ^ 1]),
            "if" if place.draft >= Draft::D7 => {
                let mut branch = |name: &str| {
                    let value = members.get(name)?;
                    Some(self.literal(place.below(&self.document, value, &[name])))
                };
                let (condition, then, otherwise) = (branch("if").expect("present"), branch("then"), branch("else"));
                Part::If(condition, then.unwrap_or(TRUE), otherwise.unwrap_or(TRUE))
            }
            "dependencies" | "dependentRequired" | "dependentSchemas" if kind == Kind::Object => {
                let Value::Object(named) = value else { return wrong("is not an object") };
                let mut depends = Vec::new();
                for (name, needs) in named {
                    depends.push((name.clone(), self.needs(place, keyword, name, needs)?));
                }
                Part::Depends(depends)
            }
            "unevaluatedProperties" if kind == Kind::Object && !value.as_bool().unwrap_or(false) => {
                return self.unevaluated_members(place, value).map(Some);
            }
            "unevaluatedItems" if kind == Kind::Array && !value.as_bool().unwrap_or(false) => {
                return self.unevaluated_items(place, value).map(Some);
            }
            _ => return Ok(None),
        }))
    }

    fn needs(&mut self, place: &Place<'a>, keyword: &str, name: &str, needs: &'a Value) -> Result<Needs> {
        match needs {
            Value::Array(names) if keyword != "dependentSchemas" => {
                let names: Option<Vec<String>> = names.iter().map(|name| name.as_str().map(str::to_owned)).collect();
                names
                    .map(Needs::Names)
                    .ok_or_else(|| place.wrong(keyword, "lists something that is no name", "correct it"))
            }
            Value::String(name) if keyword == "dependencies" => Ok(Needs::Names(vec![name.clone()])),
            Value::Object(_) | Value::Bool(_) if keyword != "dependentRequired" => {
                Ok(Needs::Schema(self.literal(place.below(&self.document, needs, &[keyword, name]))))
            }
            _ => Err(place.wrong(keyword, "has a member of a wrong type", "correct it")),
        }
    }

    fn reference(&mut self, place: &Place<'a>, keyword: &str, value: &Value) -> Result<Literal> {
        let Some(reference) = value.as_str() else {
            return Err(place.wrong(keyword, "is not a string", "write a reference like #/$defs/NAME"));
        };
        let target = self.document.resolve(place, reference)?;
        Ok(self.literal(target))
    }

    fn branches(&mut self, place: &Place<'a>, keyword: &str, value: &'a Value) -> Result<Vec<Literal>> {
        let Value::Array(items) = value else {
            return Err(place.wrong(keyword, "is not an array", "write an array of schemas"));
        };
        let below = |(at, item): (usize, &'a Value)| place.below(&self.document, item, &[keyword, &at.to_string()]);
        let places: Vec<Place<'a>> = items.iter().enumerate().map(below).collect();
        Ok(places.into_iter().map(|place| self.literal(place)).collect())
    }

    fn part(&mut self, place: &Place<'a>, part: &Part<'a>, kind: Kind) -> Result<Vec<Shape>> {
        match part {
            Part::Types(types) => Ok(of_types(types, kind)),
            Part::OneOfValues(literals) => self.one_of_values(literals, kind),
            Part::Reference(literal) => Ok(self.expand(*literal, kind)?.to_vec()),
            Part::All(literals) => self.shapes(literals, kind),
            Part::Any(literals) => {
                let mut shapes = Vec::new();
                for &literal in literals {
                    for shape in self.expand(literal, kind)?.iter() {
                        add(&mut shapes, shape.clone())?;
                    }
                }
                Ok(shapes)
            }
            Part::One(literals) => self.exactly_one(place, literals, kind),
            Part::If(condition, then, otherwise) => {
                let mut shapes = self.shapes(&[*condition, *then], kind)?;
                for shape in self.shapes(&[condition ^ 1, *otherwise], kind)? {
                    add(&mut shapes, shape)?;
                }
                Ok(shapes)
            }
            Part::Depends(depends) => self.depends(depends),
            Part::Own(shape, _) => Ok(vec![shape.clone()]),
        }
    }

    fn opposite_part(&mut self, place: &Place<'a>, part: &Part<'a>, kind: Kind) -> Result<Vec<Shape>> {
        match part {
            Part::Types(types) => Ok(of_types(&types.opposite(), kind)),
            Part::OneOfValues(literals) => {
                let opposites: Vec<Literal> = literals.iter().map(|literal| literal ^ 1).collect();
                self.shapes(&opposites, kind)
            }
            Part::Reference(literal) => Ok(self.expand(literal ^ 1, kind)?.to_vec()),
            Part::All(literals) => {
                let opposites = literals.iter().map(|literal| literal ^ 1).collect();
                self.part(place, &Part::Any(opposites), kind)
            }
            Part::Any(literals) => {
                let opposites: Vec<Literal> = literals.iter().map(|literal| literal ^ 1).collect();
                self.shapes(&opposites, kind)
            }
            Part::One(literals) => {
                let opposites: Vec<Literal> = literals.iter().map(|literal| literal ^ 1).collect();
                let mut shapes = self.shapes(&opposites, kind)?;
                for (at, &one) in literals.iter().enumerate() {
                    for &other in &literals[at + 1..] {
                        for shape in self.shapes(&[one, other], kind)? {
                            add(&mut shapes, shape)?;
                        }
                    }
                }
                Ok(shapes)
            }
            Part::If(condition, then, otherwise) => {
                let mut shapes = self.shapes(&[*condition, then ^ 1], kind)?;
                for shape in self.shapes(&[condition ^ 1, otherwise ^ 1], kind)? {
                    add(&mut shapes, shape)?;
                }
                Ok(shapes)
            }
            Part::Depends(depends) => {
                let mut shapes = Vec::new();
                for (name, needs) in depends {
                    let with = [present(name, [].into())];
                    let failed = match needs {
                        Needs::Names(names) => names.iter().map(|name| absent(name)).collect(),
                        Needs::Schema(literal) => self.expand(literal ^ 1, kind)?.to_vec(),
                    };
                    for shape in self.product(&with, &failed)? {
                        add(&mut shapes, shape)?;
                    }
                }
                Ok(shapes)
            }
            Part::Own(shape, keyword) => self.opposite_own(place, shape, keyword),
        }
    }

    /// One of many values: scalars are one set.
    fn one_of_values(&mut self, literals: &[Literal], kind: Kind) -> Result<Vec<Shape>> {
        let (mut numbers, mut strings, mut booleans) = (BTreeMap::new(), BTreeSet::new(), 0);
        let mut shapes = Vec::new();
        for &literal in literals {
            for shape in self.expand(literal, kind)?.iter() {
                match shape {
                    Shape::Boolean(one) => booleans |= one,
                    Shape::Number(Numbers { only: Some(only), .. }) => numbers.extend(only.clone()),
                    Shape::String(Strings { only: Some(only), .. }) => strings.extend(only.iter().cloned()),
                    other => add(&mut shapes, other.clone())?,
                }
            }
        }
        if booleans != 0 {
            shapes.push(Shape::Boolean(booleans));
        }
        if !numbers.is_empty() {
            shapes.push(Shape::Number(Numbers { only: Some(numbers), ..Numbers::default() }));
        }
        if !strings.is_empty() {
            shapes.push(Shape::String(Strings { only: Some(strings), ..Strings::default() }));
        }
        Ok(shapes)
    }

    /// The values that exactly one of the schemas takes. Where two are shown to have no value in common there is nothing to exclude.
    fn exactly_one(&mut self, place: &Place<'a>, literals: &[Literal], kind: Kind) -> Result<Vec<Shape>> {
        let mut options = Vec::new();
        for &literal in literals {
            options.push(self.expand(literal, kind)?);
        }
        let mut shapes = Vec::new();
        for (at, option) in options.iter().enumerate() {
            for shape in option.iter() {
                let mut met = vec![shape.clone()];
                for (other, overlap) in options.iter().enumerate().filter(|(other, _)| *other != at) {
                    if self.apart(shape, overlap)? {
                        continue;
                    }
                    let outside =
                        self.expand(literals[other] ^ 1, kind).map_err(|e| of_one_of(place, &e, at, other))?;
                    met = self.product(&met, &outside)?;
                }
                for shape in met {
                    add(&mut shapes, shape)?;
                }
            }
        }
        Ok(shapes)
    }

    /// Whether a set has surely no value in common with any of these.
    fn apart(&mut self, shape: &Shape, others: &[Shape]) -> Result<bool> {
        for other in others {
            self.step()?;
            if let Some(met) = shape.meet(other).map_err(too_complex)?
                && !self.surely_empty(&met, DEPTH)?
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn depends(&mut self, depends: &[(String, Needs)]) -> Result<Vec<Shape>> {
        let mut shapes = vec![Shape::any(Kind::Object)];
        for (name, needs) in depends {
            let with = present(name, [].into());
            let mut options = match needs {
                Needs::Names(names) => {
                    let mut required = vec![name.clone()];
                    required.extend(names.iter().filter(|needed| *needed != name).cloned());
                    vec![Shape::Object(Objects { required, ..Objects::default() })]
                }
                Needs::Schema(literal) => {
                    let needed = self.expand(*literal, Kind::Object)?;
                    self.product(&[with], &needed)?
                }
            };
            options.push(absent(name));
            shapes = self.product(&shapes, &options)?;
        }
        Ok(shapes)
    }

    /// Whether there is surely no value that meets all of these.
    pub fn surely_never(&mut self, all: &[Literal], depth: usize) -> Result<bool> {
        if all.is_empty() {
            return Ok(false);
        }
        if all[0] == FALSE {
            return Ok(true);
        }
        if depth == 0 || all.iter().any(|&literal| Kind::ALL.iter().any(|&kind| self.open.contains(&(literal, kind)))) {
            return Ok(false);
        }
        for kind in Kind::ALL {
            for shape in self.shapes(all, kind)? {
                if !self.surely_empty(&shape, depth - 1)? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Whether a set has surely no value.
    pub fn surely_empty(&mut self, shape: &Shape, depth: usize) -> Result<bool> {
        self.step()?;
        if self.plainly_empty(shape)? {
            return Ok(true);
        }
        match shape {
            Shape::Array(arrays) => {
                for at in 0..arrays.shortest.min(arrays.first.len() + 1) {
                    if self.surely_never(&arrays.item(at).clone(), depth)? {
                        return Ok(true);
                    }
                }
            }
            Shape::Object(objects) => {
                for name in &objects.required {
                    let value = objects.value(name).map_err(too_complex)?;
                    if self.surely_never(&value, depth)? {
                        return Ok(true);
                    }
                }
            }
            _ => {}
        }
        Ok(false)
    }

    /// Whether a set has no value, as far as that shows without its children.
    fn plainly_empty(&mut self, shape: &Shape) -> Result<bool> {
        match shape {
            Shape::String(strings) => self.no_string(strings),
            Shape::Number(numbers) => Ok(numbers.has_any() == Some(false)),
            Shape::Object(objects) => {
                for name in &objects.required {
                    if never(&objects.value(name).map_err(too_complex)?) {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            _ => Ok(false),
        }
    }

    /// Whether a set of strings is empty. What cannot be told in time counts as not empty.
    pub fn no_string(&mut self, strings: &Strings) -> Result<bool> {
        if strings.only.is_some() || strings.tests.is_empty() {
            return Ok(false);
        }
        if strings.tests.len() == 1 && strings.shortest == 0 && strings.longest.is_none() && strings.except.is_empty() {
            return Ok(false);
        }
        if let Some(&known) = self.empty.get(strings) {
            return Ok(known);
        }
        self.budget.check()?;
        let empty = pattern::is_empty(&strings.set()).unwrap_or(false);
        self.empty.insert(strings.clone(), empty);
        Ok(empty)
    }

    /// Whether a name is in a set of names.
    pub fn named(&mut self, names: &Names, name: &str) -> Result<bool> {
        if names.not.contains(name) {
            return Ok(false);
        }
        let tests = Strings { tests: names.tests.clone(), ..Strings::default() };
        Ok(tests.has(name).ok_or_else(|| too_complex(TooComplex))? && self.meets(&names.conditions, name)?)
    }

    /// Whether a string meets conditions.
    pub fn meets(&mut self, conditions: &[Literal], text: &str) -> Result<bool> {
        if conditions.is_empty() {
            return Ok(true);
        }
        for shape in self.shapes(conditions, Kind::String)? {
            if let Shape::String(strings) = shape
                && strings.has(text).ok_or_else(|| too_complex(TooComplex))?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The conditions that a schema's own keywords state on values of a kind.
    fn own_parts(
        &mut self,
        place: &Place<'a>,
        members: &'a Map<String, Value>,
        kind: Kind,
        parts: &mut Vec<Part<'a>>,
    ) -> Result<()> {
        match kind {
            Kind::Null | Kind::Boolean => Ok(()),
            Kind::Number => numbers(place, members, parts),
            Kind::String => self.strings(place, members, parts),
            Kind::Array => self.arrays(place, members, parts),
            Kind::Object => self.objects(place, members, parts),
        }
    }

    fn strings(&mut self, place: &Place<'a>, members: &'a Map<String, Value>, parts: &mut Vec<Part<'a>>) -> Result<()> {
        for (keyword, value) in members {
            let mut strings = Strings::default();
            match keyword.as_str() {
                "minLength" => strings.shortest = count(place, keyword, value)?,
                "maxLength" => strings.longest = Some(count(place, keyword, value)?),
                "pattern" => {
                    let text =
                        value.as_str().ok_or_else(|| place.wrong(keyword, "is not a string", "write a string"))?;
                    tested(place, keyword, text)?;
                    strings.tests = [(Test::Pattern(text.into()), true)].into();
                }
                "format" => {
                    let known = value.as_str().and_then(formats::known).filter(|_| !self.options.annotate_formats);
                    let Some((name, _)) = known else { continue };
                    strings.tests = [(Test::Format(name), true)].into();
                }
                _ => continue,
            }
            parts.push(Part::Own(Shape::String(strings), keyword));
        }
        Ok(())
    }

    fn arrays(&mut self, place: &Place<'a>, members: &'a Map<String, Value>, parts: &mut Vec<Part<'a>>) -> Result<()> {
        for (keyword, value) in members {
            let mut arrays = Arrays::default();
            match keyword.as_str() {
                "minItems" => arrays.shortest = count(place, keyword, value)?,
                "maxItems" => arrays.longest = Some(count(place, keyword, value)?),
                "uniqueItems" => match value.as_bool() {
                    Some(unique) => arrays.unique = unique,
                    None => return Err(place.wrong(keyword, "is not a boolean", "write true or false")),
                },
                "contains" if place.draft >= Draft::D6 => {
                    let bound = |name: &str| members.get(name).map(|value| count(place, name, value)).transpose();
                    let counted = place.draft >= Draft::D2019;
                    let least = if counted { bound("minContains")?.unwrap_or(1) } else { 1 };
                    let most = if counted { bound("maxContains")? } else { None };
                    let literal = self.literal(place.below(&self.document, value, &[keyword]));
                    if least > 0 || most.is_some() {
                        arrays.contains.push(Contains { from: 0, literal, least, most });
                    }
                }
                "prefixItems" | "items" | "additionalItems" => continue,
                _ => continue,
            }
            parts.push(Part::Own(Shape::Array(arrays), keyword));
        }
        let (first, rest) = self.items(place, members)?;
        if !first.is_empty() || !rest.is_empty() {
            let longest = never(&rest).then_some(first.len());
            parts.push(Part::Own(Shape::Array(Arrays { first, rest, longest, ..Arrays::default() }), "items"));
        }
        Ok(())
    }

    /// The conditions on the first items and on the others.
    fn items(&mut self, place: &Place<'a>, members: &'a Map<String, Value>) -> Result<(Vec<All>, All)> {
        let (first, rest) = match (members.get("items"), members.get("prefixItems")) {
            (Some(Value::Array(first)), _) => {
                (Some(("items", first)), ("additionalItems", members.get("additionalItems")))
            }
            (rest, Some(Value::Array(first))) if place.draft >= Draft::D2020 => {
                (Some(("prefixItems", first)), ("items", rest))
            }
            (_, Some(other)) if place.draft >= Draft::D2020 && !other.is_array() => {
                return Err(place.wrong("prefixItems", "is not an array", "write an array of schemas"));
            }
            (rest, _) => (None, ("items", rest)),
        };
        let mut items = Vec::new();
        if let Some((keyword, first)) = first {
            for (at, item) in first.iter().enumerate() {
                items.push(self.all(place.below(&self.document, item, &[keyword, &at.to_string()])));
            }
        }
        let rest = match rest {
            (keyword, Some(value)) => self.all(place.below(&self.document, value, &[keyword])),
            (_, None) => [].into(),
        };
        Ok((items, rest))
    }

    fn objects(&mut self, place: &Place<'a>, members: &'a Map<String, Value>, parts: &mut Vec<Part<'a>>) -> Result<()> {
        if let Some(rule) = self.rule(place, members)? {
            parts.push(Part::Own(
                Shape::Object(Objects { rules: vec![Rc::new(rule)], ..Objects::default() }),
                "properties",
            ));
        }
        for (keyword, value) in members {
            let mut objects = Objects::default();
            match keyword.as_str() {
                "required" => {
                    let names = value.as_array().and_then(|names| {
                        names.iter().map(|name| name.as_str().map(str::to_owned)).collect::<Option<Vec<String>>>()
                    });
                    let Some(names) = names else {
                        return Err(place.wrong(
                            keyword,
                            "is not an array of strings",
                            "list the names of required properties",
                        ));
                    };
                    let mut seen = HashSet::new();
                    objects.required = names.into_iter().filter(|name| seen.insert(name.clone())).collect();
                }
                "minProperties" => objects.fewest = count(place, keyword, value)?,
                "maxProperties" => objects.most = Some(count(place, keyword, value)?),
                "propertyNames" if place.draft >= Draft::D6 => {
                    let literal = self.literal(place.below(&self.document, value, &[keyword]));
                    objects.names = both(&[literal], &[]).to_vec();
                }
                _ => continue,
            }
            parts.push(Part::Own(Shape::Object(objects), keyword));
        }
        Ok(())
    }

    fn rule(&mut self, place: &Place<'a>, members: &'a Map<String, Value>) -> Result<Option<Rule>> {
        let keywords = ["properties", "patternProperties", "additionalProperties"];
        if !keywords.iter().any(|keyword| members.contains_key(*keyword)) {
            return Ok(None);
        }
        let map = |keyword: &'static str| match members.get(keyword) {
            None => Ok(None),
            Some(Value::Object(named)) => Ok(Some(named)),
            Some(_) => Err(place.wrong(keyword, "is not an object", "write an object of schemas")),
        };
        let mut rule = Rule { named: Vec::new(), patterns: Vec::new(), others: [].into() };
        for (name, value) in map("properties")?.into_iter().flatten() {
            rule.named.push((name.clone(), self.all(place.below(&self.document, value, &["properties", name]))));
        }
        for (text, value) in map("patternProperties")?.into_iter().flatten() {
            tested(place, "patternProperties", text)?;
            rule.patterns.push((
                text.as_str().into(),
                self.all(place.below(&self.document, value, &["patternProperties", text])),
            ));
        }
        if let Some(value) = members.get("additionalProperties") {
            rule.others = self.all(place.below(&self.document, value, &["additionalProperties"]));
        }
        Ok(Some(rule))
    }

    /// The values that a part's own condition does not take.
    fn opposite_own(&mut self, place: &Place<'a>, shape: &Shape, keyword: &str) -> Result<Vec<Shape>> {
        Ok(match shape {
            Shape::Number(numbers) => opposite_numbers(numbers),
            Shape::String(strings) => opposite_strings(strings),
            Shape::Array(arrays) => opposite_arrays(arrays).ok_or_else(|| {
                place.wrong(
                    keyword,
                    "cannot be turned into its opposite here (under not, oneOf or if)",
                    "write the schema without that",
                )
            })?,
            Shape::Object(objects) => opposite_objects(objects),
            Shape::Null | Shape::Boolean(_) => Vec::new(),
        })
    }

    /// Members that nothing beside the keyword has spoken of meet its schema.
    fn unevaluated_members(&mut self, place: &Place<'a>, value: &'a Value) -> Result<Part<'a>> {
        let mut rule = Rule { named: Vec::new(), patterns: Vec::new(), others: [].into() };
        let all = self.evaluated_members(place, &mut rule, DEPTH * 2)?;
        if !all {
            rule.others = self.all(place.below(&self.document, value, &["unevaluatedProperties"]));
        }
        Ok(Part::Own(
            Shape::Object(Objects { rules: vec![Rc::new(rule)], ..Objects::default() }),
            "unevaluatedProperties",
        ))
    }

    /// Collects the names that a schema speaks of; true if it speaks of all.
    fn evaluated_members(&mut self, place: &Place<'a>, rule: &mut Rule, depth: usize) -> Result<bool> {
        let Some(members) = place.members() else { return Ok(false) };
        let inner = depth < DEPTH * 2;
        let mut all =
            members.contains_key("additionalProperties") || (inner && members.contains_key("unevaluatedProperties"));
        for name in members.get("properties").and_then(Value::as_object).into_iter().flat_map(|named| named.keys()) {
            rule.named.push((name.clone(), [].into()));
        }
        for text in
            members.get("patternProperties").and_then(Value::as_object).into_iter().flat_map(|named| named.keys())
        {
            tested(place, "patternProperties", text)?;
            rule.patterns.push((text.as_str().into(), [].into()));
        }
        for inner in self.applied(place, members, "unevaluatedProperties", depth)? {
            all |= self.evaluated_members(&inner, rule, depth - 1)?;
        }
        Ok(all)
    }

    fn unevaluated_items(&mut self, place: &Place<'a>, value: &'a Value) -> Result<Part<'a>> {
        let rest = self.all(place.below(&self.document, value, &["unevaluatedItems"]));
        let evaluated = self.evaluated_items(place, DEPTH * 2)?;
        let arrays = match evaluated {
            None => Arrays::default(),
            Some(count) => {
                let longest = never(&rest).then_some(count);
                Arrays { first: vec![[].into(); count], rest, longest, ..Arrays::default() }
            }
        };
        Ok(Part::Own(Shape::Array(arrays), "unevaluatedItems"))
    }

    /// How many first items a schema speaks of; none if it speaks of all.
    fn evaluated_items(&mut self, place: &Place<'a>, depth: usize) -> Result<Option<usize>> {
        let Some(members) = place.members() else { return Ok(Some(0)) };
        if members.contains_key("contains") {
            return Err(place.wrong("unevaluatedItems", "cannot be enforced beside contains", "use items"));
        }
        let mut count = members.get("prefixItems").and_then(Value::as_array).map_or(0, Vec::len);
        match members.get("items") {
            Some(Value::Array(first)) if place.draft < Draft::D2020 => {
                count = first.len();
                if members.contains_key("additionalItems") {
                    return Ok(None);
                }
            }
            Some(_) => return Ok(None),
            None => {}
        }
        if depth < DEPTH * 2 && members.contains_key("unevaluatedItems") {
            return Ok(None);
        }
        for inner in self.applied(place, members, "unevaluatedItems", depth)? {
            match self.evaluated_items(&inner, depth - 1)? {
                None => return Ok(None),
                Some(more) => count = count.max(more),
            }
        }
        Ok(Some(count))
    }

    /// The schemas that apply to the same value in every case.
    fn applied(
        &mut self,
        place: &Place<'a>,
        members: &'a Map<String, Value>,
        keyword: &str,
        depth: usize,
    ) -> Result<Vec<Place<'a>>> {
        let conditional = ["anyOf", "oneOf", "if", "dependentSchemas", "dependencies", "$dynamicRef", "$recursiveRef"];
        if let Some(beside) = conditional.iter().find(|beside| members.contains_key(**beside)) {
            return Err(place.wrong(
                keyword,
                &format!("cannot be enforced beside {beside}"),
                "use additionalProperties or items",
            ));
        }
        if depth == 0 {
            return Err(place.wrong(
                keyword,
                "cannot be enforced over so many references",
                "use additionalProperties or items",
            ));
        }
        let mut inner = Vec::new();
        for (at, value) in members.get("allOf").and_then(Value::as_array).into_iter().flatten().enumerate() {
            inner.push(place.below(&self.document, value, &["allOf", &at.to_string()]));
        }
        if let Some(reference) = members.get("$ref").and_then(Value::as_str) {
            inner.push(self.document.resolve(place, reference)?);
        }
        Ok(inner)
    }
}

/// A part of a schema, all of which a value has to meet.
#[allow(clippy::large_enum_variant)] // Few exist at a time.
enum Part<'a> {
    Types(Types),
    OneOfValues(Vec<Literal>),
    Reference(Literal),
    All(Vec<Literal>),
    Any(Vec<Literal>),
    One(Vec<Literal>),
    If(Literal, Literal, Literal),
    Depends(Vec<(String, Needs)>),
    /// A condition of its own, and the keyword that it comes from.
    Own(Shape, &'a str),
}

/// What the presence of a member asks for.
enum Needs {
    Names(Vec<String>),
    Schema(Literal),
}

struct Types {
    kinds: BTreeSet<Kind>,
    /// Whether numbers of the kinds are all numbers, integers, or what is no integer.
    integer: Option<bool>,
}

impl Types {
    fn opposite(&self) -> Self {
        let kinds = Kind::ALL.into_iter();
        match self.integer {
            Some(integer) => Self {
                kinds: kinds.filter(|kind| !self.kinds.contains(kind) || *kind == Kind::Number).collect(),
                integer: Some(!integer),
            },
            None => Self { kinds: kinds.filter(|kind| !self.kinds.contains(kind)).collect(), integer: None },
        }
    }
}

fn types(place: &Place<'_>, value: &Value) -> Result<Types> {
    let names: Vec<&Value> = match value {
        Value::Array(names) => names.iter().collect(),
        name => vec![name],
    };
    let mut types = Types { kinds: BTreeSet::new(), integer: None };
    let (mut integers, mut all_numbers) = (false, false);
    for name in names {
        let name = name.as_str().unwrap_or_default();
        if name == "integer" {
            integers = true;
            types.kinds.insert(Kind::Number);
        } else if let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.name() == name) {
            all_numbers |= kind == Kind::Number;
            types.kinds.insert(kind);
        } else {
            let advice = "the types are string, number, integer, boolean, object, array and null";
            return Err(place.wrong("type", &format!("'{name}' is unknown"), advice));
        }
    }
    types.integer = (integers && !all_numbers).then_some(true);
    Ok(types)
}

fn of_types(types: &Types, kind: Kind) -> Vec<Shape> {
    if !types.kinds.contains(&kind) {
        return Vec::new();
    }
    match (kind, types.integer) {
        (Kind::Number, Some(_)) => vec![Shape::Number(Numbers { integer: types.integer, ..Numbers::default() })],
        _ => vec![Shape::any(kind)],
    }
}

fn kind_of(value: &Value) -> Kind {
    match value {
        Value::Null => Kind::Null,
        Value::Bool(_) => Kind::Boolean,
        Value::Number(_) => Kind::Number,
        Value::String(_) => Kind::String,
        Value::Array(_) => Kind::Array,
        Value::Object(_) => Kind::Object,
    }
}

fn add(shapes: &mut Vec<Shape>, shape: Shape) -> Result<()> {
    if shapes.contains(&shape) {
        return Ok(());
    }
    if shapes.len() >= SCHEMA_SHAPES {
        return Err(GrammarError::Limit { what: "the number of cases of one schema", limit: SCHEMA_SHAPES });
    }
    shapes.push(shape);
    Ok(())
}

fn too_complex(_: TooComplex) -> GrammarError {
    GrammarError::Source { kind: "schema", reason: "a pattern or number in it is too large to compute with".into() }
}

/// The options of a oneOf overlap in a way that cannot be excluded.
fn of_one_of(place: &Place<'_>, error: &GrammarError, one: usize, other: usize) -> GrammarError {
    let reason = format!("has options {one} and {other} that may both be valid, which cannot be excluded ({error})");
    place.wrong("oneOf", &reason, "use anyOf, or give each option a required property with a const of its own")
}

fn present(name: &str, value: All) -> Shape {
    Shape::Object(Objects {
        rules: vec![Rule::one(name, value)],
        required: vec![name.to_owned()],
        ..Objects::default()
    })
}

fn absent(name: &str) -> Shape {
    Shape::Object(Objects { rules: vec![Rule::one(name, [FALSE].into())], ..Objects::default() })
}

fn exists(names: Names, value: All) -> Shape {
    Shape::Object(Objects { exists: vec![Exists { names, value }], ..Objects::default() })
}

/// A keyword's number of things.
fn count(place: &Place<'_>, keyword: &str, value: &Value) -> Result<usize> {
    let whole = value.as_f64().filter(|value| value.fract() == 0.0 && *value >= 0.0 && *value <= 1e15);
    whole.map(|value| value as usize).ok_or_else(|| place.wrong(keyword, "is not a whole number from 0", "correct it"))
}

/// Checks that a pattern can be enforced.
fn tested(place: &Place<'_>, keyword: &str, text: &str) -> Result<()> {
    if text.len() > crate::limits::REGEX_BYTES {
        return Err(GrammarError::Limit { what: "a pattern, in bytes,", limit: crate::limits::REGEX_BYTES });
    }
    match pattern::search(text) {
        Ok(_) => Ok(()),
        Err(reason) => Err(place.wrong(keyword, &format!("'{text}' {reason}"), "write a pattern without it")),
    }
}

fn numbers<'a>(place: &Place<'a>, members: &'a Map<String, Value>, parts: &mut Vec<Part<'a>>) -> Result<()> {
    let decimal = |keyword: &str, value: &Value| {
        let decimal = value.as_number().and_then(Decimal::of);
        decimal.ok_or_else(|| place.wrong(keyword, "is not a number that can be used", "correct it"))
    };
    let excluded = |keyword: &str| members.get(keyword).and_then(Value::as_bool).unwrap_or(false);
    for (keyword, value) in members {
        let mut numbers = Numbers::default();
        match keyword.as_str() {
            "minimum" => {
                numbers.low = Some(Bound { at: decimal(keyword, value)?, inclusive: !excluded("exclusiveMinimum") });
            }
            "maximum" => {
                numbers.high = Some(Bound { at: decimal(keyword, value)?, inclusive: !excluded("exclusiveMaximum") });
            }
            // In draft 4 these say how the other two are meant.
            "exclusiveMinimum" | "exclusiveMaximum" if value.is_boolean() => continue,
            "exclusiveMinimum" => numbers.low = Some(Bound { at: decimal(keyword, value)?, inclusive: false }),
            "exclusiveMaximum" => numbers.high = Some(Bound { at: decimal(keyword, value)?, inclusive: false }),
            "multipleOf" => {
                let of = decimal(keyword, value)?;
                if of.multiples().is_none() || of.is_negative() {
                    return Err(place.wrong(
                        keyword,
                        "is no positive number of few digits",
                        "use a number below 4294967296",
                    ));
                }
                numbers.multiples = [of].into();
            }
            _ => continue,
        }
        parts.push(Part::Own(Shape::Number(numbers), keyword));
    }
    Ok(())
}

fn opposite_numbers(numbers: &Numbers) -> Vec<Shape> {
    let turned = |bound: &Bound| Some(Bound { at: bound.at.clone(), inclusive: !bound.inclusive });
    let mut shapes = Vec::new();
    if let Some(low) = &numbers.low {
        shapes.push(Shape::Number(Numbers { high: turned(low), ..Numbers::default() }));
    }
    if let Some(high) = &numbers.high {
        shapes.push(Shape::Number(Numbers { low: turned(high), ..Numbers::default() }));
    }
    for of in &numbers.multiples {
        shapes.push(Shape::Number(Numbers { not_multiples: [of.clone()].into(), ..Numbers::default() }));
    }
    shapes
}

fn opposite_strings(strings: &Strings) -> Vec<Shape> {
    let mut shapes = Vec::new();
    if let Some(longest) = strings.shortest.checked_sub(1) {
        shapes.push(Shape::String(Strings { longest: Some(longest), ..Strings::default() }));
    }
    if let Some(longest) = strings.longest {
        shapes.push(Shape::String(Strings { shortest: longest + 1, ..Strings::default() }));
    }
    for (test, passes) in &strings.tests {
        shapes.push(Shape::String(Strings { tests: [(test.clone(), !passes)].into(), ..Strings::default() }));
    }
    shapes
}

/// None where the opposite cannot be said.
fn opposite_arrays(arrays: &Arrays) -> Option<Vec<Shape>> {
    if arrays.unique {
        return None;
    }
    let shape = |arrays: Arrays| Shape::Array(arrays);
    let mut shapes = Vec::new();
    if let Some(longest) = arrays.shortest.checked_sub(1) {
        shapes.push(shape(Arrays { longest: Some(longest), ..Arrays::default() }));
    }
    if let Some(longest) = arrays.longest {
        shapes.push(shape(Arrays { shortest: longest + 1, ..Arrays::default() }));
    }
    for (at, all) in arrays.first.iter().enumerate() {
        for literal in all.iter() {
            let mut first: Vec<All> = vec![[].into(); at];
            first.push(both(&[literal ^ 1], &[]));
            shapes.push(shape(Arrays { first, shortest: at + 1, ..Arrays::default() }));
        }
    }
    if !never(&arrays.rest) {
        for literal in arrays.rest.iter() {
            let contains = Contains { from: arrays.first.len(), literal: literal ^ 1, least: 1, most: None };
            shapes.push(shape(Arrays { contains: vec![contains], ..Arrays::default() }));
        }
    }
    for contains in &arrays.contains {
        if let Some(most) = contains.least.checked_sub(1) {
            shapes.push(shape(Arrays {
                contains: vec![Contains { least: 0, most: Some(most), ..contains.clone() }],
                ..Arrays::default()
            }));
        }
        if let Some(most) = contains.most {
            shapes.push(shape(Arrays {
                contains: vec![Contains { least: most + 1, most: None, ..contains.clone() }],
                ..Arrays::default()
            }));
        }
    }
    Some(shapes)
}

fn opposite_objects(objects: &Objects) -> Vec<Shape> {
    let mut shapes: Vec<Shape> = objects.required.iter().map(|name| absent(name)).collect();
    for rule in &objects.rules {
        for (name, value) in &rule.named {
            shapes.extend(value.iter().map(|literal| present(name, both(&[literal ^ 1], &[]))));
        }
        for (text, value) in &rule.patterns {
            let names = Names { tests: [(Test::Pattern(text.clone()), true)].into(), ..Names::default() };
            shapes.extend(value.iter().map(|literal| exists(names.clone(), both(&[literal ^ 1], &[]))));
        }
        let names = Names {
            not: rule.named.iter().map(|(name, _)| name.clone()).collect(),
            tests: rule.patterns.iter().map(|(text, _)| (Test::Pattern(text.clone()), false)).collect(),
            ..Names::default()
        };
        shapes.extend(rule.others.iter().map(|literal| exists(names.clone(), both(&[literal ^ 1], &[]))));
    }
    for literal in &objects.names {
        shapes.push(exists(Names { conditions: vec![literal ^ 1], ..Names::default() }, [].into()));
    }
    if let Some(most) = objects.fewest.checked_sub(1) {
        shapes.push(Shape::Object(Objects { most: Some(most), ..Objects::default() }));
    }
    if let Some(most) = objects.most {
        shapes.push(Shape::Object(Objects { fewest: most + 1, ..Objects::default() }));
    }
    shapes
}
