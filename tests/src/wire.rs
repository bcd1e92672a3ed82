//! A wire between an agent and its hub that counts and can be cut.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// Passes bytes on to an address until it is cut; then takes new connections at once.
#[derive(Debug)]
pub struct Wire {
    address: String,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    up: AtomicU64,
    open: Mutex<Vec<TcpStream>>,
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

    /// Breaks every open connection.
    pub fn cut(&self) {
        for stream in self.shared.open().drain(..) {
            // One that is closed already is cut as well.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Shared {
    fn open(&self) -> std::sync::MutexGuard<'_, Vec<TcpStream>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn join(node: &TcpStream, hub: &TcpStream, shared: &Arc<Shared>) -> io::Result<()> {
    shared.open().extend([node.try_clone()?, hub.try_clone()?]);
    let ways = [(node.try_clone()?, hub.try_clone()?, true), (hub.try_clone()?, node.try_clone()?, false)];
    for (from, to, up) in ways {
        let shared = shared.clone();
        thread::spawn(move || {
            pass(from, to, |bytes| _ = up.then(|| shared.up.fetch_add(bytes, Ordering::Relaxed)))
        });
    }
    Ok(())
}

fn pass(mut from: TcpStream, mut to: TcpStream, count: impl Fn(u64)) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(bytes) = from.read(&mut buffer) {
        if bytes == 0 || to.write_all(&buffer[..bytes]).is_err() {
            break;
        }
        count(bytes as u64);
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
