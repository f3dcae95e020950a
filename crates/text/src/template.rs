//! Chat templates, rendered as Hugging Face's Jinja renders them.
//!
//! A template is untrusted (an adapter can bring its own): its size, its steps and its output are bounded, and it can call
//! nothing but what is here.

use std::borrow::Cow;
use std::io::Write;
use std::sync::LazyLock;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, Error, ErrorKind};
use regex::Regex;
use serde_json::{Map, Value};

use crate::TextError;
use crate::json;

/// Largest template, in bytes.
pub const TEMPLATE_BYTES: usize = 1 << 20;
/// Most instructions of one rendering.
const STEPS: u64 = 20_000_000;
/// Largest rendered prompt, in bytes.
const OUTPUT_BYTES: usize = 32 << 20;

/// What a template is given.
#[derive(Debug, Clone, Copy)]
pub struct ChatInput<'a> {
    pub messages: &'a Value,
    pub tools: Option<&'a Value>,
    pub add_generation_prompt: bool,
    /// An adapter's own template, in place of the model's.
    pub template: Option<&'a str>,
    /// The request's `chat_template_kwargs`.
    pub extra: &'a Map<String, Value>,
}

/// Seconds since the Unix epoch, for `strftime_now`.
pub type Clock = fn() -> i64;

/// Renders `source`. `special` are the tokens by name (`bos_token`, `eos_token`, ...).
pub fn render(
    source: &str,
    input: &ChatInput<'_>,
    special: &Map<String, Value>,
    clock: Clock,
) -> Result<String, TextError> {
    if source.len() > TEMPLATE_BYTES {
        return Err(TextError::Template(format!("the chat template is over {TEMPLATE_BYTES} bytes")));
    }
    let source = without_generation_blocks(source);
    let environment = environment(clock);
    let mut values = special.clone();
    values.extend(input.extra.clone());
    values.insert("messages".into(), input.messages.clone());
    values.insert("tools".into(), input.tools.cloned().unwrap_or(Value::Null));
    values.entry("documents").or_insert(Value::Null);
    values.insert("add_generation_prompt".into(), input.add_generation_prompt.into());
    let template = environment.template_from_str(&source).map_err(said)?;
    let mut output = Bounded(Vec::new());
    template.render_captured_to(Serde(&values), &mut output).map_err(said)?;
    String::from_utf8(output.0)
        .map_err(|_| TextError::Template("the chat template wrote bytes that are not text".into()))
}

/// What is wrong with a template before anything is rendered with it: the line, and the fault there.
pub fn fault(source: &str) -> Option<(usize, String)> {
    let source = without_generation_blocks(source);
    let error = environment(|| 0).template_from_str(&source).err()?;
    let reason = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    Some((error.line().unwrap_or(1), reason))
}

fn environment(clock: Clock) -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("only whitespace rules were changed"));
    environment.set_fuel(Some(STEPS));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", move |format: String| crate::time::strftime(&format, clock()));
    environment.add_filter("tojson", |value: minijinja::Value, options: Kwargs| -> Result<minijinja::Value, Error> {
        let indent: Option<usize> = options.get("indent")?;
        let sort_keys: Option<bool> = options.get("sort_keys")?;
        let ensure_ascii: Option<bool> = options.get("ensure_ascii")?;
        let separators: Option<Vec<String>> = options.get("separators")?;
        options.assert_all_used()?;
        let style = json::Style {
            indent: indent.map(|indent| indent.min(16)),
            sort_keys: sort_keys.unwrap_or(false),
            ensure_ascii: ensure_ascii.unwrap_or(false),
            separators: separators.and_then(|both| <[String; 2]>::try_from(both).ok()).map(Into::into),
        };
        let value: Value = serde_json::to_value(&value)
            .map_err(|e| Error::new(ErrorKind::InvalidOperation, format!("not JSON: {e}")))?;
        Ok(minijinja::Value::from_safe_string(json::dumps(&value, &style)))
    });
    environment
}

