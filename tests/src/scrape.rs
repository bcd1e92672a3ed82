//! Metrics as a monitoring server gets them: HTTP spoken by hand, and a reader of OpenMetrics that forgives nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Longer than whatever the other side may take to lose its patience.
const PATIENCE: Duration = Duration::from_secs(60);

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Status.
    pub status: u16,
    /// Header lines, names in lower case.
    pub headers: BTreeMap<String, String>,
    /// Body.
    pub body: String,
}

/// Sends bytes and reads what comes back, until the other side ends it.
pub fn send(address: &str, bytes: &[u8]) -> Result<Vec<u8>, String> {
    let mut stream = TcpStream::connect(address).map_err(|error| format!("connect: {error}"))?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(|error| error.to_string())?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(|error| error.to_string())?;
    // It may have seen enough before it has seen all.
    let sent = stream.write_all(bytes);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(error) if answer.is_empty() => Err(format!("read: {error} (sent: {sent:?})")),
        _ => Ok(answer),
    }
}

/// Asks for something.
pub fn request(address: &str, method: &str, path: &str) -> Result<Answer, String> {
    let bytes = send(address, format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\n\r\n").as_bytes())?;
    let text = String::from_utf8(bytes).map_err(|error| error.to_string())?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(|| format!("no answer: {text:?}"))?;
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|code| code.parse().ok());
    let header =
        |line: &str| line.split_once(": ").map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()));
    let headers: BTreeMap<String, String> = lines.filter_map(header).collect();
    let length = headers.get("content-length").and_then(|length| length.parse::<usize>().ok());
    if method != "HEAD" && length != Some(body.len()) {
        return Err(format!("{} bytes came, content-length is {length:?}", body.len()));
    }
    Ok(Answer { status: status.ok_or("no status")?, headers, body: body.to_owned() })
}

/// One metric.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Family {
    /// `gauge`, `counter`, `info`.
    pub kind: String,
    /// Unit, when it has one.
    pub unit: Option<String>,
    /// Help.
    pub help: String,
}

/// A page.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// Metrics by name.
    pub families: BTreeMap<String, Family>,
    samples: BTreeMap<(String, BTreeMap<String, String>), f64>,
}

impl Page {
    /// Asks for the page of metrics and reads it.
    pub fn of(address: &str) -> Result<Page, String> {
        let answer = request(address, "GET", "/metrics")?;
        if answer.status != 200 {
            return Err(format!("{answer:?}"));
        }
        let kind = answer.headers.get("content-type").cloned().unwrap_or_default();
        if !kind.starts_with("application/openmetrics-text; version=1.0.0") {
            return Err(format!("it is {kind}"));
        }
        Page::parse(&answer.body)
    }

    /// Reads a page; whatever OpenMetrics forbids is an error.
    pub fn parse(text: &str) -> Result<Page, String> {
        let lines = text.strip_suffix("# EOF\n").ok_or("it does not end with # EOF")?;
        let (mut page, mut current) = (Page::default(), String::new());
        for line in lines.lines() {
            let fault = |what: &str| format!("{what}: {line}");
            let Some(said) = line.strip_prefix("# ") else {
                page.sample(line, &current).map_err(|error| fault(&error))?;
                continue;
            };
            let mut words = said.splitn(3, ' ');
            let (keyword, name) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            let rest = words.next().ok_or_else(|| fault("a word is missing"))?.to_owned();
            if keyword == "HELP" {
                let family = Family { kind: String::new(), unit: None, help: rest };
                if page.families.insert(name.to_owned(), family).is_some() {
                    return Err(fault("it is there twice"));
                }
                name.clone_into(&mut current);
                continue;
            }
            let family = page.families.get_mut(name).filter(|_| name == current);
            let family = family.ok_or_else(|| fault("it is of another metric"))?;
            match keyword {
                "TYPE" if ["gauge", "counter", "info"].contains(&rest.as_str()) => family.kind = rest,
                "UNIT" if name.ends_with(&format!("_{rest}")) => family.unit = Some(rest),
                _ => return Err(fault("not understood")),
            }
        }
        Ok(page)
    }

