//! A schema as a graph: each node is a conjunction of schemas that some place of a document meets, and knows what its values look
//! like. Nodes that no finite value meets are found here and left out.

use std::collections::{BTreeSet, HashMap};

use llguidance::derivre::{JsonQuoteOptions, RegexAst};
use serde_json::Value;

use super::algebra::Algebra;
use super::pattern;
use super::shape::*;
use crate::GrammarError;
use crate::limits::{ARRAY_STATES, NAME_PATTERNS, OPTIONAL_IN_ORDER, SCHEMA_NODES, SCHEMA_SHAPES};

type Result<T> = std::result::Result<T, GrammarError>;

/// What the values of a node look like.
#[derive(Default)]
pub struct Node {
    /// The texts of null, booleans, numbers and strings.
    pub scalars: Vec<RegexAst>,
    pub arrays: Vec<ArrayPlan>,
    pub objects: Vec<ObjectPlan>,
}

pub enum ArrayPlan {
    Plain {
        first: Vec<usize>,
        rest: usize,
        shortest: usize,
        longest: Option<usize>,
    },
    /// An automaton over items; state 0 is the beginning.
    States(Vec<State>),
}

#[derive(Default, Clone)]
pub struct State {
    pub accepts: bool,
    /// An item of this node leads to this state.
    pub edges: Vec<(usize, usize)>,
}

pub struct Member {
    pub name: String,
    pub node: usize,
    pub required: bool,
}

/// Members by name in their order, then others in any.
pub struct ObjectPlan {
    pub members: Vec<Member>,
    /// Names (unquoted) and the node of their values.
    pub others: Vec<(RegexAst, usize)>,
    /// The last member has to be one of these.
    pub last: Option<Vec<(RegexAst, usize)>>,
    /// How many members that are not required there are at least and at most.
    pub fewest: usize,
    pub most: Option<usize>,
}

pub struct Plan {
    pub nodes: Vec<Node>,
    /// Which nodes have a finite value.
    pub real: Vec<bool>,
    pub root: usize,
}

/// Strings as JSON writes them. Quoting stands inside conjunctions and opposites, not around them: only then does llguidance see that
/// most tokens are allowed inside a string without walking through all of them.
pub fn quoted(set: RegexAst) -> RegexAst {
    let quote = |set: RegexAst| RegexAst::JsonQuote(Box::new(set), JsonQuoteOptions::regular());
    match set {
        RegexAst::And(sets) => RegexAst::And(sets.into_iter().map(quoted).collect()),
        RegexAst::Not(set) => RegexAst::Not(Box::new(quoted(*set))),
        RegexAst::Or(sets) => RegexAst::Or(sets.into_iter().map(quoted).collect()),
        other => quote(other),
    }
}

pub fn plan(algebra: &mut Algebra<'_>) -> Result<Plan> {
    let root = algebra.root();
    let mut planner =
        Planner { algebra, nodes: Vec::new(), known: HashMap::new(), todo: Vec::new(), empty: HashMap::new() };
    let root = planner.node(&root)?;
    while let Some((node, all)) = planner.todo.pop() {
        let filled = planner.fill(&all).map_err(|error| planner.algebra.placed(error, &all));
        planner.nodes[node] = filled?;
    }
    let nodes = planner.nodes;
    let real = real_nodes(&nodes);
    if !real[root] {
        let reason = "its conditions exclude each other, or it needs itself without an end".into();
        return Err(GrammarError::Unsatisfiable { kind: "schema", reason });
    }
    Ok(Plan { nodes, real, root })
}

struct Planner<'p, 'a> {
    algebra: &'p mut Algebra<'a>,
    nodes: Vec<Node>,
    known: HashMap<All, usize>,
    todo: Vec<(usize, All)>,
    empty: HashMap<String, bool>,
}

impl Planner<'_, '_> {
    fn node(&mut self, all: &All) -> Result<usize> {
        if let Some(&node) = self.known.get(all) {
            return Ok(node);
        }
        if self.nodes.len() >= SCHEMA_NODES {
            return Err(GrammarError::Limit {
                what: "the number of different places of a document",
                limit: SCHEMA_NODES,
            });
        }
        let node = self.nodes.len();
        self.nodes.push(Node::default());
        self.known.insert(all.clone(), node);
        self.todo.push((node, all.clone()));
        Ok(node)
    }

