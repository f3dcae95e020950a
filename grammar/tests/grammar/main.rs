//! One binary for all tests of grammars.

mod corpora;
#[allow(dead_code)]
mod corpus;
mod hostile;
mod lowering;
mod monkey;
mod sources;
