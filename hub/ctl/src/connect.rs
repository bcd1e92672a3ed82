//! How to reach a hub: flags, certificates, a channel with deadlines, and what can go wrong as a sentence.

use crate::fault::{Usage, sentence};
use anyhow::anyhow;
use hyper_util::rt::TokioIo;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};
use walhub_common::limits::{HANDSHAKE_TIMEOUT, MAX_MESSAGE_BYTES};
use walhub_common::tls::{self, Connector, TlsPaths};
use walhub_proto::v1;
use walhub_proto::v1::control_service_client::ControlServiceClient;
use walhub_proto::v1::destinations_service_client::DestinationsServiceClient;
use walhub_proto::v1::drill_service_client::DrillServiceClient;
use walhub_proto::v1::fleet_service_client::FleetServiceClient;
use walhub_proto::v1::import_service_client::ImportServiceClient;
use walhub_proto::v1::job_service_client::JobServiceClient;
use walhub_proto::v1::restore_service_client::RestoreServiceClient;
use walhub_proto::v1::retention_service_client::RetentionServiceClient;

/// For an answer that is one message.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// A peer that answers no HTTP/2 ping for this long is gone.
const PING_TIMEOUT: Duration = Duration::from_secs(20);
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// A status or listing of a large fleet.
const MAX_STATUS_BYTES: usize = 64 * 1024 * 1024;
/// Restore bytes on their way, per stream and per connection: enough for a fast link with some distance.
const STREAM_WINDOW: u32 = 4 * 1024 * 1024;
const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;

/// Where the hub is and who we are.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Connection")]
pub(crate) struct ConnectArgs {
    /// Address of the hub
    #[arg(long, env = "WALHUB_HUB", hide_env_values = true, value_name = "HOST:PORT")]
    hub: Option<String>,
    /// Certificate of the hub's CA (PEM)
    #[arg(long, env = "WALHUB_CA", hide_env_values = true, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Our certificate (PEM), of an operator as a rule
    #[arg(long, env = "WALHUB_CERT", hide_env_values = true, value_name = "FILE")]
    cert: Option<PathBuf>,
    /// Its key (PEM)
    #[arg(long, env = "WALHUB_KEY", hide_env_values = true, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Name in the hub's certificate, when the address is not it
    #[arg(long, env = "WALHUB_SERVER_NAME", hide_env_values = true, value_name = "NAME")]
    server_name: Option<String>,
}

/// An open connection.
#[derive(Debug, Clone)]
pub(crate) struct Hub {
    channel: Channel,
}

impl ConnectArgs {
    /// Connects; returns when the hub has accepted us.
    pub(crate) async fn connect(&self) -> anyhow::Result<Hub> {
        let (Some(hub), Some(ca), Some(cert), Some(key)) = (&self.hub, &self.ca, &self.cert, &self.key)
        else {
            return Err(Usage(self.missing()).into());
        };
        let paths = TlsPaths { ca: ca.clone(), cert: cert.clone(), key: key.clone() };
        let connector = Arc::new(Connector::open(paths)?);
        let (address, name) =
            (Arc::<str>::from(hub.as_str()), self.server_name.as_deref().map(Arc::<str>::from));
        let connect = tower::service_fn(move |_| {
            let (connector, address, name) = (Arc::clone(&connector), Arc::clone(&address), name.clone());
            async move { tls::connect(&address, name.as_deref(), &connector).await.map(TokioIo::new) }
        });
        // TLS is inside the connector, and it knows the address: the URI only names the HTTP/2 authority.
        let endpoint = Endpoint::from_static("http://hub")
            .connect_timeout(HANDSHAKE_TIMEOUT * 2)
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        let channel = endpoint.connect_with_connector(connect).await;
        let channel = channel.map_err(|e| anyhow!(tls::explain(&e).unwrap_or_else(|| e.to_string())))?;
        Ok(Hub { channel })
    }