    fn fill(&mut self, all: &All) -> Result<Node> {
        let mut node = Node::default();
        for kind in Kind::ALL {
            for shape in self.algebra.shapes(all, kind)? {
                match shape {
                    Shape::Null => node.scalars.push(RegexAst::Literal("null".into())),
                    Shape::Boolean(which) => {
                        let texts = [(1, "false"), (2, "true")].into_iter().filter(|(bit, _)| which & bit != 0);
                        node.scalars.extend(texts.map(|(_, text)| RegexAst::Literal(text.into())));
                    }
                    Shape::Number(numbers) => node.scalars.extend(self.numbers(&numbers)?),
                    Shape::String(strings) => {
                        if strings.tests.is_empty() || !self.no_string(&strings.set())? {
                            node.scalars.push(quoted(strings.set()));
                        }
                    }
                    Shape::Array(arrays) => node.arrays.extend(self.array(&arrays)?),
                    Shape::Object(objects) => self.objects(&objects, &mut node.objects)?,
                }
            }
        }
        Ok(node)
    }

    fn numbers(&mut self, numbers: &Numbers) -> Result<Option<RegexAst>> {
        let set = numbers.set().ok_or_else(|| wrong("multipleOf", "has too many digits", "use a rounder number"))?;
        let unknown =
            || wrong("multipleOf", "leaves it open whether there is such a number", "make the conditions simpler");
        Ok(if numbers.has_any().ok_or_else(unknown)? { Some(set) } else { None })
    }

    /// Whether a set of texts is empty; it has to be known here, or an answer could run into it.
    fn no_string(&mut self, set: &RegexAst) -> Result<bool> {
        let mut key = String::new();
        set.write_to_str(&mut key, 20_000, None);
        if let Some(&known) = self.empty.get(&key) {
            return Ok(known);
        }
        let complex =
            || wrong("pattern", "is too complex together with what else the value has to meet", "make it simpler");
        let empty = pattern::is_empty(set).ok_or_else(complex)?;
        self.empty.insert(key, empty);
        Ok(empty)
    }

    fn array(&mut self, arrays: &Arrays) -> Result<Option<ArrayPlan>> {
        let single = arrays.longest.is_some_and(|longest| longest <= 1);
        if arrays.unique && !single {
            return self.unique(arrays).map(Some);
        }
        if !arrays.contains.is_empty() {
            return self.counted(arrays).map(Some);
        }
        let mut first = Vec::new();
        for all in &arrays.first {
            first.push(self.node(all)?);
        }
        let rest = self.node(&arrays.rest)?;
        Ok(Some(ArrayPlan::Plain { first, rest, shortest: arrays.shortest, longest: arrays.longest }))
    }

    /// Items that no two of are equal: all of few scalar values.
    fn unique(&mut self, arrays: &Arrays) -> Result<ArrayPlan> {
        let refused =
            |reason: &str| wrong("uniqueItems", reason, "give the items an enum of at most 10 values, or leave it out");
        if !arrays.contains.is_empty() {
            return Err(refused("cannot be enforced together with contains"));
        }
        let places = arrays.first.len() + 1;
        let mut values: Vec<Value> = Vec::new();
        let mut allowed: Vec<Vec<usize>> = Vec::new();
        for at in 0..places {
            let mut here = Vec::new();
            for value in self.finite(arrays.item(at))?.ok_or_else(|| refused("cannot be enforced for such items"))? {
                let index = values.iter().position(|known| *known == value).unwrap_or_else(|| {
                    values.push(value);
                    values.len() - 1
                });
                here.push(index);
            }
            allowed.push(here);
        }
        if values.len() > 10 {
            return Err(refused("cannot be enforced for so many values"));
        }
        let mut nodes = Vec::new();
        for value in &values {
            let literal = self.algebra.constant(value);
            nodes.push(self.node(&both(&[literal], &[]))?);
        }
        // A state is the set of values used, which also says how many items there are.
        let mut states = vec![State::default(); 1 << values.len()];
        for (used, state) in states.iter_mut().enumerate() {
            let length = used.count_ones() as usize;
            state.accepts = length >= arrays.shortest && arrays.longest.is_none_or(|longest| length <= longest);
            let free = allowed[length.min(places - 1)].iter().filter(|value| used & (1 << **value) == 0);
            if arrays.longest.is_none_or(|longest| length < longest) {
                state.edges = free.map(|&value| (nodes[value], used | (1 << value))).collect();
            }
        }
        Ok(ArrayPlan::States(states))
    }

