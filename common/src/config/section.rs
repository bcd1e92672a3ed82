//! One map of the document: hands out typed values and knows in the end which keys nobody asked for.

use super::document::Document;
use super::env;
use super::fault::did_you_mean;
use super::tree::{Data, Entry, Node};

/// A map with keys. Getters note every key they are asked for; a value that is missing or wrong leaves a fault in the
/// document and comes back as `None`, an empty section or the default, so that reading goes on.
#[derive(Debug)]
pub struct Section<'d> {
    doc: &'d Document,
    entries: &'d [Entry],
    line: usize,
    path: String,
    asked: Vec<&'static str>,
}

impl<'d> Section<'d> {
    pub(super) fn new(doc: &'d Document, entries: &'d [Entry], line: usize, path: String) -> Section<'d> {
        Section { doc, entries, line, path, asked: Vec::new() }
    }

    /// A value that must be there.
    pub fn required<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        match self.entry(key) {
            Some(entry) => self.typed(&entry.value, self.name(key), parse),
            None => {
                self.doc.add(self.line, self.name(key), "is missing");
                None
            }
        }
    }

    /// A value that may be absent.
    pub fn optional<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let entry = self.entry(key)?;
        self.typed(&entry.value, self.name(key), parse)
    }

    /// A value with a default.
    pub fn or<T>(
        &mut self,
        key: &'static str,
        default: T,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> T {
        self.optional(key, parse).unwrap_or(default)
    }

    /// A list of single values; empty when absent. Faulty items are left out.
    pub fn list<T>(&mut self, key: &'static str, mut parse: impl FnMut(&str) -> Result<T, String>) -> Vec<T> {
        let items = self.items(key).iter().enumerate();
        items
            .filter_map(|(i, item)| self.typed(item, format!("{}[{i}]", self.name(key)), &mut parse))
            .collect()
    }

    /// A single value or a list of them; empty when absent. `None` stands for each faulty one.
    pub fn one_or_list<T>(
        &mut self,
        key: &'static str,
        mut parse: impl FnMut(&str) -> Result<T, String>,
    ) -> Vec<Option<T>> {
        let Some(entry) = self.entry(key) else { return Vec::new() };
        if !matches!(entry.value.data, Data::List(_)) {
            return vec![self.typed(&entry.value, self.name(key), parse)];
        }
        let items = self.items(key).iter().enumerate();
        items.map(|(i, item)| self.typed(item, format!("{}[{i}]", self.name(key)), &mut parse)).collect()
    }

    /// A section; empty when absent, so that its defaults apply and its required keys are reported.
    pub fn section(&mut self, key: &'static str) -> Section<'d> {
        let (line, path) = (self.line_of(key), self.name(key));
        self.optional_section(key).unwrap_or_else(|| Section::new(self.doc, &[], line, path))
    }

    /// A section, `None` when absent.
    pub fn optional_section(&mut self, key: &'static str) -> Option<Section<'d>> {
        let entry = self.entry(key)?;
        self.as_section(&entry.value, entry.line, self.name(key))
    }

    /// A list of sections; empty when absent. Items that are no sections are left out.
    pub fn sections(&mut self, key: &'static str) -> Vec<Section<'d>> {
        let items = self.items(key).iter().enumerate();
        items
            .filter_map(|(i, item)| self.as_section(item, item.line, format!("{}[{i}]", self.name(key))))
            .collect()
    }

    /// Does the list of this key begin with a section? For lists that have a short and a long form.
    pub fn lists_sections(&mut self, key: &'static str) -> bool {
        let Some(entry) = self.entry(key) else { return false };
        let Data::List(items) = &entry.value.data else { return false };
        items.first().is_some_and(|item| matches!(item.data, Data::Map(_)))
    }

    /// Is the key there, with whatever value? Counts as asking for it.
    pub fn has(&mut self, key: &'static str) -> bool {
        self.entry(key).is_some()
    }

    /// Line of a key, or of the section when the key is absent.
    pub fn line_of(&self, key: &str) -> usize {
        self.entries.iter().find(|entry| entry.key == key).map_or(self.line, |entry| entry.line)
    }

    /// Full name of a key, such as `destinations[1].bucket`.
    pub fn name(&self, key: &str) -> String {
        match self.path.as_str() {
            "" => key.to_owned(),
            path => format!("{path}.{key}"),
        }
    }

    /// Adds a fault of the section as a whole.
    pub fn fault(&self, message: impl Into<String>) {
        self.doc.add(self.line, self.path.clone(), message);
    }

    /// Adds a fault of one key's value, for rules that no single value can check.
    pub fn fault_at(&self, key: &str, message: impl Into<String>) {
        self.doc.add(self.line_of(key), self.name(key), message);
    }

    /// Reports every key that was never asked for.
    pub fn finish(self) {
        for entry in self.entries {
            if self.asked.contains(&entry.key.as_str()) {
                continue;
            }
            let shown: String = entry.key.chars().take(80).collect();
            let hint = did_you_mean(&shown, self.asked.iter().copied());
            let hint = hint.unwrap_or_else(|| match self.asked.is_empty() {
                true => String::new(),
                false => format!("; known here: {}", self.asked.join(", ")),
            });
            self.doc.add(entry.line, self.name(&shown), format!("unknown key{hint}"));
        }
    }

    fn entry(&mut self, key: &'static str) -> Option<&'d Entry> {
        if !self.asked.contains(&key) {
            self.asked.push(key);
        }
        self.entries.iter().find(|entry| entry.key == key)
    }

    fn typed<T>(
        &self,
        node: &Node,
        name: String,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let outcome = match &node.data {
            Data::Scalar(text) => env::expand(text, &*self.doc.lookup).and_then(|text| parse(&text)),
            Data::Null => Err("has no value; give it one or remove it".into()),
            other => Err(format!("expected a single value, found {}", other.kind())),
        };
        outcome.map_err(|message| self.doc.add(node.line, name, message)).ok()
    }

    fn as_section(&self, node: &'d Node, line: usize, name: String) -> Option<Section<'d>> {
        match &node.data {
            Data::Map(entries) => Some(Section::new(self.doc, entries, line, name)),
            Data::Null => Some(Section::new(self.doc, &[], line, name)),
            other => {
                self.doc.add(
                    node.line,
                    name,
                    format!("expected a section with keys, found {}", other.kind()),
                );
                None
            }
        }
    }

    fn items(&mut self, key: &'static str) -> &'d [Node] {
        let Some(entry) = self.entry(key) else { return &[] };
        match &entry.value.data {
            Data::List(items) => items,
            Data::Null => &[],
            other => {
                let message =
                    format!("expected a list (lines that begin with \"- \"), found {}", other.kind());
                self.doc.add(entry.line, self.name(key), message);
                &[]
            }
        }
    }
}
