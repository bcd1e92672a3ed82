//! What applies to which database: the first selector that matches its `agent/name`, else the policy of all. Pure.

use super::policy::Policy;
use glob::Pattern;
use std::time::Duration;
use walhub_common::{DatabaseKey, DestinationName};

/// One entry of `databases:`. What it does not say is as for all databases.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Selector {
    /// Any of them, over `agent/name`.
    pub patterns: Vec<Pattern>,
    /// The destinations of its databases; `None`: all.
    pub destinations: Option<Vec<DestinationName>>,
    /// Least time between two flushes of its databases; `None`: each destination's own.
    pub sync_interval: Option<Duration>,
    /// What makes its transactions durable.
    pub policy: Policy,
    /// How long restore points are kept; `None`: as each destination says.
    pub retention: Option<Duration>,
}

impl Selector {
    /// What is said of databases that no selector matches.
    pub fn of_all(policy: Policy) -> Self {
        Self { patterns: Vec::new(), destinations: None, sync_interval: None, policy, retention: None }
    }

    /// True when the database is one of its.
    pub fn matches(&self, database: &DatabaseKey) -> bool {
        let name = database.to_string();
        self.patterns.iter().any(|pattern| pattern.matches(&name))
    }

    /// True when its databases go to this destination.
    pub fn chooses(&self, destination: &DestinationName) -> bool {
        self.destinations.as_ref().is_none_or(|names| names.contains(destination))
    }
}

/// All selectors, in the order of the file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rules {
    selectors: Vec<Selector>,
}

impl Rules {
    /// These selectors, and this policy for every other database.
    pub fn new(mut selectors: Vec<Selector>, policy: Policy) -> Self {
        selectors.push(Selector::of_all(policy));
        Self { selectors }
    }

    /// The selectors; the last one is that of all databases which no other matches.
    pub fn selectors(&self) -> &[Selector] {
        &self.selectors
    }

    /// Place of the selector that applies.
    pub fn of(&self, database: &DatabaseKey) -> usize {
        let others = self.selectors.len() - 1;
        self.selectors.iter().position(|selector| selector.matches(database)).unwrap_or(others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selector(pattern: &str) -> Selector {
        Selector { patterns: vec![Pattern::new(pattern).unwrap()], ..Selector::of_all(Policy::default()) }
    }

    #[test]
    fn the_first_match_applies() {
        let rules = Rules::new(
            vec![selector("pos-*/app.db"), selector("pos-1/*"), selector("*.tmp")],
            Policy::default(),
        );
        for (key, expected) in [
            ("pos-1/app.db", 0),
            ("pos-1/log.db", 1),
            ("pos-2/log.db", 3),
            ("pos-2/x.tmp", 2),
            ("xpos-2/app.db", 3),
        ] {
            assert_eq!(rules.of(&key.parse().unwrap()), expected, "{key}");
        }
    }
}