    /// All values that meet conditions, if they are few scalars.
    fn finite(&mut self, all: &All) -> Result<Option<Vec<Value>>> {
        let mut values = Vec::new();
        for kind in Kind::ALL {
            for shape in self.algebra.shapes(all, kind)? {
                match shape {
                    Shape::Null => values.push(Value::Null),
                    Shape::Boolean(which) => {
                        values.extend(
                            [(1, false), (2, true)]
                                .iter()
                                .filter(|(bit, _)| which & bit != 0)
                                .map(|(_, v)| Value::Bool(*v)),
                        );
                    }
                    Shape::Number(Numbers { only: Some(only), .. }) => {
                        for text in only.values() {
                            values.push(serde_json::from_str(text).map_err(|e| GrammarError::Internal(e.to_string()))?);
                        }
                    }
                    Shape::String(Strings { only: Some(only), .. }) => {
                        values.extend(only.into_iter().map(Value::String))
                    }
                    _ => return Ok(None),
                }
            }
        }
        Ok(Some(values))
    }

    /// Items of which some are counted. A state is the number of items, as far as it matters, and the counts.
    fn counted(&mut self, arrays: &Arrays) -> Result<ArrayPlan> {
        let refused = || wrong("contains", "needs too many states with these bounds", "use smaller bounds");
        let far = [arrays.first.len(), arrays.shortest, arrays.longest.map_or(0, |longest| longest + 1)];
        let from = arrays.contains.iter().map(|contains| contains.from);
        let end = far.into_iter().chain(from).max().unwrap_or(0);
        let caps: Vec<usize> = arrays
            .contains
            .iter()
            .map(|contains| contains.least.max(contains.most.map_or(0, |most| most + 1)))
            .collect();
        let sizes = caps.iter().try_fold(end.saturating_add(1), |size, cap| size.checked_mul(cap.saturating_add(1)));
        if sizes.is_none_or(|size| size > ARRAY_STATES) || arrays.contains.len() > 3 {
            return Err(refused());
        }
        let mut states: Vec<State> = Vec::new();
        let mut numbers: HashMap<(usize, Vec<usize>), usize> = HashMap::new();
        let mut todo = vec![(0, vec![0; caps.len()])];
        numbers.insert(todo[0].clone(), 0);
        states.push(State::default());
        while let Some((length, counts)) = todo.pop() {
            let mut state = State::default();
            let enough = arrays.contains.iter().zip(&counts);
            let mut enough =
                enough.map(|(contains, &n)| n >= contains.least && contains.most.is_none_or(|most| n <= most));
            let longest = arrays.longest.unwrap_or(usize::MAX);
            state.accepts = enough.all(|enough| enough) && length >= arrays.shortest && length <= longest;
            for (all, next) in self.counted_edges(arrays, length, &counts, &caps) {
                if never(&all) || length >= longest {
                    continue;
                }
                let key = ((length + 1).min(end), next);
                let number = *numbers.entry(key.clone()).or_insert_with(|| {
                    states.push(State::default());
                    todo.push(key);
                    states.len() - 1
                });
                state.edges.push((self.node(&all)?, number));
            }
            let number = numbers[&(length, counts)];
            states[number] = state;
        }
        Ok(ArrayPlan::States(states))
    }

