//! One configuration file and the faults found in it.

use super::fault::{Fault, Faults};
use super::section::Section;
use super::tree::{self, Data, Node};
use std::cell::RefCell;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Largest configuration file.
pub const MAX_CONFIG_BYTES: usize = 1024 * 1024;

/// Where `${NAME}` comes from.
type Lookup = Box<dyn Fn(&str) -> Option<String>>;

/// A parsed file. Sections borrow it and leave their faults in it; [`Document::check`] has the last word.
pub struct Document {
    path: PathBuf,
    pub(super) root: Node,
    pub(super) lookup: Lookup,
    faults: RefCell<Vec<Fault>>,
}

impl Document {
    /// Reads and parses a file.
    pub fn read(path: impl Into<PathBuf>) -> Result<Document, Faults> {
        let path = path.into();
        match read_text(&path) {
            Ok(text) => Document::parse(path, &text),
            Err(message) => Err(whole(path, message)),
        }
    }

    /// Parses a text that came from `path`; variables come from the environment of the process.
    pub fn parse(path: impl Into<PathBuf>, text: &str) -> Result<Document, Faults> {
        Document::parse_with(path, text, |name| std::env::var(name).ok())
    }

    /// Parses a text whose variables come from `lookup`.
    pub fn parse_with(
        path: impl Into<PathBuf>,
        text: &str,
        lookup: impl Fn(&str) -> Option<String> + 'static,
    ) -> Result<Document, Faults> {
        let path = path.into();
        if text.len() > MAX_CONFIG_BYTES {
            return Err(whole(path, TOO_LARGE.into()));
        }
        match tree::parse(text) {
            Ok((root, faults)) => {
                Ok(Document { path, root, lookup: Box::new(lookup), faults: RefCell::new(faults) })
            }
            Err(fault) => Err(Faults::new(path, vec![fault])),
        }
    }

    /// The outermost section; empty for an empty file.
    pub fn root(&self) -> Section<'_> {
        match &self.root.data {
            Data::Map(entries) => Section::new(self, entries, self.root.line.max(1), String::new()),
            Data::Null => Section::new(self, &[], 1, String::new()),
            other => {
                self.add(self.root.line, "", format!("expected keys with values, found {}", other.kind()));
                Section::new(self, &[], 1, String::new())
            }
        }
    }

    /// Where it came from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The value, if nothing at all was wrong; otherwise every fault. A value of `None` without a fault is a bug of the
    /// caller and is reported as a fault of the file.
    pub fn check<T>(&self, value: Option<T>) -> Result<T, Faults> {
        let faults = self.faults.borrow().clone();
        match value {
            Some(value) if faults.is_empty() => Ok(value),
            None if faults.is_empty() => {
                Err(whole(self.path.clone(), "is not a usable configuration".into()))
            }
            _ => Err(Faults::new(self.path.clone(), faults)),
        }
    }

    pub(super) fn add(&self, line: usize, key: impl Into<String>, message: impl Into<String>) {
        self.faults.borrow_mut().push(Fault { line, key: key.into(), message: message.into() });
    }
}

impl fmt::Debug for Document {
    /// Only the path: values may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Document").field("path", &self.path).finish_non_exhaustive()
    }
}

const TOO_LARGE: &str = "is larger than 1 MiB, which no configuration is";

fn whole(path: PathBuf, message: String) -> Faults {
    Faults::new(path, vec![Fault { line: 0, key: String::new(), message }])
}

fn read_text(path: &Path) -> Result<String, String> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_CONFIG_BYTES as u64 + 1).read_to_end(&mut bytes))
        .map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => "no such file".into(),
            _ => format!("cannot be read: {e}"),
        })?;
    if bytes.len() > MAX_CONFIG_BYTES {
        return Err(TOO_LARGE.into());
    }
    String::from_utf8(bytes).map_err(|_| "is not UTF-8 text".into())
}
