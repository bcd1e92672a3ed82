//! A server's front that can fail in every way a network or a store fails, request by request, and heals at once.
//!
//! It understands just enough of HTTP/1.1 to know where a request and its answer end. What it passes on is unchanged.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// What happens to the requests of now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Mode {
    /// They pass.
    Pass,
    /// Connections end before an answer.
    Down,
    /// Requests wait this long, then pass.
    Latency(Duration),
    /// What changes something passes; its answer never comes.
    LostAnswers,
    /// Half of every answer comes, then the connection ends.
    HalfAnswers,
    /// The signature in the request is another one.
    Tampered,
    /// The date in the request (of S3) is two hours off.
    Skewed,
    /// Nothing passes; everybody gets this status and text.
    Answer(u16, &'static str),
    /// The same for what would change something.
    RefuseWrites(u16, &'static str),
}

/// The front of one server. Its thread ends with the process.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    mode: Arc<Mutex<Mode>>,
}

impl Proxy {
    /// In front of `server` (HOST:PORT).
    pub fn start(server: &str) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let mode = Arc::new(Mutex::new(Mode::Pass));
        let (shared, server) = (mode.clone(), server.to_owned());
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (shared, server) = (shared.clone(), server.clone());
                // Whoever goes away ends the thread of its connection.
                thread::spawn(move || serve(client, &server, &shared));
            }
        });
        Proxy { address, mode }
    }

    /// HOST:PORT of the front.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// From now on.
    pub fn set(&self, mode: Mode) {
        *self.mode.lock().unwrap_or_else(PoisonError::into_inner) = mode;
    }
}

fn serve(mut client: TcpStream, server: &str, shared: &Mutex<Mode>) -> Option<()> {
    let mode = || shared.lock().unwrap_or_else(PoisonError::into_inner).clone();
    client.set_nodelay(true).ok()?;
    let mut upstream: Option<TcpStream> = None;
    loop {
        let mut request = message(&mut client, false)?;
        let writes = !request.starts_with(b"GET ") && !request.starts_with(b"HEAD ");
        let head_only = request.starts_with(b"HEAD ");
        let now = mode();
        match &now {
            Mode::Down => return None,
            Mode::Answer(status, text) => return answer(&mut client, *status, text),
            Mode::RefuseWrites(status, text) if writes => return answer(&mut client, *status, text),
            Mode::Latency(length) => {
                let until = Instant::now() + *length;
                while Instant::now() < until && mode() == now {
                    thread::sleep(Duration::from_millis(10));
                }
            }
            Mode::Tampered => tamper(&mut request),
            Mode::Skewed => skew(&mut request),
            _ => {}
        }
        if upstream.is_none() {
            let socket = TcpStream::connect(server).ok()?;
            socket.set_nodelay(true).ok()?;
            upstream = Some(socket);
        }
        let socket = upstream.as_mut()?;
        socket.write_all(&request).ok()?;
        let response = message(socket, head_only)?;
        match now {
            Mode::LostAnswers if writes => {
                // Silent until the other side gives up, or all is well again.
                while mode() == now {
                    thread::sleep(Duration::from_millis(10));
                }
                return None;
            }
            Mode::HalfAnswers => {
                client.write_all(&response[..response.len() / 2]).ok()?;
                return None;
            }
            _ => client.write_all(&response).ok()?,
        }
    }
}

fn answer(client: &mut TcpStream, status: u16, text: &str) -> Option<()> {
    let body = format!("<Error><Code>{text}</Code><Message>{text}</Message></Error>");
    let head =
        format!("HTTP/1.1 {status} {text}\r\nContent-Type: application/xml\r\nx-ms-error-code: {text}\r\n");
    let length = body.len();
    client
        .write_all(format!("{head}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}").as_bytes())
        .ok()
}

/// The last byte of the signature becomes another.
fn tamper(request: &mut [u8]) {
    let text = String::from_utf8_lossy(request).into_owned();
    let head = text.split("\r\n\r\n").next().unwrap_or_default().to_ascii_lowercase();
    let Some(begin) = head.find("\r\nauthorization:") else { return };
    let Some(end) = head[begin + 2..].find("\r\n").map(|at| begin + 2 + at).or(Some(head.len())) else {
        return;
    };
    // Not the padding of base 64, which says nothing.
    let at = (begin..end).rev().find(|at| request[*at] != b'=').unwrap_or(end - 1) - 5;
    request[at] = if request[at] == b'a' { b'b' } else { b'a' };
}

/// The hour in `x-amz-date` (`20060102T150405Z`) becomes another; the server looks at it before the signature.
fn skew(request: &mut [u8]) {
    const NAME: &str = "\r\nx-amz-date:";
    let text = String::from_utf8_lossy(request).into_owned();
    let head = text.split("\r\n\r\n").next().unwrap_or_default().to_ascii_lowercase();
    let Some(begin) = head.find(NAME).map(|at| at + NAME.len()) else { return };
    let Some(at) = head[begin..].find('t').map(|at| begin + at + 1) else { return };
    let Ok(hour) = head[at..at + 2].parse::<u8>() else { return };
    request[at..at + 2].copy_from_slice(format!("{:02}", (hour + 22) % 24).as_bytes());
}

/// One whole message: head and body.
fn message(socket: &mut TcpStream, head_only: bool) -> Option<Vec<u8>> {
    let (mut bytes, mut piece) = (Vec::new(), [0; 16 * 1024]);
    let mut body = None;
    loop {
        if body.is_none()
            && let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n")
        {
            let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
            if head.contains("\r\nexpect: 100-continue") {
                socket.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").ok()?;
                bytes = without_line(&bytes, &head, "\r\nexpect:");
                continue;
            }
            if head.starts_with("http/1.1 100") {
                bytes.drain(..end + 4);
                continue;
            }
            let length = head.split("\r\ncontent-length:").nth(1).and_then(|rest| {
                rest.split("\r\n").next().and_then(|text| text.trim().parse::<usize>().ok())
            });
            let chunked = head.contains("\r\ntransfer-encoding: chunked") && !head_only;
            body = Some(if chunked {
                None
            } else {
                Some(end + 4 + if head_only { 0 } else { length.unwrap_or(0) })
            });
        }
        match body {
            Some(Some(total)) if bytes.len() >= total => return Some(bytes),
            Some(None) if bytes.ends_with(b"\r\n0\r\n\r\n") => return Some(bytes),
            _ => {}
        }
        let count = socket.read(&mut piece).ok()?;
        if count == 0 {
            return None;
        }
        bytes.extend_from_slice(&piece[..count]);
    }
}

fn without_line(bytes: &[u8], head: &str, line: &str) -> Vec<u8> {
    let Some(begin) = head.find(line) else { return bytes.to_vec() };
    let end = head[begin + 2..].find("\r\n").map_or(head.len(), |at| begin + 2 + at);
    [&bytes[..begin], &bytes[end..]].concat()
}
