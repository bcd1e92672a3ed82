//! Which databases, and which state of them: the arguments that restores and queries have in common.

use super::restore::target::{Target, parse_txid};
use walhub_common::{AgentName, DatabaseKey, Txid, clock};
use walhub_proto::v1;
use walhub_proto::v1::selector::By;

/// Databases beside one that is named (the group `many`), and a point in time or history (the group `point`).
#[derive(Debug, Clone, clap::Args)]
#[command(
    group = clap::ArgGroup::new("many").args(["agent", "selector", "all"]),
    group = clap::ArgGroup::new("point").args(["timestamp", "txid"]),
)]
pub(crate) struct Choice {
    /// Every database of this agent
    #[arg(long, value_name = "NAME")]
    pub(crate) agent: Option<AgentName>,
    /// Databases by a glob over AGENT/NAME, or by labels of agents such as site=berlin; may be given several times
    #[arg(long, value_name = "GLOB|KEY=VALUE")]
    pub(crate) selector: Vec<String>,
    /// Every database of the hub
    #[arg(long)]
    pub(crate) all: bool,
    /// The newest state at or before this time [default: the newest state]
    #[arg(long, value_name = "RFC3339", value_parser = clock::parse_ms, allow_hyphen_values = true)]
    timestamp: Option<i64>,
    /// Exactly after this transaction (decimal, or 16 hex digits)
    #[arg(long, value_name = "TXID", value_parser = parse_txid, conflicts_with = "many")]
    txid: Option<Txid>,
}

impl Choice {
    /// Databases are chosen, not one named.
    pub(crate) fn is_many(&self) -> bool {
        self.agent.is_some() || self.all || !self.selector.is_empty()
    }

    /// Which state.
    pub(crate) fn target(&self) -> Target {
        match (self.txid, self.timestamp) {
            (Some(txid), _) => Target::Txid(txid),
            (None, Some(ms)) => Target::Time(ms),
            (None, None) => Target::Latest,
        }
    }

    /// The databases as the hub wants them: the one that is named, or those that are chosen; all when nothing is said.
    pub(crate) fn selectors(&self, named: Option<&DatabaseKey>) -> Vec<v1::Selector> {
        let by_name = |text: String| v1::Selector { by: Some(By::Name(text)) };
        let by = |text: &String| match text.contains('=') {
            true => v1::Selector { by: Some(By::Labels(text.clone())) },
            false => by_name(text.clone()),
        };
        match (named, &self.agent) {
            (Some(database), _) => vec![by_name(database.to_string())],
            (None, Some(agent)) => vec![by_name(format!("{agent}/*"))],
            (None, None) if self.selector.is_empty() => vec![by_name("*/*".to_owned())],
            (None, None) => self.selector.iter().map(by).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        choice: Choice,
    }

    fn parsed(words: &[&str]) -> Result<Choice, clap::Error> {
        Line::try_parse_from([&["hubctl"], words].concat()).map(|line| line.choice)
    }

    fn selectors(words: &[&str]) -> Vec<String> {
        let of = |selector: v1::Selector| match selector.by {
            Some(By::Name(name)) => name,
            Some(By::Labels(labels)) => format!("labels {labels}"),
            None => String::new(),
        };
        parsed(words).unwrap().selectors(None).into_iter().map(of).collect()
    }

    #[test]
    fn databases_are_chosen_in_one_way_and_one_point_is_named() {
        assert_eq!(selectors(&["--agent", "pos-1"]), ["pos-1/*"]);
        assert_eq!(selectors(&["--all"]), ["*/*"]);
        assert_eq!(
            selectors(&["--selector", "a/*", "--selector", "site=berlin"]),
            ["a/*", "labels site=berlin"]
        );
        let one = parsed(&["--txid", "12"]).unwrap();
        assert!(!one.is_many() && one.target() == Target::Txid(Txid::new(12).unwrap()));
        let named = one.selectors(Some(&"pos-1/app.db".parse().unwrap()));
        assert_eq!(named, [v1::Selector { by: Some(By::Name("pos-1/app.db".into())) }]);
        let many = parsed(&["--all", "--timestamp", "1970-01-01T00:00:01Z"]).unwrap();
        assert!(many.is_many() && many.target() == Target::Time(1000));
        assert_eq!(parsed(&[]).unwrap().target(), Target::Latest);
        for bad in [
            &["--all", "--agent", "pos-1"][..],
            &["--agent", "pos-1", "--selector", "a/*"],
            &["--all", "--txid", "3"],
            &["--selector", "a/*", "--txid", "3"],
            &["--txid", "3", "--timestamp", "1970-01-01T00:00:01Z"],
            &["--txid", "0"],
        ] {
            assert!(parsed(bad).is_err(), "{bad:?}");
        }
    }
}
