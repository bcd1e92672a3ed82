//! A hub, its agents and its destinations as real processes in one scratch folder.

use crate::binaries::program;
use crate::certs::{Authority, Files, Who};
use crate::client::Client;
use crate::config::{Destination, agent_yml, free_port, hub_yml};
use crate::eventually::{ensure, eventually};
use crate::oracle::Image;
use crate::process::{Output, Process, run, tail};
use crate::scratch::Scratch;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use walhub_proto::v1;

/// How long anything in a test may take to settle.
pub const PATIENCE: Duration = Duration::from_secs(60);
const SHUTDOWN: Duration = Duration::from_secs(30);

/// The cluster. Everything in it ends with it.
#[derive(Debug)]
pub struct Cluster {
    hub: Option<Process>,
    agents: BTreeMap<String, Node>,
    client: Client,
    operator: Files,
    hub_tls: Files,
    authority: Authority,
    port: u16,
    destinations: Vec<Destination>,
    hub_extra: String,
    hub_environment: Vec<(String, String)>,
    // Last, so that the folder outlives the processes.
    scratch: Scratch,
}

#[derive(Debug, Default)]
struct Node {
    databases: Vec<(String, PathBuf)>,
    extra: String,
    environment: Vec<(String, PathBuf)>,
    hub: Option<String>,
    tls: Option<Files>,
    process: Option<Process>,
}

impl Cluster {
    /// Folders and certificates; nothing runs yet.
    pub fn new(name: &str) -> Cluster {
        let scratch = Scratch::new(name);
        for folder in ["logs", "data"] {
            std::fs::create_dir_all(scratch.join(folder)).expect("folder");
        }
        let authority = Authority::new(&scratch.join("certs"), "walhub test CA");
        let (operator, hub_tls) = (authority.issue(Who::Operator("ops")), authority.issue(Who::Hub("hub")));
        let port = free_port();
        let client = Client::new(&format!("127.0.0.1:{port}"), &operator);
        Cluster {
            hub: None,
            agents: BTreeMap::new(),
            client,
            operator,
            hub_tls,
            authority,
            port,
            destinations: Vec::new(),
            hub_extra: String::new(),
            hub_environment: Vec::new(),
            scratch,
        }
    }

    /// Adds a destination (before the hub starts).
    pub fn add(&mut self, destination: Destination) -> &mut Self {
        self.destinations.push(destination);
        self
    }

    /// The destinations, to change them: at the next start of the hub, or with [`Cluster::write_hub_config`] and a reload.
    pub fn destinations(&mut self) -> &mut Vec<Destination> {
        &mut self.destinations
    }

    /// Adds a folder of that name as a destination and gives its path.
    pub fn add_folder(&mut self, name: &str) -> PathBuf {
        let path = self.path(name);
        self.add(Destination::file(name, &path));
        path
    }

    /// Lines for `hub.yml` beside the usual ones, for example a `policy:` block.
    pub fn hub_lines(&mut self, lines: &str) -> &mut Self {
        self.hub_extra = lines.to_owned();
        self
    }

    /// Environment of the hub's process.
    pub fn hub_environment(&mut self, variables: &[(&str, &str)]) -> &mut Self {
        self.hub_environment =
            variables.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        self
    }

    /// Shows another certificate for the hub than its own good one.
    pub fn hub_certificate(&mut self, files: Files) -> &mut Self {
        self.hub_tls = files;
        self
    }

    /// Asks as another operator than the one of the cluster's own authority.
    pub fn operator_certificate(&mut self, files: Files) -> &mut Self {
        self.client = Client::new(&self.address(), &files);
        self.operator = files;
        self
    }

    /// Declares an agent and the databases it follows.
    pub fn agent(&mut self, name: &str, databases: &[(&str, &Path)]) -> &mut Self {
        let node = self.agents.entry(name.to_owned()).or_default();
        node.databases =
            databases.iter().map(|(name, path)| ((*name).to_owned(), path.to_path_buf())).collect();
        self
    }

    /// Lines for the agent's configuration beside the usual ones.
    pub fn agent_lines(&mut self, name: &str, lines: &str) -> &mut Self {
        self.agents.entry(name.to_owned()).or_default().extra = lines.to_owned();
        self
    }

    /// Environment of an agent's process.
    pub fn agent_environment(&mut self, name: &str, variables: &[(&str, &Path)]) -> &mut Self {
        let variables = variables.iter().map(|(key, value)| ((*key).to_owned(), value.to_path_buf()));
        self.agents.entry(name.to_owned()).or_default().environment = variables.collect();
        self
    }

