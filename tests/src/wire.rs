//! A wire between a client and its server that counts, can be cut, and can end in the middle of an answer.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

/// Passes bytes on to an address until it is cut; then takes new connections at once.
#[derive(Debug)]
pub struct Wire {
    address: String,
    shared: Arc<Shared>,
}

/// What follows when the last bytes that may come have come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Then {
    /// Nothing comes any more.
    Silence,
    /// Connections break, old ones and new ones.
    Break,
}

#[derive(Debug, Default)]
struct Shared {
    up: AtomicU64,
    open: Mutex<Vec<TcpStream>>,
    /// Bytes that may still come from the server, and what follows; `None`: all.
    left: Mutex<Option<(u64, Then)>>,
    mended: Condvar,
}

impl Wire {
    /// Listens, and connects to `hub` (`HOST:PORT`) for each connection that comes.
    pub fn to(hub: &str) -> Wire {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address").to_string();
        let (shared, hub) = (Arc::new(Shared::default()), hub.to_owned());
        let pass = shared.clone();
        // Ends with the process of the test.
        thread::spawn(move || {
            for node in listener.incoming().map_while(Result::ok) {
                if *pass.left() == Some((0, Then::Break)) {
                    continue;
                }
                // While the hub is down its nodes see a connection that breaks.
                if let Ok(hub) = TcpStream::connect(&hub) {
                    let _ = join(&node, &hub, &pass);
                }
            }
        });
        Wire { address, shared }
    }

    /// Where agents connect.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Bytes that went to the hub.
    pub fn up(&self) -> u64 {
        self.shared.up.load(Ordering::Relaxed)
    }

    /// From now on so many bytes come from the server, over all connections together, and then what `then` says, until
    /// [`Wire::mend`].
    pub fn end_after(&self, bytes: u64, then: Then) {
        *self.shared.left() = Some((bytes, then));
    }

    /// Everything passes again.
    pub fn mend(&self) {
        *self.shared.left() = None;
        self.shared.mended.notify_all();
    }

    /// Breaks every open connection.
    pub fn cut(&self) {
        for stream in self.shared.open().drain(..) {
            // One that is closed already is cut as well.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Shared {
    fn open(&self) -> MutexGuard<'_, Vec<TcpStream>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn left(&self) -> MutexGuard<'_, Option<(u64, Then)>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many of `bytes` from the server may pass, one at least; waits for that. `None`: the connection breaks.
    fn take(&self, bytes: usize) -> Option<usize> {
        let mut left = self.left();
        loop {
            match &mut *left {
                None => return Some(bytes),
                Some((0, Then::Break)) => return None,
                Some((0, Then::Silence)) => {}
                Some((some, _)) => {
                    let now = usize::try_from(*some).map_or(bytes, |some| some.min(bytes));
                    *some -= now as u64;
                    return Some(now);
                }
            }
            left = self.mended.wait(left).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn join(node: &TcpStream, hub: &TcpStream, shared: &Arc<Shared>) -> io::Result<()> {
    shared.open().extend([node.try_clone()?, hub.try_clone()?]);
    let ways = [(node.try_clone()?, hub.try_clone()?, true), (hub.try_clone()?, node.try_clone()?, false)];
    for (from, to, up) in ways {
        let shared = shared.clone();
        thread::spawn(move || {
            // Whoever goes away ends both ways.
            let _ = pass(&from, &to, up, &shared);
            let _ = to.shutdown(Shutdown::Both);
            let _ = from.shutdown(Shutdown::Both);
        });
    }
    Ok(())
}

fn pass(mut from: &TcpStream, mut to: &TcpStream, up: bool, shared: &Shared) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let bytes = from.read(&mut buffer)?;
        if bytes == 0 {
            return Ok(());
        }
        let mut rest = &buffer[..bytes];
        while !rest.is_empty() {
            let now = if up { Some(rest.len()) } else { shared.take(rest.len()) };
            let Some(now) = now else { return Ok(()) };
            to.write_all(&rest[..now])?;
            rest = &rest[now..];
        }
        if up {
            shared.up.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }
}
