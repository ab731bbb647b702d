//! The peer: puts into a real etcd on the same machine.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::{COMMITS, VALUE_BYTES, elapsed, free_address};

struct Etcd(Vec<Child>);

impl Drop for Etcd {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _already_dead = child.kill();
            let _reaped = child.wait();
        }
    }
}

/// Puts of the same size through the gateway of the leader of a real three-member etcd, over one kept
/// connection without TLS.
pub(crate) fn etcd_puts(directory: &Path) -> Result<Vec<u64>> {
    std::fs::create_dir_all(directory)?;
    let mut members = Vec::new();
    for number in 0..3 {
        members.push((format!("m{number}"), free_address()?, free_address()?));
    }
    let cluster: Vec<String> =
        members.iter().map(|(name, peer, _)| format!("{name}=http://{peer}")).collect();
    let mut etcd = Etcd(Vec::new());
    for (name, peer, client) in &members {
        let child = Command::new("etcd")
            .args(["--name", name, "--data-dir"])
            .arg(directory.join(name))
            .args([
                "--listen-peer-urls",
                &format!("http://{peer}"),
                "--initial-advertise-peer-urls",
                &format!("http://{peer}"),
            ])
            .args([
                "--listen-client-urls",
                &format!("http://{client}"),
                "--advertise-client-urls",
                &format!("http://{client}"),
            ])
            .args([
                "--initial-cluster",
                &cluster.join(","),
                "--initial-cluster-state",
                "new",
                "--log-level",
                "error",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("etcd is not installed")?;
        etcd.0.push(child);
    }
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut leader = None;
    while leader.is_none() {
        ensure!(Instant::now() < deadline, "etcd elects no leader");
        std::thread::sleep(Duration::from_millis(100));
        for (_, _, client) in &members {
            let Ok(mut connection) = Gateway::connect(*client) else { continue };
            let Ok(status) = connection.post("/v3/maintenance/status", "{}") else { continue };
            let field = |text: &str, name: &str| {
                let rest = text.split_once(&format!("\"{name}\":\""))?.1;
                Some(rest.split_once('"')?.0.to_owned())
            };
            if field(&status, "leader").is_some() && field(&status, "leader") == field(&status, "member_id") {
                leader = Some(*client);
            }
        }
    }
    let mut gateway = Gateway::connect(leader.context("leader")?)?;
    // 256 bytes and the key, in base64.
    let body = format!("{{\"key\":\"a2V5\",\"value\":\"{}\"}}", "CQkJ".repeat(VALUE_BYTES / 3 + 1));
    let mut puts = Vec::new();
    for round in 0..COMMITS + 100 {
        let start = Instant::now();
        let answer = gateway.post("/v3/kv/put", &body)?;
        let put = elapsed(start);
        ensure!(answer.contains("revision"), "etcd answered {answer}");
        if round >= 100 {
            puts.push(put);
        }
    }
    Ok(puts)
}

struct Gateway {
    reader: BufReader<TcpStream>,
    address: SocketAddr,
}

impl Gateway {
    fn connect(address: SocketAddr) -> Result<Self> {
        let socket = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(Duration::from_secs(10)))?;
        Ok(Self { reader: BufReader::new(socket), address })
    }

    fn post(&mut self, path: &str, body: &str) -> Result<String> {
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        );
        self.reader.get_mut().write_all(request.as_bytes())?;
        let mut length = None;
        let mut status = String::new();
        self.reader.read_line(&mut status)?;
        ensure!(status.contains(" 200 "), "etcd answered {status}");
        loop {
            let mut line = String::new();
            self.reader.read_line(&mut line)?;
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = Some(value.trim().parse::<usize>()?);
            }
        }
        let mut body = vec![0; length.context("etcd's answer has no length")?];
        self.reader.read_exact(&mut body)?;
        Ok(String::from_utf8(body)?)
    }
}
