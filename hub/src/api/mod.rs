//! The gRPC face of the hub: convert, ask the handle, convert back. No decisions but one: who may ask ([`peer`]).

mod checksums;
mod control;
mod destinations;
mod drills;
mod fleet;
mod images;
mod import;
mod jobs;
mod listen;
mod pages;
mod peer;
mod replication;
mod restore;
mod retention;
mod staged;
mod status;

pub use listen::{Connection, Connections, MAX_CONNECTIONS, accept_loop};

use crate::buffer::WalBuffer;
use crate::drills::Drills;
use crate::fleet::Fleet;
use crate::import::Importer;
use crate::ingest::Ingest;
use crate::jobs::{Jobs, Planner};
use crate::reload::Reloader;
use crate::restore::Restores;
use crate::retain::Retainer;
use crate::staging::Staging;
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::server::{Router, Server};
use walhub_common::limits::{MAX_MESSAGE_BYTES, MAX_REQUEST_BYTES};
use walhub_common::task::TaskGroup;
use walhub_proto::v1::control_service_server::ControlServiceServer;
use walhub_proto::v1::destinations_service_server::DestinationsServiceServer;
use walhub_proto::v1::drill_service_server::DrillServiceServer;
use walhub_proto::v1::fleet_service_server::FleetServiceServer;
use walhub_proto::v1::image_service_server::ImageServiceServer;
use walhub_proto::v1::import_service_server::ImportServiceServer;
use walhub_proto::v1::job_service_server::JobServiceServer;
use walhub_proto::v1::replication_service_server::ReplicationServiceServer;
use walhub_proto::v1::restore_service_server::RestoreServiceServer;
use walhub_proto::v1::retention_service_server::RetentionServiceServer;

/// A peer that is silent this long is asked for a sign of life, and dropped when it gives none in as long again.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// Bytes one stream, and one connection, may have under way before its reader has taken them. A session that is at its
/// bound reads no more, and then this much of each agent waits in memory.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 2 << 20;
/// HTTP/2 frames that agents may send: with the least of 16 KiB each would cost two TLS records and a write.
const MAX_FRAME: u32 = 64 << 10;

/// What the services are made of.
#[derive(Clone)]
pub struct Handles {
    /// Takes segments.
    pub ingest: Ingest,
    /// Gives databases back.
    pub restores: Restores,
    /// Keeps parts of first snapshots.
    pub staging: Arc<Staging>,
    /// Takes a changed configuration.
    pub reloader: Reloader,
    /// Knows who and where.
    pub fleet: Arc<Fleet>,
    /// Holds what is buffered.
    pub buffer: Arc<dyn WalBuffer>,
    /// Takes histories of others.
    pub importer: Arc<Importer>,
    /// Deletes what is no longer kept.
    pub retainer: Retainer,
    /// Tries restores.
    pub drills: Drills,
    /// Restores on nodes.
    pub jobs: Jobs,
    /// Plans them.
    pub planner: Planner,
    /// Owns the tasks behind the streams.
    pub tasks: TaskGroup,
    /// Start of the hub, Unix ms.
    pub started_ms: i64,
}

/// All services, with their limits.
pub fn router(handles: Handles) -> Router {
    let replication = ReplicationServiceServer::new(replication::Service::new(handles.clone()))
        .max_decoding_message_size(MAX_MESSAGE_BYTES);
    let restore = RestoreServiceServer::new(restore::Service::new(handles.clone()))
        .max_decoding_message_size(MAX_MESSAGE_BYTES);
    let control = ControlServiceServer::new(control::Service::new(handles.clone()))
        .max_decoding_message_size(MAX_REQUEST_BYTES);
    let images = ImageServiceServer::new(images::Service::new(handles.clone()))
        .max_decoding_message_size(MAX_MESSAGE_BYTES);
    let destinations = DestinationsServiceServer::new(destinations::Service::new(handles.clone()))
        .max_decoding_message_size(MAX_REQUEST_BYTES);
    let import = ImportServiceServer::new(import::Service::new(handles.clone()))
        .max_decoding_message_size(MAX_REQUEST_BYTES);
    let retention = RetentionServiceServer::new(retention::Service::new(handles.clone()))
        .max_decoding_message_size(MAX_REQUEST_BYTES);
    let jobs = JobServiceServer::new(jobs::Service::new(handles.clone()))
        .max_decoding_message_size(MAX_REQUEST_BYTES);
    let drills = DrillServiceServer::new(drills::Service::new(handles.clone()))
        .max_decoding_message_size(MAX_REQUEST_BYTES);
    let fleet =
        FleetServiceServer::new(fleet::Service::new(handles)).max_decoding_message_size(MAX_REQUEST_BYTES);
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .add_service(replication)
        .add_service(restore)
        .add_service(images)
        .add_service(fleet)
        .add_service(control)
        .add_service(destinations)
        .add_service(retention)
        .add_service(import)
        .add_service(jobs)
        .add_service(drills)
}
