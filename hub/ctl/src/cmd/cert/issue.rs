//! `hubctl cert issue`: a certificate for one hub, agent or operator.

use crate::authority::{Authority, Validity};
use crate::fault::Usage;
use crate::output;
use anyhow::Context;
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;
use time::{Duration, OffsetDateTime};
use walhub_common::tls::{Identity, Role};
use walhub_common::{AgentName, clock};

/// Issue a certificate for a hub, an agent or an operator, signed by DIR/ca.pem
#[derive(Debug, clap::Args)]
#[command(
    group = clap::ArgGroup::new("who").required(true).args(["agent", "operator", "hub"]),
    after_help = "\
Example:
  hubctl cert issue --dir pki --agent pos-17 --days 90
  hubctl cert issue --dir pki --hub hub --host hub.example --host 192.0.2.7
  hubctl cert issue --dir pki --operator ann -o ann/operator

An existing file is never overwritten. Keys are readable by their owner only."
)]
pub(crate) struct Args {
    /// For the agent of this name: it reaches its own databases
    #[arg(long, value_name = "NAME")]
    agent: Option<AgentName>,
    /// For an operator of this name: reaches every database
    #[arg(long, value_name = "NAME")]
    operator: Option<AgentName>,
    /// For the hub of this name; needs --host
    #[arg(long, value_name = "NAME", requires = "host")]
    hub: Option<AgentName>,
    /// DNS name or IP address by which others reach the hub; repeat for more
    #[arg(long, value_name = "DNS_OR_IP", conflicts_with_all = ["agent", "operator"])]
    host: Vec<String>,
    /// How long it is valid
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=36500))]
    days: u32,
    /// Exact end of its validity, which may lie in the past
    #[arg(long, value_name = "RFC3339", hide = true, conflicts_with = "days", value_parser = clock::parse_ms)]
    not_after: Option<i64>,
    /// Folder of ca.pem and ca.key
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// Write PREFIX.pem and PREFIX.key [default: DIR/<role>-<name>]
    #[arg(short, long, value_name = "PREFIX")]
    output: Option<PathBuf>,
    /// Print JSON: {"identity", "hosts", "certificate", "key", "ca", "not_after"}
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Issued {
    identity: String,
    hosts: Vec<String>,
    certificate: PathBuf,
    key: PathBuf,
    ca: PathBuf,
    not_after: String,
}

impl Args {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let identity = match (self.agent, self.operator, self.hub) {
            (Some(name), _, _) => Identity { role: Role::Agent, name },
            (_, Some(name), _) => Identity { role: Role::Operator, name },
            (_, _, Some(name)) => Identity { role: Role::Hub, name },
            (None, None, None) => return Err(Usage("name one of --agent, --operator, --hub".into()).into()),
        };
        let validity = match self.not_after {
            None => Validity::from_now(Duration::days(i64::from(self.days))),
            Some(ms) => Validity::until(
                OffsetDateTime::from_unix_timestamp(ms.div_euclid(1000))
                    .context("--not-after is out of bounds")?,
            ),
        };
        let authority = Authority::open(&self.dir)?;
        let prefix =
            self.output.unwrap_or_else(|| self.dir.join(format!("{}-{}", identity.role, identity.name)));
        let files = authority.issue(&identity, &self.host, validity, &prefix)?;
        let not_after = validity.not_after_text();
        if self.json {
            return output::json(&Issued {
                identity: identity.uri(),
                hosts: self.host,
                certificate: files.cert,
                key: files.key,
                ca: files.ca,
                not_after,
            });
        }
        output::lines(&[
            format!("certificate {} ({identity})", files.cert.display()),
            format!("key         {} (keep it secret)", files.key.display()),
            format!("CA          {}", files.ca.display()),
            format!("valid until {not_after}"),
        ])
    }
}
