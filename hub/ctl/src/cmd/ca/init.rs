//! `hubctl ca init`: makes the certificate authority of a hub.

use crate::authority::{Authority, Validity};
use crate::output;
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;
use time::Duration;

/// Make the certificate authority of a hub: DIR/ca.pem to hand out, DIR/ca.key to keep secret
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  hubctl ca init --dir pki
  hubctl cert issue --dir pki --hub hub --host hub.example --host 192.0.2.7
  hubctl cert issue --dir pki --agent pos-17
  hubctl cert issue --dir pki --operator ann")]
pub(crate) struct Args {
    /// Where to put ca.pem and ca.key; created when missing
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// Name inside the CA certificate, for people
    #[arg(long, default_value = "walhub CA")]
    name: String,
    /// How long it is valid
    #[arg(long, default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..=36500))]
    days: u32,
    /// Print JSON: {"certificate", "key", "not_after"}
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Made {
    certificate: PathBuf,
    key: PathBuf,
    not_after: String,
}

impl Args {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let validity = Validity::from_now(Duration::days(i64::from(self.days)));
        let files = Authority::create(&self.dir, &self.name, validity)?;
        let not_after = validity.not_after_text();
        if self.json {
            return output::json(&Made { certificate: files.cert, key: files.key, not_after });
        }
        output::lines(&[
            format!("CA certificate {} (give it to every agent, operator and hub)", files.cert.display()),
            format!("CA key         {} (keep it secret: whoever has it can be anyone)", files.key.display()),
            format!("valid until    {not_after}"),
        ])
    }
}
