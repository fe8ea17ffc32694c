//! JSON as Python writes and reads it.

use serde_json::Value;

/// A JSON text, or one of Python's `json`: `NaN`, `Infinity` and `-Infinity`, numbers beyond f64 and lone surrogates.
///
/// A number that f64 does not hold becomes a text, its own spelling, so that whoever asks for a number refuses it by name.
pub(super) fn parse(text: &str) -> Result<Value, serde_json::Error> {
    match serde_json::from_str(text) {
        Ok(value) => Ok(value),
        Err(error) => match serde_json::from_str(&standard(text)) {
            Ok(value) => Ok(value),
            // The first error's place is one of the caller's text.
            Err(_) => Err(error),
        },
    }
}

/// The text with Python's own forms put into strings.
fn standard(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    let mut rest = text;
    while let Some(at) = rest.find(|c: char| c == '"' || c == '-' || c.is_ascii_alphanumeric()) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let end = if rest.starts_with('"') {
            string(rest, &mut out)
        } else {
            let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '+' | '.');
            let end = rest.find(|c: char| !word(c)).unwrap_or(rest.len());
            let token = &rest[..end];
            let beyond = || token.parse::<f64>().is_ok_and(f64::is_infinite);
            if matches!(token, "NaN" | "Infinity" | "-Infinity") || is_number(token) && beyond() {
                out.extend(["\"", token, "\""]);
            } else {
                out.push_str(token);
            }
            end
        };
        rest = &rest[end..];
    }
    out.push_str(rest);
    out
}

fn is_number(token: &str) -> bool {
    token.trim_start_matches('-').starts_with(|c: char| c.is_ascii_digit())
}

/// Copies the string at the start, surrogates without a partner replaced; its length.
fn string(text: &str, out: &mut String) -> usize {
    let bytes = text.as_bytes();
    let unit = |at: usize| {
        let digits = text.get(at..at + 6)?.strip_prefix("\\u")?;
        u32::from_str_radix(digits, 16).ok()
    };
    let (mut at, mut copied) = (1, 0);
    while at < bytes.len() && bytes[at] != b'"' {
        let step = match (bytes[at], unit(at)) {
            (b'\\', Some(0xd800..=0xdbff)) if matches!(unit(at + 6), Some(0xdc00..=0xdfff)) => 12,
            (b'\\', Some(0xd800..=0xdfff)) => {
                out.push_str(&text[copied..at]);
                out.push_str("\\ufffd");
                copied = at + 6;
                6
            }
            (b'\\', _) => 2,
            _ => 1,
        };
        at += step;
    }
    let end = (at + 1).min(bytes.len());
    out.push_str(text.get(copied..end).unwrap_or_default());
    end
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::parse;

    #[test]
    fn what_python_writes_is_read() {
        // json.dumps({"a": [0.0, float("inf"), -float("inf"), float("nan")], "b": "NaN \ud83d", "c": 10**400})
        let big = format!("1{}", "0".repeat(400));
        let text = format!(r#"{{"a": [0.0, Infinity, -Infinity, NaN], "b": "NaN \ud83d", "c": {big}, "d": 1e999}}"#);
        let value = parse(&text).unwrap();
        assert_eq!(value["a"], json!([0.0, "Infinity", "-Infinity", "NaN"]));
        assert_eq!((&value["b"], &value["c"], &value["d"]), (&json!("NaN \u{fffd}"), &json!(big), &json!("1e999")));
        // pairs of surrogates, escapes and what looks like a word inside of a string stay
        let text = r#"{"a": "\ud83d\ude00 \\\" Infinity é", "b": NaN}"#;
        assert_eq!(parse(text).unwrap()["a"], json!("\u{1f600} \\\" Infinity é"));
    }

    #[test]
    fn what_python_refuses_is_refused() {
        for text in [
            "{\"a\": nan}",
            "{\"a\": +Infinity}",
            "{\"a\": 1,}",
            "{'a': 1}",
            "{\"a\": NaN",
            "NaN NaN",
            "{\"a\": \"\\ud8",
            "\"é",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!(parse("{\"a\": NaN,\n x}").unwrap_err().to_string(), "expected value at line 1 column 7");
    }
}
