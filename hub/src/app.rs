//! The hub as a value: open what it owns, bind, serve, go down in order. Tests run it in their own process.
//!
//! Bind early, serve late: a taken port or folder is reported before anything starts. Shutdown order: no new sessions ▸
//! sessions settle what is under way ▸ lanes finish their current puts ▸ the buffer is flushed and closed.

use crate::api::{self, Handles};
use crate::buffer::disk::{DiskBuffer, Options, lock_folder};
use crate::buffer::{BufferError, WalBuffer};
use crate::compact::Compactor;
use crate::config::{BufferConfig, Config};
use crate::copies::{Board, FolderIds, InService, Meters};
use crate::drills::{self, Drills};
use crate::fanout::Fanout;
use crate::fleet::{Epochs, Fleet, LabelBook, OrderDesk, Registry};
use crate::import::Importer;
use crate::ingest::{Ingest, Origins};
use crate::jobs::{Jobs, Journals, Planner};
use crate::merge::LtxMerger;
use crate::metrics::{self, Door};
use crate::mirror::{self, Ledger, Mirror};
use crate::rebuild::{self, FolderError};
use crate::reload::{self, Reloader};
use crate::restore::Restores;
use crate::retain::{Holds, Retainer};
use crate::staging::{self, Sealed, Staging};
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use walhub_common::clock;
use walhub_common::folder_lock::FolderLock;
use walhub_common::task::TaskGroup;
use walhub_common::tls::{Acceptor, LoadError};
use walhub_store::destinations::{DestinationError, DynDestination};

/// How long sessions and restores may take to end.
const SESSIONS_DEADLINE: Duration = Duration::from_secs(10);
/// How long current puts may take to end.
const PUTS_DEADLINE: Duration = Duration::from_secs(15);
/// Folder of files in the making, inside the data folder.
const TMP: &str = "tmp";
/// Folder of compacted files in the making, inside the data folder.
const COMPACTION: &str = "compaction";

