//! The way to the page: plain HTTP/1.1, `GET /metrics` and `GET /healthz`, one request per connection.
//!
//! # Invariants
//! - Whoever connects costs at most a place, [`HEAD_BYTES`] and [`DEADLINE`]; of places there are [`PLACES`], and when all are
//!   taken the next ones wait in the system's queue.
//! - One page is made at a time, and one that is younger than [`FRESH`] is given again: however often it is asked for, the hub
//!   has the same work.
//!
//! Non-goals: TLS, and who may ask. The example listens on the loopback; names are on the page, contents and secrets are not.

use super::page::CONTENT_TYPE;
use super::{Sources, collect};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE as TYPE, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Semaphore};
use walhub_common::task::TaskGroup;

/// Connections at one time.
const PLACES: usize = 32;
/// Bytes of a request's line and headers.
const HEAD_BYTES: usize = 16 << 10;
/// How long a request may take to arrive.
const HEAD_DEADLINE: Duration = Duration::from_secs(5);
/// How long a connection lives.
const DEADLINE: Duration = Duration::from_secs(30);
/// A page of that age is as good as a new one.
const FRESH: Duration = Duration::from_millis(500);
/// After a failed accept (descriptors used up).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

type Answer = Response<Full<Bytes>>;

/// The newest page, and when it was begun.
type Shelf = Arc<Mutex<Option<(Instant, Bytes)>>>;

/// Who gives the page.
#[derive(Clone)]
struct Desk {
    sources: Arc<Sources>,
    shelf: Shelf,
    tasks: TaskGroup,
}

/// Answers what comes to `listener`, until `tasks` end.
pub(super) fn serve(listener: TcpListener, sources: Sources, tasks: &TaskGroup) {
    let desk = Desk { sources: Arc::new(sources), shelf: Shelf::default(), tasks: tasks.clone() };
    let group = tasks.clone();
    tasks.spawn(async move {
        let places = Arc::new(Semaphore::new(PLACES));
        let stop = group.token();
        loop {
            let place = tokio::select! {
                () = stop.cancelled() => return,
                place = places.clone().acquire_owned() => place.expect("BUG: places are never closed"),
            };
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let socket = match accepted {
                Ok((socket, _)) => socket,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept who asks for metrics");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let (desk, stop) = (desk.clone(), stop.clone());
            group.spawn(async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    _ = tokio::time::timeout(DEADLINE, desk.attend(socket)) => {}
                }
                drop(place);
            });
        }
    });
}

impl Desk {
    async fn attend(&self, socket: TcpStream) {
        let answer = service_fn(|request| async move { Ok::<_, Infallible>(self.answer(&request).await) });
        let mut server = http1::Builder::new();
        server
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_DEADLINE)
            .max_buf_size(HEAD_BYTES)
            .keep_alive(false);
        if let Err(error) = server.serve_connection(TokioIo::new(socket), answer).await {
            tracing::debug!(%error, "a request for metrics came to nothing");
        }
    }

    async fn answer(&self, request: &Request<Incoming>) -> Answer {
        let text = HeaderValue::from_static("text/plain; charset=utf-8");
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let headers = [(TYPE, text), (ALLOW, HeaderValue::from_static("GET, HEAD"))];
            return answer(StatusCode::METHOD_NOT_ALLOWED, headers, Bytes::from_static(b"GET only\n"));
        }
        match request.uri().path() {
            "/metrics" => match self.page().await {
                Some(page) => answer(StatusCode::OK, [(TYPE, HeaderValue::from_static(CONTENT_TYPE))], page),
                None => {
                    let said = Bytes::from_static(b"there is no page; see the hub's log\n");
                    answer(StatusCode::INTERNAL_SERVER_ERROR, [(TYPE, text)], said)
                }
            },
            "/healthz" => answer(StatusCode::OK, [(TYPE, text)], Bytes::from_static(b"ok\n")),
            _ => answer(
                StatusCode::NOT_FOUND,
                [(TYPE, text)],
                Bytes::from_static(b"there is /metrics and /healthz\n"),
            ),
        }
    }

    /// A page that is not old; `None` after a bug. One is made at a time, also when whoever asked has gone meanwhile.
    async fn page(&self) -> Option<Bytes> {
        let mut shelf = self.shelf.clone().lock_owned().await;
        if let Some((_, page)) = shelf.as_ref().filter(|(begun, _)| begun.elapsed() < FRESH) {
            return Some(page.clone());
        }
        let begun = Instant::now();
        // A hub that goes down has no more jobs.
        let jobs = self.sources.jobs.list().await.unwrap_or_default();
        let sources = self.sources.clone();
        let made = self.tasks.spawn_blocking(move || {
            let page = Bytes::from(collect::collect(&sources, &jobs).text().ok()?);
            *shelf = Some((begun, page.clone()));
            Some(page)
        });
        made.await.ok().flatten()
    }
}

fn answer<const N: usize>(
    status: StatusCode,
    headers: [(HeaderName, HeaderValue); N],
    body: Bytes,
) -> Answer {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    answer.headers_mut().extend(headers);
    answer
}
