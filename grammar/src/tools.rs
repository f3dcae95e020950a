//! Tool calls: what a family of models writes, as a grammar and as a parser.