/// Why the hub cannot start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// Certificates.
    #[error("certificates: {0}")]
    Tls(#[from] LoadError),
    /// Address.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// From the configuration.
        address: SocketAddr,
        /// The cause.
        source: io::Error,
    },
    /// Address of metrics.
    #[error("metrics.listen: cannot listen on {address}: {source}")]
    Metrics {
        /// From the configuration.
        address: SocketAddr,
        /// The cause.
        source: io::Error,
    },
    /// Buffer.
    #[error("cannot open the buffer in {}: {source}", .path.display())]
    Buffer {
        /// Data folder.
        path: PathBuf,
        /// The cause.
        source: BufferError,
    },
    /// Another file of the data folder.
    #[error("data folder {}: {source}", .path.display())]
    Data {
        /// Data folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The data folder is not that of a whole hub.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// A destination that cannot even be made.
    #[error(transparent)]
    Destination(#[from] DestinationError),
    /// The buffer's disk failed.
    #[error("the buffer takes nothing more; start the hub again, it settles what is on disk")]
    Broken,
    /// The server broke.
    #[error("serving failed: {0}")]
    Serve(String),
}

/// A hub that owns its port and its data folder and has not begun to work.
pub struct App {
    config: Config,
    meters: Arc<Meters>,
    folders: Arc<FolderIds>,
    buffer: Arc<dyn WalBuffer>,
    destinations: Vec<DynDestination>,
    epochs: Epochs,
    labels: LabelBook,
    staging: Arc<Staging>,
    holds: Arc<Holds>,
    journals: Journals,
    drilled: drills::Ledger,
    ledger: Ledger,
    listener: TcpListener,
    address: SocketAddr,
    metrics: Option<Door>,
    acceptor: Arc<Acceptor>,
}

/// Takes the data folder for this process.
pub fn lock(config: &Config) -> Result<Arc<FolderLock>, AppError> {
    let path = &config.data_dir;
    let taken = lock_folder(path).map_err(|source| AppError::Buffer { path: path.clone(), source })?;
    Ok(Arc::new(taken))
}

impl App {
    /// Takes everything that can be refused: certificates, port, data folder, destinations. Nothing is sent anywhere.
    ///
    /// `lock` is that of the data folder ([`lock`]). Whoever calls keeps it until the runtime has ended: work on files that
    /// was given up by a shutdown may go on until then.
    pub async fn build(config: Config, lock: Arc<FolderLock>) -> Result<App, AppError> {
        let acceptor = Arc::new(Acceptor::open(config.tls.clone())?);
        let refused = |source| AppError::Listen { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        let metrics = match config.metrics {
            Some(address) => {
                let door = Door::open(address).await;
                Some(door.map_err(|source| AppError::Metrics { address, source })?)
            }
            None => None,
        };
        rebuild::refuse_unfinished(&config.data_dir)?;
        let path = config.data_dir.clone();
        let BufferConfig { max_bytes, when_full } = config.buffer;
        let merger = Arc::new(LtxMerger);
        let (buffer, epochs, labels, staging, holds, journals, drilled, ledger) =
            tokio::task::spawn_blocking(move || {
                let data = |source| AppError::Data { path: path.clone(), source };
                let sealed = Arc::new(Sealed::open(&path).map_err(data)?);
                let payloads = Some(sealed.clone() as _);
                let lock = Some(lock);
                let options = Options { when_full, merger, payloads, lock, ..Options::new(&path, max_bytes) };
                let buffer = DiskBuffer::open(options)
                    .map_err(|source| AppError::Buffer { path: path.clone(), source })?;
                let epochs = Epochs::open(&path).map_err(data)?;
                let labels = LabelBook::open(&path).map_err(data)?;
                let staging = Staging::open(&path, max_bytes, sealed).map_err(data)?;
                staging.reconcile(&buffer).map_err(data)?;
                let holds = Holds::open(&path).map_err(data)?;
                let journals = Journals::open(&path).map_err(data)?;
                let drilled = drills::Ledger::open(&path).map_err(data)?;
                let ledger = Ledger::open(&path).map_err(data)?;
                Ok::<_, AppError>((
                    buffer,
                    epochs,
                    labels,
                    Arc::new(staging),
                    Arc::new(holds),
                    journals,
                    drilled,
                    ledger,
                ))
            })
            .await
            .map_err(|e| AppError::Serve(e.to_string()))??;
        let meters = Arc::new(Meters::open(&config.data_dir));
        let folders = FolderIds::open(&config.data_dir)
            .map_err(|source| AppError::Data { path: config.data_dir.clone(), source })?;
        let mut destinations = Vec::new();
        for entry in &config.destinations {
            destinations.push(reload::make(entry, &meters, Some(&folders)).await?);
        }
        Ok(App {
            config,
            meters,
            folders,
            buffer: Arc::new(buffer),
            destinations,
            epochs,
            labels,
            staging,
            holds,
            journals,
            drilled,
            ledger,
            listener,
            address,
            metrics,
            acceptor,
        })
    }

    /// The address it listens on, with the real port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Works until `stop` is ready, then goes down in order. Everything acknowledged is on disk when it returns. Each of
    /// `hangups` makes it read its configuration again.
    pub async fn serve(
        self,
        stop: impl Future<Output = ()> + Send,
        hangups: mpsc::Receiver<()>,
    ) -> Result<(), AppError> {
        let App {
            config,
            meters,
            folders,
            buffer,
            destinations,
            epochs,
            labels,
            staging,
            holds,
            journals,
            drilled,
            ledger,
            listener,
            address,
            metrics,
            acceptor,
        } = self;
        let count = destinations.len();
        let board = Arc::new(Board::with_meters(reload::first_roster(&config, destinations), meters));
        let (registry, orders) = (Registry::default(), OrderDesk::default());
        let fleet = Arc::new(Fleet { epochs, labels, registry, orders, board: board.clone() });
        // Before anything is deleted: what jobs still have to restore stays.
        let on_nodes = TaskGroup::new("jobs");
        let jobs = Jobs::start(journals, fleet.clone(), &on_nodes);
        let fanout = Fanout::start(buffer.clone(), board.clone(), &config.data_dir.join(TMP))
            .map_err(|source| AppError::Data { path: config.data_dir.clone(), source })?;
        let fanout = Arc::new(fanout);
        let (levels, for_compaction) = (config.levels.clone(), board.clone());
        let (data_dir, mirror_interval) = (config.data_dir.clone(), config.mirror_interval);
        let rules = drills::Current::new(config.drills.clone());
        let reloader = Reloader::new(config, board.clone(), fanout.clone(), folders, rules.clone());
        let (door, sessions) = (TaskGroup::new("door"), TaskGroup::new("sessions"));
        let deletions = TaskGroup::new("retention");
        let mirrored = TaskGroup::new("mirror");
        let sources = mirror::Sources {
            buffer: buffer.clone(),
            fleet: fleet.clone(),
            holds: holds.clone(),
            jobs: jobs.clone(),
            config: {
                let reloader = reloader.clone();
                Box::new(move || reloader.skeleton())
            },
        };
        Mirror::start(sources, board.clone(), ledger, mirror_interval, &mirrored);
        let (for_retention, for_import) = (board.clone(), board.clone());
        let in_service = InService::new(move || board.roster().destinations());
        let origins = Origins::new(in_service.clone(), sessions.token().clone());
        let seals = TaskGroup::new("first snapshots");
        seals.spawn(staging::tend(
            staging.clone(),
            buffer.clone(),
            fleet.board.clone(),
            seals.token().clone(),
        ));
        let restores = Restores::new(buffer.clone(), in_service, sessions.token().clone());
        let pins = restores.pins().clone();
        let folder = data_dir.join(COMPACTION);
        let (held, read) = (holds.clone(), pins.clone());
        let held_for_drills = holds.clone();
        let compactor = Compactor::start(buffer.clone(), for_compaction, levels, &folder, held, read)
            .map_err(|source| AppError::Data { path: data_dir.clone(), source })?;
        let retainer = Retainer::start(buffer.clone(), for_retention, holds, pins, deletions.clone());
        let drilling = TaskGroup::new("drills");
        let parts = drills::Parts {
            buffer: buffer.clone(),
            board: fleet.board.clone(),
            pins: restores.pins().clone(),
            holds: held_for_drills,
        };
        let scratch = rules.now().scratch_folder(&data_dir);
        let drills = Drills::start(parts, drilled, rules, &data_dir, &drilling)
            .map_err(|source| AppError::Data { path: scratch, source })?;
        let planner = Planner::new(buffer.clone(), fleet.clone(), restores.clone());
        let importer = Importer::new(buffer.clone(), for_import, data_dir.join(TMP));
        let handles = Handles {
            importer: Arc::new(importer),
            ingest: Ingest::new(
                buffer.clone(),
                fleet.clone(),
                staging.clone(),
                seals.clone(),
                origins,
                sessions.token().clone(),
            ),
            restores,
            retainer,
            drills,
            jobs,
            planner,
            reloader: reloader.clone(),
            fleet,
            buffer: buffer.clone(),
            staging,
            tasks: sessions.clone(),
            started_ms: clock::now_ms(),
        };
        let watched = TaskGroup::new("metrics");
        if let Some(door) = metrics {
            let Handles { fleet, buffer, drills, retainer, jobs, started_ms, .. } = handles.clone();
            if let Ok(address) = door.address() {
                tracing::info!(%address, "metrics can be asked for");
            }
            let sources = metrics::Sources { fleet, buffer, drills, retainer, jobs, started_ms };
            door.serve(sources, &watched);
        }
        let ingest = handles.ingest.clone();
        let connections = api::accept_loop(listener, acceptor, &door);
        let closing = door.token().clone();
        let server = api::router(handles)
            .serve_with_incoming_shutdown(connections, async move { closing.cancelled().await });
        tracing::info!(%address, destinations = count, version = env!("CARGO_PKG_VERSION"), "serving");
        let mut server = std::pin::pin!(server);
        let served = tokio::select! {
            () = stop => Ok(()),
            never = never_ending(reloader.follow(hangups)) => match never {},
            () = ingest.broken() => Err(AppError::Broken),
            served = &mut server => served.map_err(|e| AppError::Serve(e.to_string())),
        };

        let started = Instant::now();
        tracing::info!("shutting down");
        door.token().cancel();
        watched.shutdown(SESSIONS_DEADLINE).await;
        reloader.shutdown(SESSIONS_DEADLINE).await;
        on_nodes.shutdown(SESSIONS_DEADLINE).await;
        // Sessions end by their token; the server returns when the last of their answers has been sent.
        let ended = async {
            sessions.shutdown(SESSIONS_DEADLINE).await;
            door.shutdown(SESSIONS_DEADLINE).await;
        };
        let drained = async {
            if !matches!(served, Err(AppError::Serve(_)))
                && tokio::time::timeout(SESSIONS_DEADLINE, server).await.is_err()
            {
                tracing::warn!("connections did not end in time");
            }
        };
        tokio::join!(ended, drained);
        // A snapshot that is being put together is given up: its parts stay, and the node asks for it again.
        seals.shutdown(SESSIONS_DEADLINE).await;
        tracing::info!(elapsed = ?started.elapsed(), "sessions ended");
        tokio::join!(
            deletions.shutdown(SESSIONS_DEADLINE),
            mirrored.shutdown(SESSIONS_DEADLINE),
            drilling.shutdown(SESSIONS_DEADLINE)
        );
        tokio::join!(fanout.shutdown(PUTS_DEADLINE), compactor.shutdown(PUTS_DEADLINE));
        tracing::info!(elapsed = ?started.elapsed(), "lanes ended");
        let closed = buffer.close().await;
        tracing::info!(elapsed = ?started.elapsed(), "buffer closed");
        closed.map_err(|source| AppError::Buffer { path: data_dir, source })?;
        served
    }
}

/// Keeps a select going when a source of events dries up.
async fn never_ending(work: impl Future<Output = ()>) -> Infallible {
    work.await;
    std::future::pending().await
}

/// Writes the address into a file that appears complete or not at all: whoever waits for it may connect.
pub fn write_ready_file(path: &Path, address: SocketAddr) -> io::Result<()> {
    let temp = path.with_extension("tmp");
    std::fs::write(&temp, format!("{address}\n"))?;
    std::fs::rename(temp, path)
}
