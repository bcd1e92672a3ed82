//! YAML events ▸ a small tree that remembers lines. Built without recursion, so that no input can exhaust the stack.

use super::fault::Fault;
use saphyr_parser::{Event, Parser, ScalarStyle, Span};

/// Deepest nesting of maps and lists.
pub const MAX_DEPTH: usize = 32;

/// Most keys in one map: each is compared with all others.
const MAX_KEYS: usize = 1000;

/// A value and where it begins.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) line: usize,
    pub(super) data: Data,
}

#[derive(Debug)]
pub(super) enum Data {
    /// No value at all: `key:` or `key: ~`.
    Null,
    /// Text as written, quotes and escapes resolved.
    Scalar(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

impl Data {
    /// "a list", for messages.
    pub(super) const fn kind(&self) -> &'static str {
        match self {
            Data::Null => "nothing",
            Data::Scalar(_) => "a single value",
            Data::List(_) => "a list",
            Data::Map(_) => "a section",
        }
    }
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) line: usize,
    pub(super) value: Node,
}

/// A collection whose end has not come yet.
#[derive(Debug)]
enum Open {
    List { line: usize, items: Vec<Node> },
    Map { line: usize, entries: Vec<Entry>, key: Option<(String, usize)> },
}

/// The first document of `text`, and every fault of form that does not prevent reading on. `Err` when the text is no
/// YAML, or not the YAML that is read here.
pub(super) fn parse(text: &str) -> Result<(Node, Vec<Fault>), Fault> {
    let mut builder = Builder { stack: Vec::new(), root: None, faults: Vec::new() };
    let mut parser = Parser::new_from_str(text);
    while let Some(event) = parser.next_event() {
        let (event, span) =
            event.map_err(|e| fault(e.marker().line(), "", format!("not valid YAML: {}", e.info())))?;
        builder.take(event, span)?;
    }
    let root = builder.root.unwrap_or(Node { line: 1, data: Data::Null });
    Ok((root, builder.faults))
}

fn fault(line: usize, key: impl Into<String>, message: impl Into<String>) -> Fault {
    Fault { line, key: key.into(), message: message.into() }
}

struct Builder {
    stack: Vec<Open>,
    root: Option<Node>,
    faults: Vec<Fault>,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), Fault> {
        let line = span.start.line();
        match event {
            Event::Scalar(text, style, _, _) => self.scalar(text.into_owned(), style, line),
            Event::Alias(_) => {
                Err(fault(line, "", "YAML aliases (*name) are not supported; write the value out"))
            }
            Event::SequenceStart(..) => self.open(line, Open::List { line, items: Vec::new() }),
            Event::MappingStart(..) => self.open(line, Open::Map { line, entries: Vec::new(), key: None }),
            Event::SequenceEnd | Event::MappingEnd => match self.stack.pop() {
                Some(Open::List { line, items }) => self.place(Node { line, data: Data::List(items) }),
                Some(Open::Map { line, entries, .. }) => self.place(Node { line, data: Data::Map(entries) }),
                None => Ok(()),
            },
            Event::DocumentStart(_) if self.root.is_some() => {
                Err(fault(line, "", "a second YAML document; a configuration file holds one"))
            }
            _ => Ok(()),
        }
    }

    fn open(&mut self, line: usize, open: Open) -> Result<(), Fault> {
        if self.stack.len() >= MAX_DEPTH {
            return Err(fault(line, "", format!("nested deeper than {MAX_DEPTH} levels")));
        }
        if self.awaits_key() {
            return Err(fault(line, "", "a key must be a single word, not a list or a section"));
        }
        self.stack.push(open);
        Ok(())
    }

    fn awaits_key(&self) -> bool {
        matches!(self.stack.last(), Some(Open::Map { key: None, .. }))
    }

    fn scalar(&mut self, text: String, style: ScalarStyle, line: usize) -> Result<(), Fault> {
        if let Some(Open::Map { key: key @ None, .. }) = self.stack.last_mut() {
            *key = Some((text, line));
            return Ok(());
        }
        let null =
            style == ScalarStyle::Plain && matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL");
        self.place(Node { line, data: if null { Data::Null } else { Data::Scalar(text) } })
    }

    /// Puts a finished value where it belongs.
    fn place(&mut self, value: Node) -> Result<(), Fault> {
        match self.stack.last_mut() {
            None => self.root = Some(value),
            Some(Open::List { items, .. }) => items.push(value),
            Some(Open::Map { entries, key, .. }) => {
                let Some((key, line)) = key.take() else {
                    return Err(fault(value.line, "", "a value without a key"));
                };
                // The line of a value that is absent may be the next key's: a fault belongs to its own key.
                let value = if matches!(value.data, Data::Null) { Node { line, ..value } } else { value };
                match entries.iter().find(|entry| entry.key == key) {
                    Some(first) => {
                        let message = format!("is given twice, first on line {}", first.line);
                        self.faults.push(fault(line, key, message));
                    }
                    None if entries.len() >= MAX_KEYS => {
                        return Err(fault(line, "", format!("more than {MAX_KEYS} keys in one section")));
                    }
                    None => entries.push(Entry { key, line, value }),
                }
            }
        }
        Ok(())
    }
}
