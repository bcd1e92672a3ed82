//! What is wrong with a configuration file, for people.

use std::fmt;
use std::path::PathBuf;

/// Faults that are printed; a file with more has other problems than the rest would show.
const MAX_SHOWN: usize = 100;

/// One fault.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// Line, from 1; 0 when the fault is the file's as a whole.
    pub line: usize,
    /// Where in the document, such as `destinations[1].bucket`; empty for the document itself.
    pub key: String,
    /// What is wrong and what to do.
    pub message: String,
}

/// All faults of one file, in the order of lines. Prints one per line as `file:line: key: message`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Faults {
    path: PathBuf,
    faults: Vec<Fault>,
}

impl Faults {
    pub(super) fn new(path: PathBuf, mut faults: Vec<Fault>) -> Faults {
        faults.sort_by_key(|fault| fault.line);
        Faults { path, faults }
    }

    /// The faults; at least one.
    pub fn iter(&self) -> impl Iterator<Item = &Fault> {
        self.faults.iter()
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        for (i, fault) in self.faults.iter().take(MAX_SHOWN).enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "{path}:")?;
            if fault.line > 0 {
                write!(f, "{}:", fault.line)?;
            }
            if !fault.key.is_empty() {
                write!(f, " {}:", fault.key)?;
            }
            write!(f, " {}", fault.message)?;
        }
        match self.faults.len().saturating_sub(MAX_SHOWN) {
            0 => Ok(()),
            more => write!(f, "\n{path}: and {more} more faults"),
        }
    }
}

impl std::error::Error for Faults {}

/// `; did you mean "x"?` for the nearest of `known`, or nothing when none is near.
pub fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let plain = |text: &str| text.to_lowercase().replace(['_', ' '], "-");
    let word = plain(word);
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&word, &plain(candidate)), candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.len() / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| format!("; did you mean {candidate:?}?"))
}
