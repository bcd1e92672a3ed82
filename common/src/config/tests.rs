//! Whole files: every fault with its line, and no input that breaks the reader.

use super::*;
use proptest::prelude::*;
use std::time::Duration;

fn parse(text: &str) -> Result<Document, Faults> {
    Document::parse_with("f.yml", text, |name| (name == "SET").then(|| "7s".to_owned()))
}

/// Reads a little of everything; never stops early.
fn walk(doc: &Document) -> Option<(Duration, Vec<u16>, Vec<String>)> {
    let mut root = doc.root();
    let every = root.or("every", Duration::from_secs(1), value::duration);
    let ports = root.list("ports", value::int::<u16>);
    let mut tls = root.section("tls");
    let ca = tls.required("ca", value::path);
    tls.finish();
    let mut names = Vec::new();
    for mut item in root.sections("items") {
        names.extend(item.required("name", value::string));
        item.finish();
    }
    root.finish();
    ca?;
    Some((every, ports, names))
}

fn faults(text: &str) -> String {
    match parse(text) {
        Ok(doc) => doc.check(walk(&doc)).unwrap_err().to_string(),
        Err(faults) => faults.to_string(),
    }
}

#[test]
fn a_good_file_with_variables() {
    let text = "every: ${SET}\nports: [1, 2]\ntls:\n  ca: ${NO:-a}/b\nitems:\n- name: x\n- name: \"y z\"\n";
    let doc = parse(text).unwrap();
    let (every, ports, names) = doc.check(walk(&doc)).unwrap();
    assert_eq!((every, ports), (Duration::from_secs(7), vec![1, 2]));
    assert_eq!(names, ["x", "y z"]);
}

#[test]
fn all_faults_at_once_in_the_order_of_lines() {
    let text = "\
# a comment
evry: 1s
ports:
  - 80
  - 99999
  - http
tls:
  ca: ${UNSET}
  cert_file: x
items:
  - name:
  - nam: x
  - plain
every: 10
every: 2s
zzz: 1
";
    assert_eq!(
        faults(text),
        "\
f.yml:2: evry: unknown key; did you mean \"every\"?
f.yml:5: ports[1]: 99999 is too large
f.yml:6: ports[2]: \"http\" is not a whole number
f.yml:8: tls.ca: the environment variable UNSET is not set; set it or write ${UNSET:-default}
f.yml:9: tls.cert_file: unknown key; known here: ca
f.yml:11: items[0].name: has no value; give it one or remove it
f.yml:12: items[1].name: is missing
f.yml:12: items[1].nam: unknown key; did you mean \"name\"?
f.yml:13: items[2]: expected a section with keys, found a single value
f.yml:14: every: \"10\" is not a duration: 10 has no unit; write a number with a unit, such as 500ms, 1s, 5m, 24h or 1h30m
f.yml:15: every: is given twice, first on line 14
f.yml:16: zzz: unknown key; known here: every, ports, tls, items"
    );
}

#[test]
fn shapes_that_do_not_fit() {
    assert_eq!(
        faults("tls: 1"),
        "f.yml:1: tls: expected a section with keys, found a single value\nf.yml:1: tls.ca: is missing"
    );
    assert!(faults("ports: {a: 1}\ntls: {ca: x}").starts_with("f.yml:1: ports: expected a list"));
    assert!(faults("every: [1s]\ntls: {ca: x}").contains("expected a single value, found a list"));
    assert!(faults("- a").starts_with("f.yml:1: expected keys with values, found a list"));
    assert!(faults("").contains("f.yml:1: tls.ca: is missing"));
    assert!(faults("tls:\n").contains("f.yml:1: tls.ca: is missing"));
    assert!(faults("a: &x 1\nb: *x").contains("f.yml:2: YAML aliases"));
    assert!(faults("a: 1\n---\nb: 2").contains("second YAML document"));
    assert!(faults("? [a]\n: 1").contains("a key must be a single word"));
    assert!(faults("a: b: c").starts_with("f.yml:1: not valid YAML"));
    assert!(faults(&"[".repeat(100)).contains("nested deeper"));
    assert!(faults(&format!("a: {}", "x".repeat(MAX_CONFIG_BYTES))).contains("larger than 1 MiB"));
    let many: String = (0..2000).map(|i| format!("k{i}: 1\n")).collect();
    assert!(faults(&many).starts_with("f.yml:1001: more than 1000 keys"));
    assert_eq!(faults(&"k1: x\n".repeat(300)).lines().count(), 101);
}

#[test]
fn files_that_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.yml");
    let text = |path: &std::path::Path| Document::read(path).unwrap_err().to_string();
    assert!(text(&path).ends_with("x.yml: no such file"));
    assert!(text(dir.path()).contains("cannot be read"));
    std::fs::write(&path, [0xff, 0xfe]).unwrap();
    assert!(text(&path).contains("not UTF-8"));
    std::fs::write(&path, "a: 1").unwrap();
    assert_eq!(Document::read(&path).unwrap().path(), path);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn no_text_breaks_the_reader(text in "[ -~\\n\\t\u{e9}\u{feff}]{0,200}") {
        let _ = parse(&text).map(|doc| doc.check(walk(&doc)).map_err(|e| e.to_string()));
    }

    #[test]
    fn no_near_miss_breaks_the_reader(
        parts in proptest::collection::vec(
            prop::sample::select(vec![
                "every", "ports", "tls", "ca", "items", "name", ": ", ":\n", "\n", "  ", "- ", "[", "]", "{", "}", ",", "\"",
                "'", "#", "&a ", "*a", "? ", "| ", ">\n", "---\n", "...\n", "!!str ", "%YAML", "${SET}", "${", "1s", "~", "\t",
            ]),
            0..60,
        )
    ) {
        let _ = parse(&parts.concat()).map(|doc| doc.check(walk(&doc)).map_err(|e| e.to_string()));
    }

    #[test]
    fn no_value_breaks_a_parser(text in "\\PC{0,40}") {
        let _ = (value::duration(&text), value::bytes(&text), value::host_port(&text), value::int::<u64>(&text));
    }

    #[test]
    fn durations_and_sizes_round_trip(n in 0_u64..1_000_000_000_000) {
        prop_assert_eq!(value::duration(&format!("{n}ms")), Ok(Duration::from_millis(n)));
        prop_assert_eq!(value::bytes(&n.to_string()), Ok(n));
        prop_assert_eq!(value::bytes(&format!("{}KiB", n)), Ok(n * 1024));
    }
}
