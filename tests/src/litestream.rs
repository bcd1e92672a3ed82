//! Stock litestream as a process: restores what the hub wrote, and runs beside us where the two are compared.

use crate::process::{Output, Process, run};
use crate::services::S3;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The stock program.
#[derive(Clone, Debug)]
pub struct Litestream {
    program: PathBuf,
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
        let replica = format!("      type: file\n      path: {}\n", replica.display());
        self.restore_by_config(&replica, out, options)
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
        let S3 { endpoint, access_key, secret_key, region } = server;
        let replica = format!(
            "      type: s3\n      bucket: {bucket}\n      path: {prefix}\n      region: {region}\n      \
             endpoint: {endpoint}\n      access-key-id: {access_key}\n      \
             secret-access-key: {secret_key}\n      force-path-style: true\n"
        );
        self.restore_by_config(&replica, out, options)
    }

    /// The program, without what the machine's own environment says about S3.
    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("AWS_")) {
            command.env_remove(name);
        }
        command
    }

    fn restore_by_config(&self, replica: &str, out: &Path, options: &[&str]) -> Output {
        let config = out.with_extension("litestream.yml");
        let source = out.with_extension("source");
        let text = format!("dbs:\n  - path: {}\n    replica:\n{replica}", source.display());
        std::fs::write(&config, text).expect("litestream configuration");
        let mut command = self.command();
        command.arg("restore").arg("-config").arg(&config).args(options).arg("-o").arg(out).arg(&source);
        run(command)
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
