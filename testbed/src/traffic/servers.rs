//! Real servers in the backends' namespaces: nginx, which answers with the backend's name.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::interrupt::wait_for;
use crate::run::Run;
use crate::supervisor::{Process, Program};
use crate::topology::lab::{Family, Lab, backend, backend_name};
use crate::traffic::http;

/// Port of the servers for listeners that rewrite the port.
pub(crate) const SERVER_PORT: u16 = 8080;
/// Port of the servers that want a PROXY header and answer with the client that it names.
pub(crate) const PROXIED_PORT: u16 = 8081;
/// Port of the servers for listeners that can't.
pub(crate) const VIP_PORT: u16 = 80;
/// Size of the file behind [`FILE`].
pub(crate) const FILE_BYTES: usize = 1 << 20;
/// A path that answers with a large file.
pub(crate) const FILE: &str = "/file";

/// Starts one nginx per backend and waits until each answers its own host. They listen on every address, so on the
/// VIPs too.
pub(crate) fn start_nginx(run: &Run, lab: &Lab, stays: bool) -> Result<Vec<Process>> {
    let root = run.path("servers");
    let content: Vec<u8> = (0..FILE_BYTES).map(|position| (position % 251) as u8).collect();
    std::fs::write(root.join("file"), content)
        .with_context(|| format!("could not write in {}", root.display()))?;
    let mut servers = Vec::new();
    for (position, namespace) in lab.backends.iter().enumerate() {
        let name = backend_name(position + 1);
        let file = root.join(format!("{name}.conf"));
        std::fs::write(&file, nginx_configuration(&name, &root))?;
        let mut program = Program::new(
            &format!("nginx-{name}"),
            "nginx",
            &["-c", &file.display().to_string(), "-e", "stderr", "-p", &root.display().to_string()],
        )
        .within(namespace);
        program.stays = stays;
        servers.push(Process::start(program, &run.logs())?);
    }
    for (position, namespace) in lab.backends.iter().enumerate() {
        let server = &mut servers[position];
        let target = SocketAddr::new(backend(Family::Ipv4, position + 1), SERVER_PORT);
        let name = server.name().to_owned();
        wait_for(&format!("{name} to answer"), Duration::from_secs(10), || {
            server.must_run()?;
            namespace.run(|| http::fetch(target, "/").ok())
        })?;
    }
    Ok(servers)
}

fn nginx_configuration(name: &str, root: &Path) -> String {
    let root = root.display();
    format!(
        "daemon off;\n\
         master_process off;\n\
         worker_processes 1;\n\
         worker_rlimit_nofile 16384;\n\
         pid {root}/{name}.pid;\n\
         error_log stderr error;\n\
         events {{ worker_connections 8192; }}\n\
         http {{\n\
         \x20 access_log off;\n\
         \x20 keepalive_timeout 600s;\n\
         \x20 keepalive_requests 1000000;\n\
         \x20 client_body_temp_path {root}/{name}-body;\n\
         \x20 proxy_temp_path {root}/{name}-proxy;\n\
         \x20 fastcgi_temp_path {root}/{name}-fastcgi;\n\
         \x20 uwsgi_temp_path {root}/{name}-uwsgi;\n\
         \x20 scgi_temp_path {root}/{name}-scgi;\n\
         \x20 server {{\n\
         \x20   listen {SERVER_PORT} backlog=4096;\n\
         \x20   listen [::]:{SERVER_PORT} backlog=4096;\n\
         \x20   listen {VIP_PORT} backlog=4096;\n\
         \x20   listen [::]:{VIP_PORT} backlog=4096;\n\
         \x20   location / {{ return 200 \"{name}\\n\"; }}\n\
         \x20   location = {FILE} {{ root {root}; try_files /file =404; }}\n\
         \x20 }}\n\
         \x20 server {{\n\
         \x20   listen {PROXIED_PORT} proxy_protocol;\n\
         \x20   listen [::]:{PROXIED_PORT} proxy_protocol;\n\
         \x20   location / {{ return 200 \"$proxy_protocol_addr $proxy_protocol_port\n\"; }}\n\
         \x20 }}\n\
         }}\n"
    )
}