    /// The address that was given; empty when none was.
    pub(crate) fn address(&self) -> &str {
        self.hub.as_deref().unwrap_or_default()
    }

    fn missing(&self) -> String {
        let all = [
            ("--hub HOST:PORT (or WALHUB_HUB)", self.hub.is_none()),
            ("--ca FILE (or WALHUB_CA)", self.ca.is_none()),
            ("--cert FILE (or WALHUB_CERT)", self.cert.is_none()),
            ("--key FILE (or WALHUB_KEY)", self.key.is_none()),
        ];
        let missing: Vec<&str> = all.iter().filter(|(_, missing)| *missing).map(|(name, _)| *name).collect();
        format!("to reach the hub, give {}", missing.join(", "))
    }
}

impl Hub {
    /// One picture of everything, or of one agent, or of one database of it.
    pub(crate) async fn status(&self, agent: &str, database: &str) -> anyhow::Result<v1::StatusResponse> {
        let mut client = self.fleet();
        let request = v1::StatusRequest { agent: agent.to_owned(), database: database.to_owned() };
        answer(client.status(with_deadline(request))).await
    }

    /// LTX files of one database.
    pub(crate) async fn list_files(
        &self,
        database: v1::DatabaseRef,
        source: String,
    ) -> anyhow::Result<v1::ListFilesResponse> {
        let mut client = self.fleet();
        let request = v1::ListFilesRequest { database: Some(database), source };
        answer(client.list_files(with_deadline(request))).await
    }

    /// The hub reads its configuration file again.
    pub(crate) async fn reload(&self, dry_run: bool) -> anyhow::Result<v1::ReloadResponse> {
        let mut client = ControlServiceClient::new(self.channel.clone());
        answer(client.reload(with_deadline(v1::ReloadRequest { dry_run }))).await
    }

    /// A trial of one destination, or of all.
    pub(crate) async fn check_destinations(
        &self,
        name: String,
    ) -> anyhow::Result<v1::CheckDestinationsResponse> {
        let mut client = DestinationsServiceClient::new(self.channel.clone());
        answer(client.check_destinations(with_deadline(v1::CheckDestinationsRequest { name }))).await
    }

    /// What a restore would do.
    pub(crate) async fn plan_restore(&self, request: v1::RestoreRequest) -> anyhow::Result<v1::RestorePlan> {
        let mut client = self.restores();
        answer(client.plan_restore(with_deadline(request))).await
    }

    /// The stream of a restore.
    pub(crate) fn restores(&self) -> RestoreServiceClient<Channel> {
        RestoreServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES.max(MAX_STATUS_BYTES))
    }

    /// The connection.
    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Histories of others.
    pub(crate) fn imports(&self) -> ImportServiceClient<Channel> {
        ImportServiceClient::new(self.channel.clone())
    }

    /// What destinations keep.
    pub(crate) fn retention(&self) -> RetentionServiceClient<Channel> {
        RetentionServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_STATUS_BYTES)
    }

    /// Restores that are tried.
    pub(crate) fn drills(&self) -> DrillServiceClient<Channel> {
        DrillServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_STATUS_BYTES)
    }

    /// Restores on nodes.
    pub(crate) fn jobs(&self) -> JobServiceClient<Channel> {
        JobServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_STATUS_BYTES)
    }

    /// Agents and databases.
    pub(crate) fn fleet(&self) -> FleetServiceClient<Channel> {
        FleetServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_STATUS_BYTES)
    }
}

fn with_deadline<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(ANSWER_TIMEOUT);
    request
}

/// Waits for an answer that is one message.
pub(crate) async fn answer<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> anyhow::Result<T> {
    // The hub may not look at the deadline that the request carries.
    match tokio::time::timeout(ANSWER_TIMEOUT, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(anyhow!(sentence(&status))),
        Err(_) => Err(anyhow!("the hub did not answer within {} s; try again", ANSWER_TIMEOUT.as_secs())),
    }
}
