//! What tool calls cost: making and compiling the grammar of many tools, and reading answers.
//!
//!     cargo bench -p grammar --bench tools

use std::time::Instant;

use grammar::tools::{Answer, Choice, Context, Parser, Tool, families, grammar, plain_json};
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::ApproximateTokEnv;
use llguidance::{Matcher, ParserFactory};
use serde_json::{Map, Value, json};

const TOOLS: usize = 128;
const PARAMETERS: usize = 10;
const ROUNDS: usize = 15;

fn tools() -> Vec<Tool> {
    // A third of the schemas are of this tool alone.
    let kinds = |tool: usize| {
        [
            json!({"type": "string", "description": format!("free text of {tool}")}),
            json!({"type": "integer", "minimum": 0, "maximum": 1000 + tool}),
            json!({"type": "boolean"}),
            json!({"type": "string", "enum": ["celsius", "fahrenheit", format!("of_{tool}")]}),
            json!({"type": "array", "items": {"type": "string"}}),
            json!({"type": "number"}),
            json!({"type": ["string", "null"]}),
            json!({"type": "object", "properties": {format!("a_{tool}"): {"type": "string"}, "b": {"type": "boolean"}}}),
        ]
    };
    let parameters = |tool: usize| -> Map<String, Value> {
        (0..PARAMETERS).map(|at| (format!("parameter_{at}"), kinds(tool)[(tool + at) % 8].clone())).collect()
    };
    let tool = |at: usize| Tool {
        name: format!("tool_{at}"),
        parameters: json!({"type": "object", "properties": parameters(at), "required": ["parameter_0"], "additionalProperties": false}),
        strict: true,
    };
    (0..TOOLS).map(tool).collect()
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn main() {
    let tools = tools();
    let environment = ApproximateTokEnv::single_byte_env();
    let mut factory = ParserFactory::new_simple(&environment).unwrap();
    factory.quiet();
    println!("{TOOLS} tools of {PARAMETERS} parameters, medians of {ROUNDS}");
    println!("{:<14} {:>10} {:>12} {:>12} {:>12}", "family", "write ms", "compile ms", "first ms", "read MB/s");
    for family in families() {
        let answer = Answer::new(&tools, &Choice::Required, true).unwrap();
        let context = Context { special: &|_| None, schema: &plain_json };
        let (mut write, mut compile, mut first) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let start = Instant::now();
            let lark = grammar(*family, &answer, &context).unwrap();
            write.push(start.elapsed().as_secs_f64() * 1e3);
            let start = Instant::now();
            let mut matcher = Matcher::new(factory.create_parser(TopLevelGrammar::from_lark(lark)));
            compile.push(start.elapsed().as_secs_f64() * 1e3);
            let start = Instant::now();
            matcher.compute_mask().unwrap();
            first.push(start.elapsed().as_secs_f64() * 1e3);
        }
        let text = "An answer of plain words, as most of them are, with a <b>bold</b> one. ".repeat(20_000);
        let start = Instant::now();
        let mut parser = Parser::new(*family, &answer);
        let told: usize =
            text.as_bytes().chunks(5).map(|piece| parser.push(std::str::from_utf8(piece).unwrap()).len()).sum();
        let rate = text.len() as f64 / start.elapsed().as_secs_f64() / 1e6;
        assert!(told > 0);
        let (write, compile, first) = (median(write), median(compile), median(first));
        println!("{:<14} {write:>10.1} {compile:>12.1} {first:>12.1} {rate:>12.0}", family.name());
    }
}
