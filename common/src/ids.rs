//! Names of agents, databases and destinations: short, printable, safe as one path segment everywhere.

use std::fmt;

/// Longest name, bytes.
pub const MAX_NAME_BYTES: usize = 128;

/// A name that cannot be used, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} name {name:?} is not allowed: {reason}")]
pub struct NameError {
    /// "agent", "database" or "destination".
    pub kind: &'static str,
    /// The name, cut to a printable length.
    pub name: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

fn check(kind: &'static str, name: &str) -> Result<(), NameError> {
    let fault = |reason| Err(NameError { kind, name: name.chars().take(MAX_NAME_BYTES).collect(), reason });
    if name.is_empty() {
        return fault("it is empty");
    }
    if name.len() > MAX_NAME_BYTES {
        return fault("it is longer than 128 bytes");
    }
    if name.starts_with('.') {
        return fault("it starts with a dot");
    }
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')) {
        return fault("only letters, digits, '.', '_' and '-' are allowed");
    }
    Ok(())
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// Checks and takes a name.
            pub fn new(name: impl Into<String>) -> Result<Self, NameError> {
                let name = name.into();
                check($kind, &name)?;
                Ok(Self(name))
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.0)
            }
        }

        impl std::str::FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }
    };
}

name_type!(
    /// Name of an agent (node), as in its certificate.
    AgentName,
    "agent"
);
name_type!(
    /// Name of a database within its agent.
    DatabaseName,
    "database"
);
name_type!(
    /// Name of a destination in the hub's configuration.
    DestinationName,
    "destination"
);

/// `<agent>/<name>`: one database of the fleet.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DatabaseKey {
    /// Its agent.
    pub agent: AgentName,
    /// Its name there.
    pub name: DatabaseName,
}

impl DatabaseKey {
    /// From checked names.
    pub fn new(agent: AgentName, name: DatabaseName) -> Self {
        Self { agent, name }
    }
}

impl fmt::Display for DatabaseKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.agent, self.name)
    }
}

impl fmt::Debug for DatabaseKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

impl std::str::FromStr for DatabaseKey {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.split_once('/') {
            Some((agent, name)) => Ok(Self::new(AgentName::new(agent)?, DatabaseName::new(name)?)),
            None => Err(NameError {
                kind: "database",
                name: text.chars().take(MAX_NAME_BYTES).collect(),
                reason: "write it as AGENT/NAME",
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_one_safe_path_segment() {
        for good in ["a", "pos-17", "app.db", "A_b"] {
            assert!(AgentName::new(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", ".hidden", "a/b", "a b", "ä", "a\0", &"x".repeat(129)] {
            assert!(AgentName::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_key_is_agent_slash_name() {
        let key: DatabaseKey = "node/app.db".parse().unwrap();
        assert_eq!(key.to_string(), "node/app.db");
        assert!("app.db".parse::<DatabaseKey>().is_err());
        assert!("a/b/c".parse::<DatabaseKey>().is_err());
    }
}
