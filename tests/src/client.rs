//! A gRPC client over real mTLS, for what the tests ask the hub themselves: its status, and messages no honest agent
//! would send.

use crate::certs::Files;
use hyper_util::rt::TokioIo;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};
use walhub_common::tls::{self, Connector, TlsMaterial, TlsPaths};
use walhub_proto::v1;
use walhub_proto::v1::fleet_service_client::FleetServiceClient;
use walhub_proto::v1::replication_service_client::ReplicationServiceClient;
use walhub_proto::v1::restore_service_client::RestoreServiceClient;

/// A client with one certificate. Connects when it is used, and again after the hub was away.
#[derive(Clone, Debug)]
pub struct Client {
    runtime: Arc<Runtime>,
    channel: Channel,
}

impl Client {
    /// For the hub at `address` (HOST:PORT), with the certificate in `files`, whatever its dates say: the hub judges.
    pub fn new(address: &str, files: &Files) -> Client {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = Arc::new(runtime.expect("runtime"));
        let Files { ca, cert, key } = files.clone();
        let material = TlsMaterial::read(TlsPaths { ca, cert, key }).expect("certificates");
        let connector = Arc::new(Connector::from_material(&material).expect("certificates"));
        let address = address.to_owned();
        let connect = tower::service_fn(move |_: tonic::transport::Uri| {
            let (address, connector) = (address.clone(), connector.clone());
            async move { tls::connect(&address, None, &connector).await.map(TokioIo::new) }
        });
        let entered = runtime.enter();
        let channel = Endpoint::from_static("http://hub")
            .timeout(Duration::from_secs(60))
            .connect_with_connector_lazy(connect);
        drop(entered);
        Client { runtime, channel }
    }

    /// Runs a future of this client to its end.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    /// The channel, for services this type has no method for.
    pub fn replication(&self) -> ReplicationServiceClient<Channel> {
        ReplicationServiceClient::new(self.channel.clone())
    }

    /// The restore service.
    pub fn restore(&self) -> RestoreServiceClient<Channel> {
        RestoreServiceClient::new(self.channel.clone())
    }

    /// The hub's picture of everything this certificate may see.
    pub fn status(&self) -> Result<v1::StatusResponse, tonic::Status> {
        let request = v1::StatusRequest { agent: String::new(), database: String::new() };
        let mut fleet = FleetServiceClient::new(self.channel.clone());
        self.block_on(async { fleet.status(request).await }).map(tonic::Response::into_inner)
    }

    /// LTX files of a database at one source ("" for all).
    pub fn files(
        &self,
        agent: &str,
        name: &str,
        source: &str,
    ) -> Result<v1::ListFilesResponse, tonic::Status> {
        let database = Some(v1::DatabaseRef { agent: agent.to_owned(), name: name.to_owned() });
        let request = v1::ListFilesRequest { database, source: source.to_owned() };
        let mut fleet = FleetServiceClient::new(self.channel.clone());
        self.block_on(async { fleet.list_files(request).await }).map(tonic::Response::into_inner)
    }
}