    /// What the next item may be and which counts follow. An item that need not be counted may meet the condition all the same,
    /// unless there is a bound above.
    fn counted_edges(
        &mut self,
        arrays: &Arrays,
        length: usize,
        counts: &[usize],
        caps: &[usize],
    ) -> Vec<(All, Vec<usize>)> {
        let mut edges = vec![(arrays.item(length).clone(), counts.to_vec())];
        for (at, contains) in arrays.contains.iter().enumerate().filter(|(_, contains)| length >= contains.from) {
            let mut more = Vec::new();
            for (all, counts) in edges {
                let mut counted = counts.clone();
                counted[at] = (counts[at] + 1).min(caps[at]);
                if contains.most.is_none_or(|most| counted[at] <= most) && counted[at] != counts[at] {
                    more.push((both(&all, &[contains.literal]), counted));
                }
                let other = if contains.most.is_some() { both(&all, &[contains.literal ^ 1]) } else { all };
                more.push((other, counts));
            }
            edges = more;
        }
        edges
    }

    fn objects(&mut self, objects: &Objects, plans: &mut Vec<ObjectPlan>) -> Result<()> {
        // Each "some member ..." is met by a member that is spoken of, or by another one.
        let mut cases = vec![(objects.clone(), Vec::new())];
        for exists in &objects.exists {
            let mut next = Vec::new();
            for (case, last) in &cases {
                for name in case.spoken().iter().map(|name| name.to_string()).collect::<Vec<_>>() {
                    if self.algebra.named(&exists.names, &name)? {
                        let mut case = case.clone();
                        case.rules.push(Rule::one(&name, exists.value.clone()));
                        if !case.required.contains(&name) {
                            case.required.push(name);
                        }
                        next.push((case, last.clone()));
                    }
                }
                let mut last = last.clone();
                last.push(exists.clone());
                next.push((case.clone(), last));
            }
            if next.len() > SCHEMA_SHAPES {
                return Err(GrammarError::Limit { what: "the number of cases of one schema", limit: SCHEMA_SHAPES });
            }
            cases = next;
        }
        for (case, last) in cases {
            plans.extend(self.object(&case, &last)?);
        }
        Ok(())
    }

    fn object(&mut self, objects: &Objects, last: &[Exists]) -> Result<Option<ObjectPlan>> {
        let spoken: Vec<String> = objects.spoken().into_iter().map(str::to_owned).collect();
        let mut members = Vec::new();
        for name in &spoken {
            let required = objects.required.contains(name);
            let mut value = objects.value(name).map_err(|_| too_complex())?;
            if !self.algebra.meets(&objects.names, name)? {
                value = [FALSE].into();
            }
            match (never(&value), required) {
                (true, true) => return Ok(None),
                (true, false) => {}
                (false, _) => members.push(Member { name: name.clone(), node: self.node(&value)?, required }),
            }
        }
        let regions = self.regions(objects, &spoken)?;
        let last = match last {
            [] => None,
            [one] => match self.last(&regions, one)? {
                ends if ends.is_empty() => return Ok(None),
                ends => Some(ends),
            },
            _ if regions.is_empty() => return Ok(None),
            _ => {
                return Err(wrong(
                    "additionalProperties",
                    "is needed twice in an opposite (under not or oneOf)",
                    "use anyOf",
                ));
            }
        };
        let mut others = Vec::new();
        for (set, value) in &regions {
            others.push((set.clone(), self.node(value)?));
        }
        let required = members.iter().filter(|member| member.required).count();
        if members.len() - required > OPTIONAL_IN_ORDER {
            unordered(&mut members, &mut others);
        }
        let fewest = objects.fewest.saturating_sub(required);
        if fewest > 1 && !others.is_empty() {
            let reason = "cannot be enforced where names are free, because one may be written twice";
            return Err(wrong("minProperties", reason, "list the properties and set additionalProperties to false"));
        }
        let most = objects.most.map(|most| most.saturating_sub(required));
        Ok(Some(ObjectPlan { members, others, last, fewest, most }))
    }