    /// Lets an agent reach the hub by another address than the hub's own.
    pub fn agent_hub(&mut self, name: &str, address: &str) -> &mut Self {
        self.agents.entry(name.to_owned()).or_default().hub = Some(address.to_owned());
        self
    }

    /// Shows another certificate for an agent than its own good one.
    pub fn agent_certificate(&mut self, name: &str, files: Files) -> &mut Self {
        self.agents.entry(name.to_owned()).or_default().tls = Some(files);
        self
    }

    /// A path in the scratch folder.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.scratch.join(name)
    }

    /// The certificate authority.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// HOST:PORT of the hub.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Asks the hub as an operator.
    pub fn client(&self) -> &Client {
        &self.client
    }

    // --- the hub ---

    /// Starts the hub and waits until it listens.
    #[track_caller]
    pub fn start_hub(&mut self) {
        self.spawn_hub();
        let ready = self.path("hub.ready");
        eventually("the hub listens", PATIENCE, || {
            self.hub().assert_running();
            let address = std::fs::read_to_string(&ready).unwrap_or_default();
            ensure(!address.trim().is_empty(), || "no ready file yet".to_owned())
        });
    }

    /// Starts the hub without waiting for anything.
    pub fn spawn_hub(&mut self) {
        assert!(self.hub.is_none(), "the hub runs already");
        let ready = self.path("hub.ready");
        let _ = std::fs::remove_file(&ready);
        let config = self.write_hub_config();
        let mut command = Command::new(program("walhub-hub"));
        command.arg("run").arg("--config").arg(&config).arg("--ready-file").arg(&ready);
        command.envs(self.hub_environment.iter().map(|(key, value)| (key, value)));
        self.hub = Some(Process::spawn("hub", command, &self.path("logs/hub.log")));
    }

    /// Writes `hub.yml` as it is described now, and gives its path; a hub that runs hears of it by a reload.
    pub fn write_hub_config(&self) -> PathBuf {
        let (config, data) = (self.path("hub.yml"), self.path("hub-data"));
        let text = hub_yml(&self.address(), &data, &self.hub_tls, &self.destinations, &self.hub_extra);
        std::fs::write(&config, text).expect("hub.yml");
        config
    }

    /// The hub's process.
    #[track_caller]
    pub fn hub(&mut self) -> &mut Process {
        self.hub.as_mut().expect("the hub was started")
    }

    /// `kill -9` of the hub.
    pub fn kill_hub(&mut self) {
        if let Some(mut hub) = self.hub.take() {
            hub.kill9();
        }
    }

    /// Ends the hub in order.
    #[track_caller]
    pub fn stop_hub(&mut self) {
        let mut hub = self.hub.take().expect("the hub was started");
        let status = hub.terminate(SHUTDOWN);
        assert!(status.success(), "the hub ended with {status}:\n{}", tail(&hub.log(), 40));
    }

    // --- agents ---

    /// Starts an agent.
    #[track_caller]
    pub fn start_agent(&mut self, name: &str) {
        let config = self.write_agent_config(name);
        let mut command = Command::new(program("walhub-agent"));
        command.arg("run").arg("--config").arg(&config);
        let log = self.path(format!("logs/{name}.log"));
        let node = self.agents.get_mut(name).expect("declared");
        command.envs(node.environment.iter().map(|(key, value)| (key, value)));
        let process = Process::spawn(name, command, &log);
        assert!(node.process.replace(process).is_none(), "{name} runs already");
    }

    fn write_agent_config(&mut self, name: &str) -> PathBuf {
        let config = self.agent_config(name);
        let state = self.path(format!("{name}-state"));
        let address = self.address();
        let node = self.agents.get_mut(name).unwrap_or_else(|| panic!("agent {name} is not declared"));
        let tls = node.tls.get_or_insert_with(|| self.authority.issue(Who::Agent(name)));
        let address = node.hub.as_ref().unwrap_or(&address);
        let text = agent_yml(address, &state, tls, &node.databases, &node.extra);
        std::fs::write(&config, text).expect("agent.yml");
        config
    }

    /// Path of an agent's configuration.
    pub fn agent_config(&self, name: &str) -> PathBuf {
        self.path(format!("{name}.yml"))
    }

    /// An agent's process.
    #[track_caller]
    pub fn agent_process(&mut self, name: &str) -> &mut Process {
        let node = self.agents.get_mut(name).expect("declared");
        node.process.as_mut().unwrap_or_else(|| panic!("{name} was not started"))
    }

    /// `kill -9` of an agent.
    pub fn kill_agent(&mut self, name: &str) {
        if let Some(mut process) = self.agents.get_mut(name).and_then(|node| node.process.take()) {
            process.kill9();
        }
    }

    /// Ends an agent in order.
    #[track_caller]
    pub fn stop_agent(&mut self, name: &str) {
        let node = self.agents.get_mut(name).expect("declared");
        let mut process = node.process.take().expect("started");
        let status = process.terminate(SHUTDOWN);
        assert!(status.success(), "{name} ended with {status}:\n{}", tail(&process.log(), 40));
    }

    // --- commands ---

    /// Runs hubctl as an operator of this hub.
    #[track_caller]
    pub fn hubctl(&self, arguments: &[&str]) -> Output {
        self.hubctl_as(&self.operator, arguments)
    }

    /// Runs hubctl with some certificate.
    #[track_caller]
    pub fn hubctl_as(&self, files: &Files, arguments: &[&str]) -> Output {
        run(self.hubctl_of(files, arguments))
    }

    /// hubctl as an operator of this hub, not started.
    pub fn hubctl_command(&self, arguments: &[&str]) -> Command {
        self.hubctl_of(&self.operator, arguments)
    }

    fn hubctl_of(&self, files: &Files, arguments: &[&str]) -> Command {
        let mut command = Command::new(program("hubctl"));
        command.args(arguments);
        command.env("WALHUB_HUB", self.address());
        command.env("WALHUB_CA", &files.ca).env("WALHUB_CERT", &files.cert).env("WALHUB_KEY", &files.key);
        command
    }

    /// Runs an agent's command (`restore`, `status`, `databases`) with its configuration.
    #[track_caller]
    pub fn agent_command(&self, name: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new(program("walhub-agent"));
        command.args(arguments).arg("--config").arg(self.agent_config(name));
        run(command)
    }

    // --- what the hub says ---

    /// One database, as the hub sees it.
    pub fn database(&self, agent: &str, name: &str) -> Result<v1::DatabaseStatus, String> {
        let status = self.client.status().map_err(|status| format!("status: {}", status.message()))?;
        let is_it = |database: &v1::DatabaseStatus| {
            database.database.as_ref().is_some_and(|key| key.agent == agent && key.name == name)
        };
        let found = status.databases.into_iter().find(is_it);
        found.ok_or_else(|| format!("the hub does not know {agent}/{name}"))
    }

    /// Buffered position of a database, (0, 0) when there is none.
    pub fn buffered(&self, agent: &str, name: &str) -> Result<(u64, u64), String> {
        let position = self.database(agent, name)?.buffered.unwrap_or_default();
        Ok((position.txid, position.checksum))
    }

    /// Waits until the hub's buffer holds exactly the live image of a database whose writers are quiet; gives that
    /// image and its TXID.
    #[track_caller]
    pub fn await_buffered(&self, agent: &str, name: &str, path: &Path) -> (Image, u64) {
        let image = Image::live(path);
        let expected = image.checksum().get();
        let txid = eventually(&format!("{agent}/{name} is buffered up to the live image"), PATIENCE, || {
            let (txid, checksum) = self.buffered(agent, name)?;
            ensure(checksum == expected, || {
                format!("the hub is at {txid} with {checksum:016x}, the live image is {expected:016x}")
            })?;
            Ok(txid)
        });
        (image, txid)
    }

    /// Waits until every destination holds `txid` of a database.
    #[track_caller]
    pub fn await_everywhere(&self, agent: &str, name: &str, txid: u64) {
        eventually(&format!("{agent}/{name} is everywhere up to {txid}"), PATIENCE, || {
            let copies = self.database(agent, name)?.copies;
            let all = copies.len() == self.destinations.len() && copies.iter().all(|copy| copy.txid >= txid);
            ensure(all, || format!("{copies:?}"))
        });
    }

    // --- restores ---

    /// `hubctl restore` of one database into a new file; `options` such as `--txid N`.
    #[track_caller]
    pub fn restore(&self, database: &str, out: &str, options: &[&str]) -> PathBuf {
        let path = self.path(out);
        let text = path.display().to_string();
        let mut arguments = vec!["restore", database, "-o", &text];
        arguments.extend(options);
        self.hubctl(&arguments).success();
        path
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let Ok(logs) = std::fs::read_dir(self.path("logs")) else { return };
        for log in logs.flatten() {
            let text = std::fs::read(log.path()).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            eprintln!("--- end of {} ---\n{}", log.path().display(), tail(&text, 60));
        }
    }
}