    fn sample(&mut self, line: &str, current: &str) -> Result<(), String> {
        let (subject, value) = line.rsplit_once(' ').ok_or("no value")?;
        let value: f64 = value.parse().map_err(|_| "no number".to_owned())?;
        let (name, labels) = match subject.split_once('{') {
            None => (subject, BTreeMap::new()),
            Some((name, labels)) => (name, parse_labels(labels.strip_suffix('}').ok_or("no }")?)?),
        };
        let kind = &self.families.get(current).ok_or("nobody said what this is")?.kind;
        if self.full_name(current).as_deref() != Some(name) || (kind == "counter" && value < 0.0) {
            return Err(format!("not a sample of the {kind} {current}"));
        }
        if self.samples.insert((name.to_owned(), labels), value).is_some() {
            return Err("it is there twice".to_owned());
        }
        Ok(())
    }

    /// What the samples of a metric are called.
    fn full_name(&self, family: &str) -> Option<String> {
        let ending = match self.families.get(family)?.kind.as_str() {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        Some(format!("{family}{ending}"))
    }

    /// Names under which values are, or could be, on the page.
    pub fn names(&self) -> BTreeSet<String> {
        self.families.keys().filter_map(|family| self.full_name(family)).collect()
    }

    /// A value; `None` when there is none with exactly these labels.
    pub fn find(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        assert!(self.names().contains(name), "there is no metric {name}");
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        self.samples.get(&(name.to_owned(), labels)).copied()
    }

    /// A value that is there.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Result<f64, String> {
        self.find(name, labels).ok_or_else(|| format!("there is no {name} {labels:?}: {:?}", self.all(name)))
    }

    /// All values of a name, with their labels.
    pub fn all(&self, name: &str) -> Vec<(&BTreeMap<String, String>, f64)> {
        let of_it = self.samples.iter().filter(|((sample, _), _)| sample == name);
        of_it.map(|((_, labels), value)| (labels, *value)).collect()
    }

    /// Counters that are smaller than they were.
    pub fn fallen(&self, before: &Page) -> Vec<String> {
        let counters = self.samples.iter().filter(|((name, _), _)| name.ends_with("_total"));
        let fallen = counters.filter(|(key, value)| before.samples.get(key).is_some_and(|old| old > value));
        fallen.map(|((name, labels), value)| format!("{name} {labels:?} {value}")).collect()
    }
}

fn parse_labels(text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut labels = BTreeMap::new();
    for label in text.split(',') {
        let (name, value) = label.split_once('=').ok_or("a label without a value")?;
        let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
        let value = value.filter(|value| !value.contains(['"', '\\'])).ok_or("a label that is not quoted")?;
        if labels.insert(name.to_owned(), value.to_owned()).is_some() {
            return Err(format!("the label {name} is there twice"));
        }
    }
    Ok(labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "# HELP a_bytes Bytes.\n# TYPE a_bytes counter\n# UNIT a_bytes bytes\na_bytes_total{x=\"1\",y=\"u v\"} \
                        7\n# HELP b B.\n# TYPE b gauge\nb 1.5\n# EOF\n";

    #[test]
    fn a_page_is_read_and_a_bad_one_refused() {
        let page = Page::parse(GOOD).unwrap();
        assert_eq!(page.find("a_bytes_total", &[("y", "u v"), ("x", "1")]), Some(7.0));
        assert_eq!((page.find("b", &[]), page.find("b", &[("x", "1")])), (Some(1.5), None));
        for (from, to) in [
            ("# EOF\n", ""),
            ("a_bytes_total{", "a_bytes{"),
            ("b 1.5\n", "b 1.5\nb 1.5\n"),
            ("b 1.5", "c 1.5"),
            ("b 1.5", "b x"),
            ("UNIT a_bytes bytes", "UNIT a_bytes seconds"),
            ("} 7", "} -7"),
            ("TYPE b gauge", "TYPE b gouge"),
            ("HELP b B.", "HELP a_bytes B."),
        ] {
            assert!(Page::parse(&GOOD.replace(from, to)).is_err(), "{from:?} as {to:?}");
        }
    }
}