    /// Sets of names that nothing speaks of by name, with the conditions on their values.
    fn regions(&mut self, objects: &Objects, spoken: &[String]) -> Result<Vec<(RegexAst, All)>> {
        let mut patterns = BTreeSet::new();
        for rule in &objects.rules {
            // A rule whose patterns say what its others say tells nothing apart.
            if rule.patterns.iter().any(|(_, value)| *value != rule.others) || rule.patterns.len() > 1 {
                patterns.extend(rule.patterns.iter().map(|(text, _)| text.clone()));
            }
        }
        if patterns.len() > NAME_PATTERNS {
            return Err(GrammarError::Limit { what: "the number of patterns of property names", limit: NAME_PATTERNS });
        }
        let mut base = self.name_conditions(&objects.names)?;
        if !spoken.is_empty() {
            let names = spoken.iter().cloned().map(RegexAst::Literal).collect();
            base.push(RegexAst::Not(Box::new(RegexAst::Or(names))));
        }
        let mut regions = vec![(base, BTreeSet::new())];
        for text in &patterns {
            let set = Test::Pattern(text.clone()).set();
            let mut next = Vec::new();
            for (sets, matched) in regions {
                let (mut inside, mut with) = (sets.clone(), matched.clone());
                inside.push(set.clone());
                with.insert(text.clone());
                let mut outside = sets;
                outside.push(RegexAst::Not(Box::new(set.clone())));
                for (sets, matched) in [(inside, with), (outside, matched)] {
                    if !self.no_string(&conjunction(&sets))? {
                        next.push((sets, matched));
                    }
                }
            }
            regions = next;
        }
        let mut found: Vec<(Vec<RegexAst>, All)> = Vec::new();
        for (sets, matched) in regions {
            let value =
                objects.rules.iter().fold(both(&[], &[]), |value, rule| both(&value, &value_in(rule, &matched)));
            if never(&value) || (sets.len() > 1 && self.no_string(&conjunction(&sets))?) {
                continue;
            }
            let set = conjunction(&sets);
            match found.iter_mut().find(|(_, known)| *known == value) {
                Some((known, _)) => known.push(set),
                None => found.push((vec![set], value)),
            }
        }
        Ok(found.into_iter().map(|(sets, value)| (union(sets), value)).collect())
    }

    /// The sets that conditions on names are, beginning with all strings.
    fn name_conditions(&mut self, conditions: &[Literal]) -> Result<Vec<RegexAst>> {
        let mut sets = vec![pattern::any()];
        if !conditions.is_empty() {
            let shapes = self.algebra.shapes(conditions, Kind::String)?;
            let texts = shapes
                .iter()
                .filter_map(|shape| if let Shape::String(strings) = shape { Some(strings.set()) } else { None });
            sets.push(RegexAst::Or(texts.collect()));
        }
        Ok(sets)
    }

    /// The members that meet "some member ...", among those that nothing speaks of by name.
    fn last(&mut self, regions: &[(RegexAst, All)], exists: &Exists) -> Result<Vec<(RegexAst, usize)>> {
        let mut names = self.name_conditions(&exists.names.conditions)?;
        if !exists.names.not.is_empty() {
            let not = exists.names.not.iter().cloned().map(RegexAst::Literal).collect();
            names.push(RegexAst::Not(Box::new(RegexAst::Or(not))));
        }
        for (test, passes) in &exists.names.tests {
            names.push(if *passes { test.set() } else { RegexAst::Not(Box::new(test.set())) });
        }
        let mut ends = Vec::new();
        for (set, value) in regions {
            let value = both(value, &exists.value);
            let set = conjunction(&[std::slice::from_ref(set), &names[..]].concat());
            if !never(&value) && !self.no_string(&set)? {
                ends.push((set, self.node(&value)?));
            }
        }
        Ok(ends)
    }
}

/// The conditions of a rule on a name that it does not speak of and that these patterns match.
fn value_in(rule: &Rule, matched: &BTreeSet<std::rc::Rc<str>>) -> All {
    let mut hit = false;
    let mut value: All = [].into();
    for (text, condition) in &rule.patterns {
        if matched.contains(text) {
            hit = true;
            value = both(&value, condition);
        }
    }
    if hit { value } else { rule.others.clone() }
}

