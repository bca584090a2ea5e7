//! A service of raw bytes on a socket, for answers that no well-behaved framework would give.
//!
//! Promises: a handler sees each request whole and decides every byte of its answer, the status line
//! included; each connection serves one request and is then closed; what was asked is remembered.
//!
//! Leaves to others: what a service is (`simulate/*.rs`), and simulated time: this one needs the real clock.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

/// One request, whole.
#[derive(Clone, Debug)]
pub struct Asked {
    /// `GET`, `POST`.
    pub method: String,
    /// Path and query, as they were sent.
    pub target: String,
    /// In the order in which they came.
    pub headers: Vec<(String, String)>,
    /// As long as `Content-Length` said.
    pub body: Vec<u8>,
}

impl Asked {
    /// The value of a header, by its name in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(is, _)| is.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// A decoded parameter of the query.
    pub fn parameter(&self, name: &str) -> Option<String> {
        let query = self.target.split_once('?')?.1;
        url::form_urlencoded::parse(query.as_bytes()).find(|(is, _)| is == name).map(|(_, value)| value.into_owned())
    }
}

/// The service. It serves until the process ends.
pub struct RawService {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl RawService {
    /// Listens on a free port of loopback and answers each request with the bytes that `answer` gives. No bytes:
    /// the connection is closed without an answer.
    pub fn start(answer: impl Fn(&Asked) -> Vec<u8> + Send + Sync + 'static) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (answer, remembered) = (Arc::new(answer), Arc::clone(&asked));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answer, remembered) = (Arc::clone(&answer), Arc::clone(&remembered));
                std::thread::spawn(move || serve(stream, &*answer, &remembered));
            }
        });
        Ok(Self { address, asked })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it listens, as `http://127.0.0.1:PORT`.
    pub fn origin(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Everything it was asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The bytes of an answer with its length and `Connection: close`.
pub fn answer(status: u16, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let headers: Vec<String> = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let head = format!(
        "HTTP/1.1 {status} answer\r\nContent-Length: {}\r\nConnection: close\r\n{}\r\n",
        body.len(),
        headers.concat()
    );
    [head.as_bytes(), body].concat()
}

/// The same for JSON with status 200.
pub fn json(body: impl AsRef<[u8]>) -> Vec<u8> {
    answer(200, &[("Content-Type", "application/json")], body)
}

/// One connection. A client that goes away ends it.
fn serve(mut stream: TcpStream, answer: &(dyn Fn(&Asked) -> Vec<u8> + Send + Sync), asked: &Mutex<Vec<Asked>>) {
    let Ok(Some(request)) = read_request(&mut stream) else { return };
    asked.lock().unwrap_or_else(PoisonError::into_inner).push(request.clone());
    // the client may have gone: nobody is left to be told
    let _ = stream.write_all(&answer(&request));
}

fn read_request(stream: &mut TcpStream) -> io::Result<Option<Asked>> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            return Ok(None);
        }
        bytes.extend_from_slice(&buffer[..read]);
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let mut lines = head.lines();
        let mut words = lines.next().unwrap_or_default().split(' ').map(str::to_owned);
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let headers = lines.filter_map(|line| line.split_once(':'));
        let headers = headers.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect();
        let mut request = Asked { method, target, headers, body: Vec::new() };
        let length = request.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        if let Some(body) = bytes[end + 4..].get(..length) {
            request.body = body.to_vec();
            return Ok(Some(request));
        }
    }
}
