//! Which databases: a glob over `agent/name`, or labels of agents.

use crate::fleet::labels::{Labels, check_word};
use glob::{MatchOptions, Pattern};
use walhub_common::DatabaseKey;
use walhub_proto::v1;
use walhub_proto::v1::selector::By;

/// Selectors of one job.
const MAX_SELECTORS: usize = 64;
/// Longest selector, bytes.
const MAX_BYTES: usize = 1024;
const PARTS: MatchOptions = MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: false,
};

/// A selector that is none.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SelectorError {
    /// Neither name nor labels.
    #[error("say which databases: a name such as \"pos-*/app.db\", or labels such as \"site=berlin\"")]
    Missing,
    /// Too many, too long.
    #[error("at most {MAX_SELECTORS} selectors of at most {MAX_BYTES} bytes")]
    TooMuch,
    /// Bad glob.
    #[error("{text:?} is no pattern: {reason}")]
    Pattern {
        /// The selector.
        text: String,
        /// What is wrong.
        reason: String,
    },
    /// Bad labels.
    #[error("{0:?} is no choice of labels: write key=value, several with commas")]
    Labels(String),
}

/// One selector.
#[derive(Clone, PartialEq, Debug)]
enum Selector {
    Name(Pattern),
    Labels(Labels),
}

/// Databases that match any of some selectors.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Selection(Vec<Selector>);

impl Selection {
    /// From the wire.
    pub(super) fn parse(selectors: &[v1::Selector]) -> Result<Selection, SelectorError> {
        if selectors.is_empty() {
            return Err(SelectorError::Missing);
        }
        if selectors.len() > MAX_SELECTORS {
            return Err(SelectorError::TooMuch);
        }
        selectors.iter().map(parse).collect::<Result<_, _>>().map(Selection)
    }

    /// Whether a database is meant; `labels` are those of its agent.
    pub(super) fn matches(&self, database: &DatabaseKey, labels: Option<&Labels>) -> bool {
        self.0.iter().any(|selector| match selector {
            Selector::Name(pattern) => pattern.matches_with(&database.to_string(), PARTS),
            Selector::Labels(wanted) => {
                labels.is_some_and(|has| wanted.iter().all(|(key, value)| has.get(key) == Some(value)))
            }
        })
    }
}

fn parse(selector: &v1::Selector) -> Result<Selector, SelectorError> {
    match &selector.by {
        None => Err(SelectorError::Missing),
        Some(By::Name(text) | By::Labels(text)) if text.len() > MAX_BYTES => Err(SelectorError::TooMuch),
        Some(By::Name(text)) => {
            let fault =
                |reason: &str| SelectorError::Pattern { text: text.clone(), reason: reason.to_owned() };
            // `**` would reach across the part that names the agent.
            if text.split('/').count() != 2 || text.contains("**") {
                return Err(fault("it must be AGENT/NAME, each a glob"));
            }
            Pattern::new(text).map(Selector::Name).map_err(|e| fault(e.msg))
        }
        Some(By::Labels(text)) => {
            let mut labels = Labels::new();
            for pair in text.split(',') {
                let fault = || SelectorError::Labels(text.clone());
                let (key, value) = pair.split_once('=').ok_or_else(fault)?;
                check_word(key).and_then(|()| check_word(value)).map_err(|_| fault())?;
                if labels.insert(key.to_owned(), value.to_owned()).is_some_and(|other| other != value) {
                    return Err(fault());
                }
            }
            Ok(Selector::Labels(labels))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> v1::Selector {
        v1::Selector { by: Some(By::Name(text.into())) }
    }

    fn labels(text: &str) -> v1::Selector {
        v1::Selector { by: Some(By::Labels(text.into())) }
    }

    fn matching(selectors: &[v1::Selector]) -> Vec<String> {
        let of = |pairs: &[(&str, &str)]| -> Labels {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
        };
        let selection = Selection::parse(selectors).unwrap();
        [
            ("pos-1/app.db", of(&[("site", "berlin"), ("ring", "1")])),
            ("pos-1/log.db", of(&[("site", "berlin"), ("ring", "1")])),
            ("pos-2/app.db", of(&[("site", "bonn"), ("ring", "1")])),
            ("kiosk/app.db", of(&[])),
        ]
        .into_iter()
        .filter(|(key, labels)| selection.matches(&key.parse().unwrap(), Some(labels)))
        .map(|(key, _)| key.to_owned())
        .collect()
    }

    #[test]
    fn names_are_globs_of_two_parts_and_labels_must_all_agree() {
        assert_eq!(matching(&[name("pos-*/app.db")]), ["pos-1/app.db", "pos-2/app.db"]);
        assert_eq!(matching(&[name("*/*")]).len(), 4);
        assert_eq!(matching(&[name("pos-?/l*")]), ["pos-1/log.db"]);
        assert_eq!(matching(&[labels("ring=1")]).len(), 3);
        assert_eq!(matching(&[labels("ring=1,site=bonn")]), ["pos-2/app.db"]);
        assert_eq!(matching(&[labels("site=bonn"), name("kiosk/*")]), ["pos-2/app.db", "kiosk/app.db"]);
        assert!(matching(&[labels("site=Bonn")]).is_empty());
    }

    #[test]
    fn what_is_no_selector_is_named() {
        assert_eq!(Selection::parse(&[]), Err(SelectorError::Missing));
        assert_eq!(Selection::parse(&[v1::Selector { by: None }]), Err(SelectorError::Missing));
        for bad in ["pos-1", "", "a/b/c", "**", "**/x", "a/[", "/"] {
            let parsed = Selection::parse(&[name(bad)]);
            // "/" is a pattern, and matches nothing, because names are never empty.
            assert!(parsed.is_err() || matching(&[name(bad)]).is_empty(), "{bad}");
        }
        for bad in ["", "a", "=b", "a=", "a=b,", "a=b,a=c", "a==b"] {
            assert!(matches!(Selection::parse(&[labels(bad)]), Err(SelectorError::Labels(_))), "{bad}");
        }
        assert_eq!(Selection::parse(&vec![name("a/b"); 65]), Err(SelectorError::TooMuch));
    }
}