/// Optional members become others, by what their values are: an object of hundreds of them in order would be too wide a choice.
fn unordered(members: &mut Vec<Member>, others: &mut Vec<(RegexAst, usize)>) {
    let mut by_node: Vec<(usize, Vec<RegexAst>)> = Vec::new();
    members.retain(|member| {
        if !member.required {
            let name = RegexAst::Literal(member.name.clone());
            match by_node.iter_mut().find(|(node, _)| *node == member.node) {
                Some((_, names)) => names.push(name),
                None => by_node.push((member.node, vec![name])),
            }
        }
        member.required
    });
    others.extend(by_node.into_iter().map(|(node, names)| (RegexAst::Or(names), node)));
}

fn conjunction(sets: &[RegexAst]) -> RegexAst {
    if sets.len() == 1 { sets[0].clone() } else { RegexAst::And(sets.to_vec()) }
}

fn union(mut sets: Vec<RegexAst>) -> RegexAst {
    if sets.len() == 1 { sets.remove(0) } else { RegexAst::Or(sets) }
}

fn too_complex() -> GrammarError {
    wrong("patternProperties", "is too complex", "make the patterns simpler")
}

/// What is found of several conditions together; [`Algebra::placed`] says where.
fn wrong(keyword: &str, reason: &str, advice: &str) -> GrammarError {
    GrammarError::Schema {
        pointer: String::new(),
        keyword: keyword.into(),
        reason: reason.into(),
        advice: advice.into(),
    }
}

/// Which nodes have a finite value: the least set that is closed.
fn real_nodes(nodes: &[Node]) -> Vec<bool> {
    let mut real = vec![false; nodes.len()];
    loop {
        let mut grew = false;
        for (at, node) in nodes.iter().enumerate() {
            if !real[at] && (!node.scalars.is_empty() || has_array(node, &real) || has_object(node, &real)) {
                real[at] = true;
                grew = true;
            }
        }
        if !grew {
            return real;
        }
    }
}

fn has_array(node: &Node, real: &[bool]) -> bool {
    node.arrays.iter().any(|plan| match plan {
        ArrayPlan::Plain { first, rest, shortest, longest } => longest_real(first, *rest, *longest, real) >= *shortest,
        ArrayPlan::States(states) => real_states(states, real)[0],
    })
}

/// The most items that an array can have, given which nodes have values.
pub fn longest_real(first: &[usize], rest: usize, longest: Option<usize>, real: &[bool]) -> usize {
    let stop = first.iter().position(|&node| !real[node]);
    let room = stop.unwrap_or(if real[rest] { usize::MAX } else { first.len() });
    longest.map_or(room, |longest| longest.min(room))
}

/// From which states an end can be reached.
pub fn real_states(states: &[State], real: &[bool]) -> Vec<bool> {
    let mut good: Vec<bool> = states.iter().map(|state| state.accepts).collect();
    loop {
        let mut grew = false;
        for (at, state) in states.iter().enumerate() {
            if !good[at] && state.edges.iter().any(|&(node, next)| real[node] && good[next]) {
                good[at] = true;
                grew = true;
            }
        }
        if !grew {
            return good;
        }
    }
}

fn has_object(node: &Node, real: &[bool]) -> bool {
    node.objects.iter().any(|plan| is_real(plan, real))
}

/// Whether an object of this plan exists, given which nodes have values.
pub fn is_real(plan: &ObjectPlan, real: &[bool]) -> bool {
    let required = plan.members.iter().filter(|member| member.required).all(|member| real[member.node]);
    let last = plan.last.as_ref().is_none_or(|ends| ends.iter().any(|(_, node)| real[*node]));
    let optional = plan.members.iter().filter(|member| !member.required && real[member.node]).count();
    let others = plan.others.iter().any(|(_, node)| real[*node]);
    let reachable = optional + usize::from(others || plan.last.is_some());
    let room = plan.most.is_none_or(|most| plan.fewest.max(usize::from(plan.last.is_some())) <= most);
    required && last && room && reachable >= plan.fewest
}
