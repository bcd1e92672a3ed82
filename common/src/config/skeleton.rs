//! A configuration without its secrets, as text that can be read again: what is worth keeping of it elsewhere.
//!
//! # Invariants
//! - No value of a key that names a secret is in the text: a variable stands there, without its default. `${NAME}` stays as it
//!   was written; a value in the clear becomes a variable called after its section (`name:`) and key.
//! - No user and password of an address is in the text.
//! - Everything else reads as in the original. Comments and the form of quotes are lost.

use super::Document;
use super::tree::{Data, Entry, Node};
use std::fmt::Write;

/// Words of keys whose values are secrets; `access-key-id` is one half of a credential.
const SECRET_WORDS: [&str; 5] = ["secret", "password", "token", "account-key", "access-key"];
/// What a key that names a file ends with.
const FILE: &str = "-file";

impl Document {
    /// See the module doc.
    pub fn skeleton(&self) -> String {
        let mut out = String::new();
        // Anything else is no configuration, and nothing of it is known to be harmless.
        if let Data::Map(entries) = &self.root.data {
            map(&mut out, entries, 0, "");
        }
        out
    }
}

fn is_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    !key.ends_with(FILE) && SECRET_WORDS.iter().any(|word| key.contains(word))
}

fn indent(out: &mut String, depth: usize) {
    out.extend(std::iter::repeat_n("  ", depth));
}

/// `owner`: the `name:` of the nearest section that has one.
fn map(out: &mut String, entries: &[Entry], depth: usize, owner: &str) {
    let own = entries.iter().find_map(|entry| match &entry.value.data {
        Data::Scalar(name) if entry.key == "name" => Some(name.as_str()),
        _ => None,
    });
    let owner = own.unwrap_or(owner);
    for (index, Entry { key, value, .. }) in entries.iter().enumerate() {
        // The first key of a list's item stands behind its dash.
        if index > 0 || !out.ends_with("- ") {
            indent(out, depth);
        }
        text(out, key);
        out.push(':');
        match &value.data {
            _ if is_secret(key) && !matches!(value.data, Data::Null) => {
                let _ = writeln!(out, " {}", variable(&value.data, owner, key));
            }
            data => node(out, data, depth, owner),
        }
    }
}

/// What stands behind `key:` or `-`, with the end of the line.
fn node(out: &mut String, data: &Data, depth: usize, owner: &str) {
    match data {
        Data::Null => out.push('\n'),
        Data::Scalar(value) => {
            out.push(' ');
            text(out, &without_user(value));
            out.push('\n');
        }
        Data::List(items) if items.is_empty() => out.push_str(" []\n"),
        Data::Map(entries) if entries.is_empty() => out.push_str(" {}\n"),
        Data::List(items) => {
            out.push('\n');
            for Node { data, .. } in items {
                indent(out, depth + 1);
                match data {
                    Data::Map(entries) if !entries.is_empty() => {
                        out.push_str("- ");
                        map(out, entries, depth + 2, owner);
                    }
                    data => {
                        out.push('-');
                        node(out, data, depth + 1, owner);
                    }
                }
            }
        }
        Data::Map(entries) => {
            out.push('\n');
            map(out, entries, depth + 1, owner);
        }
    }
}

/// The variable that a secret was, or becomes.
fn variable(secret: &Data, owner: &str, key: &str) -> String {
    if let Data::Scalar(value) = secret
        && let Some(inner) = value.strip_prefix("${").and_then(|rest| rest.strip_suffix('}'))
    {
        let name = inner.split_once(":-").map_or(inner, |(name, _)| name);
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        if !name.is_empty() && name.bytes().all(word) {
            return format!("${{{name}}}");
        }
    }
    let words = [owner, key].join("_").to_ascii_uppercase();
    let letters = words.trim_start_matches('_').chars();
    let name: String = letters.map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    format!("${{WALHUB_{name}}}")
}

