//! JSON Schema as a grammar: exactly the documents that the schema takes, or a refusal that says which keyword cannot be enforced.
//!
//! A schema is taken apart into sets of values of one type ([`algebra`]), the places of a document become nodes of a graph ([`plan`]),
//! and the graph becomes rules ([`emit`]). Properties are written in the order of the schema, others behind them.

mod algebra;
mod document;
mod emit;
mod formats;
mod number;
pub(crate) mod pattern;
mod plan;
mod shape;

use serde_json::Value;

use crate::builder::{Builder, Symbol};
use crate::limits::Budget;
use crate::{GrammarError, SchemaOptions};

/// Adds the rules of a schema's documents and returns their symbol.
pub(crate) fn lower(
    schema: &Value,
    options: &SchemaOptions,
    budget: &Budget,
    builder: &mut Builder,
) -> Result<Symbol, GrammarError> {
    let mut algebra = algebra::Algebra::new(schema, options.clone(), budget);
    let plan = plan::plan(&mut algebra)?;
    budget.check()?;
    emit::emit(&plan, options, builder)
}