/// `{% generation %}` marks the assistant's part for training; when rendering a prompt it does nothing.
fn without_generation_blocks(source: &str) -> Cow<'_, str> {
    static BLOCK: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}").expect("the pattern is a constant"));
    BLOCK.replace_all(source, |block: &regex::Captures<'_>| {
        let statement = if block.get(2).is_some() { "endif" } else { "if true" };
        format!("{{%{} {statement} {}%}}", &block[1], &block[3])
    })
}

/// What the template itself said, without the engine's words around it.
fn said(error: Error) -> TextError {
    match (error.kind(), error.detail()) {
        (ErrorKind::InvalidOperation, Some(detail)) => TextError::Template(detail.to_owned()),
        (ErrorKind::OutOfFuel, _) => TextError::Template("the chat template takes too many steps".into()),
        (ErrorKind::WriteFailure, _) => {
            TextError::Template(format!("the chat template writes over {OUTPUT_BYTES} bytes"))
        }
        _ => TextError::Template(format!("the chat template failed: {error}")),
    }
}

/// Refuses to grow past the bound.
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > OUTPUT_BYTES {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod golden;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rendered(source: &str, messages: Value) -> Result<String, TextError> {
        let input = ChatInput {
            messages: &messages,
            tools: None,
            add_generation_prompt: true,
            template: None,
            extra: &Map::new(),
        };
        let special = json!({ "bos_token": "<s>", "eos_token": "</s>" });
        render(source, &input, special.as_object().unwrap(), || 1_000_000_000)
    }

    #[test]
    fn blocks_take_their_line_with_them() {
        let source = "{{ bos_token }}{% for m in messages %}\n    {% if m.role == 'user' %}\n[{{ m['content'].strip() }}]\n    {% endif %}\n{% endfor %}";
        let messages = json!([{"role": "user", "content": " hi "}, {"role": "assistant", "content": "x"}]);
        assert_eq!(rendered(source, messages).unwrap(), "<s>[hi]\n");
    }

    #[test]
    fn json_is_written_as_python_writes_it() {
        let messages = json!([{"b": [1, 2.0, true, null], "a": "é <&> \"q\""}]);
        assert_eq!(
            rendered("{{ messages[0] | tojson }}", messages.clone()).unwrap(),
            r#"{"b": [1, 2.0, true, null], "a": "é <&> \"q\""}"#
        );
        assert_eq!(
            rendered("{{ messages[0].b | tojson(indent=2) }}", messages).unwrap(),
            "[\n  1,\n  2.0,\n  true,\n  null\n]"
        );
    }

    #[test]
    fn a_template_that_raises_speaks_for_itself() {
        let error = rendered("{{ raise_exception('Roles must alternate') }}", json!([])).unwrap_err();
        assert_eq!(error.to_string(), "Roles must alternate");
    }

    #[test]
    fn a_broken_template_is_told_its_line() {
        let (line, reason) = fault("{{ bos_token }}\n{% for m in messages %}\n{{ m.content }\n{% endfor %}").unwrap();
        assert!(line == 3 && !reason.is_empty(), "{line}: {reason}");
        assert_eq!(fault("{% generation %}{{ messages }}{% endgeneration %}"), None);
    }

    #[test]
    fn a_template_that_never_ends_is_stopped() {
        let source = "{% for a in range(9999) %}{% for b in range(9999) %}{{ a }}{% endfor %}{% endfor %}";
        assert!(rendered(source, json!([])).is_err());
    }

    #[test]
    fn dates_and_loop_controls_and_namespaces_work() {
        assert_eq!(rendered("{{ strftime_now('%d %b %Y') }}", json!([])).unwrap(), "09 Sep 2001");
        let source = "{% set ns = namespace(n=0) %}{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}";
        assert_eq!(rendered(source, json!([])).unwrap(), "3");
        assert_eq!(rendered("{%- generation -%} a {%- endgeneration -%}", json!([])).unwrap(), "a");
    }
}
