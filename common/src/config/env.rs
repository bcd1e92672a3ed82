//! `${NAME}` and `${NAME:-default}` in values.

/// Longest value after expansion.
const MAX_VALUE_BYTES: usize = 64 * 1024;

/// Replaces variables; `$${` gives `${`. A variable that is not set and has no default is a fault, as is anything that
/// looks like a variable and is none.
pub(super) fn expand(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        if rest[..at].ends_with('$') {
            out.push_str(&rest[..at]);
            out.push('{');
            rest = &rest[at + 2..];
            continue;
        }
        out.push_str(&rest[..at]);
        let inner = &rest[at + 2..];
        let end = inner.find('}').ok_or("\"${\" without \"}\"; write \"$${\" for a literal \"${\"")?;
        out.push_str(&variable(&inner[..end], lookup)?);
        rest = &inner[end + 1..];
        if out.len() > MAX_VALUE_BYTES {
            return Err(format!("is longer than {MAX_VALUE_BYTES} bytes"));
        }
    }
    out.push_str(rest);
    Ok(out)
}

fn variable(inner: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let (name, default) = match inner.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (inner, None),
    };
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    if name.is_empty() || name.as_bytes()[0].is_ascii_digit() || !name.bytes().all(word) {
        return Err(format!("\"${{{inner}}}\" is not a variable; write ${{NAME}} or ${{NAME:-default}}"));
    }
    if default.is_some_and(|default| default.contains("${")) {
        return Err(format!("the default of ${{{name}}} cannot hold another variable"));
    }
    match (lookup(name), default) {
        (Some(value), None) => Ok(value),
        (Some(value), Some(_)) if !value.is_empty() => Ok(value),
        (_, Some(default)) => Ok(default.to_owned()),
        (None, None) => {
            Err(format!("the environment variable {name} is not set; set it or write ${{{name}:-default}}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::expand;

    #[test]
    fn variables_defaults_and_escapes() {
        let lookup = |name: &str| match name {
            "HOME_DIR" => Some("/srv".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        for (text, expected) in [
            ("plain $5 {x}", "plain $5 {x}"),
            ("${HOME_DIR}/a/${HOME_DIR}", "/srv/a//srv"),
            ("${NOPE:-x y}", "x y"),
            ("${NOPE:-}", ""),
            ("${EMPTY:-d}", "d"),
            ("${EMPTY}", ""),
            ("$${HOME_DIR}", "${HOME_DIR}"),
            ("a$${b}c${HOME_DIR}", "a${b}c/srv"),
        ] {
            assert_eq!(expand(text, &lookup).as_deref(), Ok(expected), "{text}");
        }
        for (text, part) in [
            ("${NOPE}", "NOPE is not set"),
            ("${", "without"),
            ("${HOME_DIR", "without"),
            ("${}", "not a variable"),
            ("${1A}", "not a variable"),
            ("${A B}", "not a variable"),
            ("${A:-${B}}", "another variable"),
        ] {
            let error = expand(text, &lookup).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
