//! Stock litestream as a process: restores what the hub wrote, and runs beside us where the two are compared.

use crate::process::{Output, Process, run};
use crate::services::{Azure, Gcs, S3};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The stock program.
#[derive(Clone, Debug)]
pub struct Litestream {
    program: PathBuf,
}

/// A place where litestream keeps one database.
#[derive(Clone, Copy, Debug)]
pub enum Replica<'a> {
    /// A folder.
    File(&'a Path),
    /// A bucket and a prefix in it.
    S3 {
        /// The server.
        server: &'a S3,
        /// The bucket.
        bucket: &'a str,
        /// The prefix.
        prefix: &'a str,
    },
    /// A prefix in Azure's container `walhub`.
    Azure(&'a Azure, &'a str),
    /// A prefix in the bucket `walhub` of the server in Google's place.
    Gcs(&'a Gcs, &'a str),
}

impl Replica<'_> {
    fn config(&self, database: &Path) -> String {
        let replica = match self {
            Replica::File(path) => format!("type: file\n      path: {}", path.display()),
            Replica::S3 { server: S3 { endpoint, access_key, secret_key, region }, bucket, prefix } => {
                format!(
                    "type: s3\n      bucket: {bucket}\n      path: {prefix}\n      region: {region}\n      \
                 endpoint: {endpoint}\n      access-key-id: {access_key}\n      \
                 secret-access-key: {secret_key}\n      force-path-style: true"
                )
            }
            Replica::Azure(Azure { endpoint, account, key }, prefix) => format!(
                "type: abs\n      bucket: walhub\n      path: {prefix}\n      endpoint: {endpoint}\n      \
                 account-name: {account}\n      account-key: {key}"
            ),
            Replica::Gcs(_, prefix) => format!("type: gs\n      bucket: walhub\n      path: {prefix}"),
        };
        format!("dbs:\n  - path: {}\n    replica:\n      {replica}\n", database.display())
    }

    fn environment(&self, command: &mut Command) {
        if let Replica::Gcs(Gcs { endpoint, .. }, _) = self {
            command.env("STORAGE_EMULATOR_HOST", endpoint.trim_start_matches("http://"));
        }
    }
}

impl Litestream {
    /// That of this test run; `None` (after a line on stderr) when there is none.
    pub fn find() -> Option<Litestream> {
        Some(Litestream { program: crate::services::litestream()? })
    }

    /// Restores from a folder, by URL; `options` such as `-timestamp T`.
    pub fn restore_file(&self, replica: &Path, out: &Path, options: &[&str]) -> Output {
        let mut command = self.command();
        command.arg("restore").args(options).arg("-o").arg(out);
        command.arg(format!("file://{}", replica.display()));
        run(command)
    }

    /// Restores from a folder, by a configuration file (which asks no time bounds beforehand).
    pub fn restore_file_by_config(&self, replica: &Path, out: &Path, options: &[&str]) -> Output {
        self.restore_at(&Replica::File(replica), out, options)
    }

    /// Restores from a bucket, by a configuration file.
    pub fn restore_s3(
        &self,
        server: &S3,
        bucket: &str,
        prefix: &str,
        out: &Path,
        options: &[&str],
    ) -> Output {
        self.restore_at(&Replica::S3 { server, bucket, prefix }, out, options)
    }

    /// Restores from any place, by a configuration file.
    pub fn restore_at(&self, replica: &Replica<'_>, out: &Path, options: &[&str]) -> Output {
        let config = out.with_extension("litestream.yml");
        let source = out.with_extension("source");
        std::fs::write(&config, replica.config(&source)).expect("litestream configuration");
        let mut command = self.command();
        replica.environment(&mut command);
        command.arg("restore").arg("-config").arg(&config).args(options).arg("-o").arg(out).arg(&source);
        run(command)
    }

    /// Follows a database to any place.
    pub fn replicate_to(&self, database: &Path, replica: &Replica<'_>, log: &Path) -> Process {
        let config = log.with_extension("yml");
        std::fs::write(&config, replica.config(database)).expect("litestream configuration");
        let mut command = self.command();
        replica.environment(&mut command);
        command.arg("replicate").arg("-config").arg(&config);
        Process::spawn("litestream", command, log)
    }

    /// The program, without what the machine's own environment says about S3.
    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("AWS_")) {
            command.env_remove(name);
        }
        command
    }

    /// Follows what a configuration file says.
    pub fn replicate_by_config(&self, config: &Path, log: &Path) -> Process {
        let mut command = self.command();
        command.arg("replicate").arg("-config").arg(config);
        Process::spawn("litestream", command, log)
    }

    /// Follows a database into a folder.
    pub fn replicate(&self, database: &Path, replica: &Path, log: &Path) -> Process {
        let mut command = self.command();
        command.arg("replicate").arg(database).arg(format!("file://{}", replica.display()));
        Process::spawn("litestream", command, log)
    }
}