/// An address without the user and password in it.
fn without_user(value: &str) -> String {
    let Some((scheme, rest)) = value.split_once("://") else { return value.to_owned() };
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    match rest[..end].rfind('@') {
        Some(at) => format!("{scheme}://{}", &rest[at + 1..]),
        None => value.to_owned(),
    }
}

/// A scalar, in quotes unless it is plain beyond doubt.
fn text(out: &mut String, value: &str) {
    let begins = value.starts_with(|c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '_' | '$'));
    let plain = |c: char| c.is_ascii_alphanumeric() || "_./-+*@%=$:{}".contains(c);
    let null = ["null", "Null", "NULL"].contains(&value);
    if begins && !null && !value.ends_with(':') && value.chars().all(plain) {
        out.push_str(value);
        return;
    }
    out.push('"');
    for c in value.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}') => {
                let _ = write!(out, "\\U{:08x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn skeleton(text: &str) -> String {
        Document::parse("x.yml", text).unwrap().skeleton()
    }

    #[test]
    fn secrets_become_variables_and_the_rest_stays() {
        let text = "\
# a comment
listen: 0.0.0.0:7443
tls: {ca: /etc/ca.pem, key: /etc/hub.key}
levels: [30s, 5m]
nothing: []
destinations:
  - name: s3-primary
    access-key-id: AKIAVERYSECRET
    secret-access-key: 'hunter2: \"#'
    endpoint: https://user:hunter3@s3.example:9000/x@y
    credentials-file: /etc/creds
    sse-kms-key-id: abc
  - {name: az, account-key: '${AZ_KEY:-hunter4}', object-lock: {mode: governance, days: 30}}
  - account-key:
      odd: hunter5
  - - a
    - b: c
";
        let expected = "\
listen: 0.0.0.0:7443
tls:
  ca: /etc/ca.pem
  key: /etc/hub.key
levels:
  - 30s
  - 5m
nothing: []
destinations:
  - name: s3-primary
    access-key-id: ${WALHUB_S3_PRIMARY_ACCESS_KEY_ID}
    secret-access-key: ${WALHUB_S3_PRIMARY_SECRET_ACCESS_KEY}
    endpoint: https://s3.example:9000/x@y
    credentials-file: /etc/creds
    sse-kms-key-id: abc
  - name: az
    account-key: ${AZ_KEY}
    object-lock:
      mode: governance
      days: 30
  - account-key: ${WALHUB_ACCOUNT_KEY}
  -
    - a
    - b: c
";
        let first = skeleton(text);
        assert_eq!(first, expected);
        assert!(!first.contains("hunter") && !first.contains("AKIA"));
        assert_eq!(skeleton(&first), first, "it reads as it was written");
        assert_eq!(skeleton(""), "");
    }

    #[test]
    fn odd_values_come_back() {
        for value in [
            "",
            " ",
            "~",
            "null",
            "a b",
            "a: b",
            "a #b",
            "- a",
            "[x]",
            "{x}",
            "\"",
            "\\",
            "'",
            "\n",
            "a\tb",
            "ä€𝄞",
            "\u{7f}\u{85}",
            "\u{2028}",
            "x:",
            ":x",
            "*a",
            "&a",
            "!t",
            "%d",
            "@x",
            "`",
            "yes",
            "1e3",
            "|",
            ">",
            "${A}",
            "$${A}",
            "a{b}c",
            "?",
        ] {
            let quoted = escaped(value);
            let first = skeleton(&format!("k: {quoted}\n"));
            let Data::Map(entries) = &Document::parse("x.yml", &first).unwrap().root.data else {
                panic!("{first}")
            };
            let Data::Scalar(found) = &entries[0].value.data else { panic!("{value:?}: {first}") };
            assert_eq!(found, value, "{first}");
        }
    }

    fn escaped(value: &str) -> String {
        let letters: String = value.chars().map(|c| format!("\\U{:08x}", u32::from(c))).collect();
        format!("\"{letters}\"")
    }
}
