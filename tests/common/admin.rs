//! An administrator.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use serde_json::Value;

use super::client::{Client, Response};
use super::{DEADLINE, Gateway, url_encode};

pub const TOKEN: &str = "a-token-for-tests-of-32-bytes-00";

#[derive(Debug, Clone)]
enum Place {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// Asks one gateway, each time over a connection of its own.
#[derive(Debug, Clone)]
pub struct Admin {
    place: Place,
    token: String,
}

impl Admin {
    pub fn of(gateway: &Gateway) -> Admin {
        Admin::at(gateway.addr)
    }

    pub fn at(addr: SocketAddr) -> Admin {
        Admin {
            place: Place::Tcp(addr),
            token: TOKEN.into(),
        }
    }

    pub fn at_unix(path: impl Into<PathBuf>) -> Admin {
        Admin {
            place: Place::Unix(path.into()),
            token: TOKEN.into(),
        }
    }

    pub fn with_token(self, token: &str) -> Admin {
        Admin {
            token: token.into(),
            ..self
        }
    }

    /// The header field.
    pub fn authorization(&self) -> String {
        format!("Authorization: Bearer {}\r\n", self.token)
    }

    /// One request with exactly these fields besides what HTTP needs.
    #[track_caller]
    pub fn raw(&self, method: &str, path: &str, fields: &str, body: &str) -> Response {
        let length = if body.is_empty() {
            String::new()
        } else {
            format!("Content-Length: {}\r\n", body.len())
        };
        let request =
            format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{fields}{length}\r\n{body}");
        match &self.place {
            Place::Tcp(addr) => {
                let mut client = Client::connect(*addr);
                // It may be refused before it is read.
                client.send_carelessly(request.as_bytes());
                if method == "HEAD" {
                    client.read_head()
                } else {
                    client.read_response()
                }
            }
            Place::Unix(path) => {
                let mut stream = UnixStream::connect(path).unwrap();
                stream.set_read_timeout(Some(DEADLINE)).unwrap();
                stream.write_all(request.as_bytes()).unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).unwrap();
                parse(&answer)
            }
        }
    }

    /// Status and JSON; `null` for no body.
    #[track_caller]
    pub fn ask(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let answer = self.raw(method, path, &self.authorization(), body);
        let json = match &*answer.body {
            "" => Value::Null,
            body => serde_json::from_str(body).unwrap_or_else(|error| panic!("{error} in {answer:?}")),
        };
        (answer.status, json)
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> (u16, Value) {
        self.ask("GET", path, "")
    }

    /// The ids of all connections that match, page by page.
    #[track_caller]
    pub fn list(&self, query: &str) -> Vec<Value> {
        let (mut ids, mut cursor) = (Vec::new(), String::new());
        loop {
            let (status, page) = self.get(&format!("/admin/connections?{query}&cursor={cursor}"));
            assert_eq!(status, 200, "{page}");
            let connections = page["connections"].as_array().unwrap();
            ids.extend(connections.iter().map(|connection| connection["connId"].clone()));
            match page["cursor"].as_str() {
                Some(next) => cursor = url_encode(next),
                None => return ids,
            }
        }
    }
}

/// A whole response of a connection that has ended.
fn parse(answer: &str) -> Response {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let fields = lines.map(|line| line.split_once(": ").unwrap());
    Response {
        status,
        fields: fields
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
        body: body.to_owned(),
    }
}
