//! What docs/security.md promises of the web server: slow clients keep no scrape out, what is too large is refused, and
//! every answer is guarded.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::program::{Answer, EAGER, PATIENCE, Running, ask, config_file, now};

#[test]
fn every_answer_tells_browsers_to_keep_it_to_themselves() {
    let folder = tempfile::tempdir().unwrap();
    let simulator = Running::simulator(&["--quiet"]);
    let config = config_file(folder.path(), &simulator, "1s", EAGER);
    let exporter = Running::exporter(&config, &[]);
    for (method, path, status) in [
        ("GET", "/", 200),
        ("GET", "/metrics", 200),
        ("GET", "/api/v1/status", 200),
        ("GET", "/-/healthy", 200),
        ("GET", "/-/ready", 200),
        ("GET", "/absent", 404),
        ("GET", "/-/reload", 405),
        ("POST", "/metrics", 405),
        ("POST", "/-/reload", 200),
    ] {
        let answer = ask(&exporter.address, method, path, &[], "");
        assert_eq!(answer.status, status, "{path}");
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{path}");
        assert_eq!(answer.header("cache-control"), "no-store", "{path}");
        assert_eq!(answer.header("referrer-policy"), "no-referrer", "{path}");
        assert_eq!(answer.header("cross-origin-resource-policy"), "same-origin", "{path}");
        let policy = answer.header("content-security-policy");
        assert!(
            policy.starts_with("default-src 'none';") && policy.contains("frame-ancestors 'none'"),
            "{path}: {policy}"
        );
        assert!(!policy.contains("script"), "{policy}");
        for absent in ["server", "access-control-allow-origin", "x-powered-by", "set-cookie"] {
            assert_eq!(answer.header(absent), "", "{path} {absent}");
        }
    }
}

#[test]
fn a_page_of_another_site_cannot_reload_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let simulator = Running::simulator(&["--quiet"]);
    let config = config_file(folder.path(), &simulator, "1s", EAGER);
    let exporter = Running::exporter(&config, &[]);
    let own = format!("http://{}", exporter.address);
    for (headers, status) in [
        (&[][..], 200),
        (&[("Sec-Fetch-Site", "same-origin"), ("Origin", own.as_str())][..], 200),
        (&[("Sec-Fetch-Site", "none")], 200),
        (&[("Origin", &own)], 200),
        (&[("Sec-Fetch-Site", "cross-site")], 403),
        (&[("Sec-Fetch-Site", "same-site")], 403),
        (&[("Sec-Fetch-Site", "cross-site"), ("Origin", &own)], 403),
        (&[("Origin", "https://evil.example")], 403),
        (&[("Origin", "null")], 403),
    ] {
        let answer = ask(&exporter.address, "POST", "/-/reload", headers, "");
        assert_eq!(answer.status, status, "{headers:?}");
    }
}

#[test]
fn what_is_too_large_is_refused_and_what_is_not_needed_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let simulator = Running::simulator(&["--quiet"]);
    let config = config_file(folder.path(), &simulator, "1s", EAGER);
    let exporter = Running::exporter(&config, &[]);
    let long = "a".repeat(20_000);
    assert_eq!(exporter.get_with("/metrics", &[("X-Long", &long)]).status, 431);
    assert!([414, 431].contains(&exporter.get(&format!("/metrics?{long}")).status));
    let many = ["X-Many"; 70].map(|name| (name, "1"));
    assert_eq!(exporter.get_with("/metrics", &many).status, 431);
    assert_eq!(exporter.get_with("/metrics", &many[..30]).status, 200);
    // a body nobody asked for, whole or chunked: the answer does not wait for it
    for head in ["Content-Length: 1000000000000", "Transfer-Encoding: chunked"] {
        let mut stream = TcpStream::connect(&exporter.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "POST /-/reload HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n").unwrap();
        let begun = now();
        let mut answer = Vec::new();
        let mut sent = 0_u64;
        let mut stop = false;
        stream.set_nonblocking(true).unwrap();
        while !stop && begun.elapsed() < PATIENCE {
            let piece = if head.starts_with('T') {
                b"1000\r\n".iter().chain(&[b'x'; 4096]).chain(b"\r\n").copied().collect()
            } else {
                vec![b'x'; 4096]
            };
            match stream.write(&piece) {
                Ok(written) => sent += written as u64,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(_) => stop = true,
            }
            let mut buffer = [0; 4096];
            match stream.read(&mut buffer) {
                Ok(0) => stop = true,
                Ok(read) => answer.extend_from_slice(&buffer[..read]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => stop = true,
            }
        }
        assert!(
            String::from_utf8_lossy(&answer).starts_with("HTTP/1.1 200"),
            "{head}: {}",
            String::from_utf8_lossy(&answer)
        );
        assert!(stop, "{head}: the connection ends");
        assert!(sent < 64 << 20, "{head}: {sent} bytes were taken");
    }
}

