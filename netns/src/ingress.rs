//! HAProxy: its configuration, which is the same text whatever routes there are, and its map of routes. Pure.
//!
//! It runs in TCP mode and holds no key: on the TLS port it reads the SNI of the hello, on the HTTP port the `Host` header of
//! the first request, looks the name up in one map of names to addresses, and connects to port 443 or 80 there. What has no
//! route is closed. A route is one line of the map, changed over the runtime socket, never by a reload.
//!
//! `server vm 0.0.0.0:443` means "the address that `set-dst` said"; the rule before it rejects when there was none, since
//! HAProxy would else connect to itself. There is one server, so there is nothing to balance to: a route that leads nowhere
//! can't end at another tenant. VMs see the host's 169.254.2.1 as the peer; no PROXY protocol is spoken.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use sha2::{Digest as _, Sha256};

use crate::config::{Config, HaproxyConfig};
use crate::desired::Desired;

impl HaproxyConfig {
    /// The configuration file.
    pub fn config_path(&self) -> PathBuf {
        self.run_dir.join("haproxy.cfg")
    }

    /// The map of routes, as HAProxy reads it when it starts.
    pub fn routes_path(&self) -> PathBuf {
        self.run_dir.join("routes.map")
    }

    /// The runtime socket.
    pub fn socket_path(&self) -> PathBuf {
        self.run_dir.join("haproxy.sock")
    }
}

/// Routes as HAProxy holds them: name and address.
pub(crate) type Routes = BTreeMap<String, String>;

/// The configuration, and the mark by which a running HAProxy shows which one it has.
pub(crate) fn haproxy_config(config: &HaproxyConfig) -> (String, String) {
    let text = render(config, "MARK");
    let mark = format!("netns-{:016x}", first_8_bytes(&text));
    (render(config, &mark), mark)
}

fn first_8_bytes(text: &str) -> u64 {
    Sha256::digest(text)
        .iter()
        .take(8)
        .fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

fn render(config: &HaproxyConfig, mark: &str) -> String {
    let HaproxyConfig {
        https_port,
        http_port,
        max_connections,
        user,
        ..
    } = config;
    let socket = config.socket_path();
    let (socket, routes) = (socket.display(), config.routes_path());
    let routes = routes.display();
    format!(
        r#"# Written by hostd; changes are overwritten. Routes are not here but in routes.map.
global
    description {mark}
    stats socket {socket} mode 600 level admin expose-fd listeners
    stats timeout 10s
    user {user}
    group {user}
    maxconn {max_connections}
    hard-stop-after 1h

defaults
    mode tcp
    timeout connect 5s
    timeout client 5m
    timeout server 5m
    timeout tunnel 1h
    timeout client-fin 30s
    timeout server-fin 30s

frontend tls
    bind 0.0.0.0:{https_port}
    tcp-request inspect-delay 5s
    tcp-request content set-var(sess.vm) req.ssl_sni,lower,map_str_ip({routes}) if {{ req.ssl_hello_type 1 }}
    tcp-request content reject unless {{ var(sess.vm) -m found }}
    tcp-request content set-dst var(sess.vm)
    default_backend vm_tls

frontend http
    bind 0.0.0.0:{http_port}
    tcp-request inspect-delay 5s
    tcp-request content set-var(sess.vm) req.hdr(host),field(1,:),lower,map_str_ip({routes}) if HTTP
    tcp-request content reject unless {{ var(sess.vm) -m found }}
    tcp-request content set-dst var(sess.vm)
    default_backend vm_http

backend vm_tls
    server vm 0.0.0.0:443

backend vm_http
    server vm 0.0.0.0:80
"#
    )
}

/// The routes that should be there.
pub(crate) fn routes(config: &Config, desired: &Desired) -> BTreeMap<String, Ipv4Addr> {
    desired
        .routes
        .iter()
        .map(|(name, slot)| (name.to_string(), config.ip4(*slot)))
        .collect()
}

/// The map file.
pub(crate) fn routes_file(routes: &BTreeMap<String, Ipv4Addr>) -> String {
    routes
        .iter()
        .map(|(name, ip4)| format!("{name} {ip4}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration() {
        let config = toml::from_str("run_dir = \"/run/dc/haproxy\"").unwrap();
        insta::assert_snapshot!(haproxy_config(&config).0);
    }

    #[test]
    fn the_mark_changes_with_the_configuration() {
        let one = toml::from_str("run_dir = \"/run/dc\"").unwrap();
        let other = toml::from_str("run_dir = \"/run/dc\"\nhttps_port = 8443").unwrap();
        assert_ne!(haproxy_config(&one).1, haproxy_config(&other).1);
    }
}
