//! `hubctl agents label`: words to pick nodes by.

use crate::connect::{self, ConnectArgs};
use crate::fault::Usage;
use crate::output;
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::process::ExitCode;
use walhub_common::AgentName;
use walhub_proto::v1;

/// Give an agent labels, or take them away
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Labels are kept by the hub; agents do not know them. A node that has not come yet may have some.

Example:
  hubctl agents label pos-17 site=berlin ring=1
  hubctl agents label pos-17 ring-
  hubctl restore --selector site=berlin --in-place --dry-run")]
pub(crate) struct Args {
    /// The agent
    #[arg(value_name = "AGENT")]
    agent: AgentName,
    /// KEY=VALUE sets a label, KEY- takes it away; none: show what it has
    #[arg(value_name = "KEY=VALUE|KEY-")]
    changes: Vec<String>,
    /// Print JSON: {"agent", "labels": {KEY: VALUE}}
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

#[derive(Serialize)]
struct Labelled {
    agent: String,
    labels: BTreeMap<String, String>,
}

impl Args {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let (mut set, mut remove) = (HashMap::new(), Vec::new());
        for change in &self.changes {
            match (change.split_once('='), change.strip_suffix('-')) {
                (Some((key, value)), _) => {
                    set.insert(key.to_owned(), value.to_owned());
                }
                (None, Some(key)) => remove.push(key.to_owned()),
                (None, None) => return Err(Usage(format!("{change:?} is neither KEY=VALUE nor KEY-")).into()),
            }
        }
        let hub = self.connect.connect().await?;
        let request = v1::LabelAgentRequest { agent: self.agent.to_string(), set, remove };
        let labels: BTreeMap<String, String> =
            connect::answer(hub.fleet().label_agent(request)).await?.labels.into_iter().collect();
        let agent = self.agent.to_string();
        match self.json {
            true => output::json(&Labelled { agent, labels }),
            false => output::lines(&[format!("{agent}: {}", super::words(&labels))]),
        }
    }
}