/// A connection that comes from an address of one's own choice.
fn connect_from(from: Ipv4Addr, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(IpAddr::V4(from), 0).into())?;
    socket.connect_timeout(&to.into(), PATIENCE)?;
    let stream: TcpStream = socket.into();
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// What a slow client does with its connection.
#[derive(Clone, Copy, Debug)]
enum Slow {
    Silent,
    Head,
    Body,
    Reading,
    Handshake,
}

/// Holds as many connections as it can, opening others, fifty in a second, where some were closed.
fn besiege(from: Ipv4Addr, to: SocketAddr, how: Slow, many: usize, over: &AtomicBool, opened: &AtomicUsize) {
    let open = || {
        let mut stream = connect_from(from, to).ok()?;
        opened.fetch_add(1, Ordering::Relaxed);
        let words = match how {
            Slow::Silent => String::new(),
            Slow::Head => "GET /metrics HTTP/1.1\r\nHost: x\r\nX-Slow: ".to_owned(),
            Slow::Body => "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n".to_owned(),
            Slow::Reading => "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(200),
            Slow::Handshake => "\u{16}\u{3}\u{1}".to_owned(),
        };
        stream.set_nonblocking(true).ok()?;
        let _ = stream.write(words.as_bytes());
        Some(stream)
    };
    let mut held: Vec<TcpStream> = Vec::new();
    while !over.load(Ordering::Relaxed) {
        held.retain_mut(|stream| match how {
            // what came stays where it is; only whether the other side has closed is of interest
            Slow::Reading | Slow::Body => {
                stream.write(b" ").is_ok_and(|n| n > 0) || stream.peek(&mut [0]).is_ok_and(|n| n > 0)
            }
            _ => !matches!(stream.read(&mut [0; 64]), Ok(0)) && stream.write(b"a").is_ok(),
        });
        let more = if opened.load(Ordering::Relaxed) < 5 * many { many } else { 5 };
        let missing = many - held.len();
        held.extend(std::iter::repeat_with(open).take(missing.min(more)).flatten());
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn slow_clients_by_the_hundred_keep_no_scrape_out() {
    const ATTACKER: Ipv4Addr = Ipv4Addr::LOCALHOST;
    const PROMETHEUS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
    let folder = tempfile::tempdir().unwrap();
    let simulator = Running::simulator(&["--quiet"]);
    let config = config_file(folder.path(), &simulator, "1s", EAGER);
    let exporter = Running::exporter(&config, &[]);
    let address: SocketAddr = exporter.address.parse().unwrap();
    let over = AtomicBool::new(false);
    let opened = AtomicUsize::new(0);
    let mut took = BTreeMap::from([(PROMETHEUS, Vec::new()), (ATTACKER, Vec::new())]);
    std::thread::scope(|scope| {
        for how in [Slow::Silent, Slow::Head, Slow::Body, Slow::Reading, Slow::Handshake] {
            let (over, opened) = (&over, &opened);
            scope.spawn(move || besiege(ATTACKER, address, how, 150, over, opened));
        }
        // the answers that nobody takes are a flood of requests first, until there is no room for more
        std::thread::sleep(Duration::from_secs(3));
        for from in [PROMETHEUS, ATTACKER].into_iter().cycle().take(60) {
            let begun = now();
            let scrape = || {
                let mut stream = connect_from(from, address)?;
                stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
                let mut page = String::new();
                stream.read_to_string(&mut page)?;
                Ok::<_, std::io::Error>(page)
            };
            let page = scrape().unwrap_or_else(|error| error.to_string());
            let whole = page.starts_with("HTTP/1.1 200") && page.contains("audit_exporter_build_info");
            took.get_mut(&from).unwrap().push(whole.then(|| begun.elapsed()));
            std::thread::sleep(Duration::from_millis(50));
        }
        over.store(true, Ordering::Relaxed);
    });
    println!("{} slow connections; scrapes took {took:?}", opened.load(Ordering::Relaxed));
    assert!(opened.load(Ordering::Relaxed) >= 750, "{opened:?} slow connections were opened");
    let times = &took[&PROMETHEUS];
    assert!(times.iter().all(Option::is_some), "{times:?}");
    let late = times.iter().flatten().filter(|time| **time > Duration::from_secs(1)).count();
    assert!(late * 10 <= times.len(), "{late} took longer than a second: {times:?}");
    // at the attacker's own address a scrape is one among its connections: most come through
    let times = &took[&ATTACKER];
    assert!(times.iter().flatten().count() * 2 > times.len(), "{times:?}");
    // it did not pile them up either
    let open = std::fs::read_dir(format!("/proc/{}/fd", exporter.process.id())).unwrap().count();
    assert!(open < 400, "{open} files are open, with room for 64 connections of one client");
    let answer: Answer = exporter.get("/-/healthy");
    assert_eq!(answer.status, 200);
}
