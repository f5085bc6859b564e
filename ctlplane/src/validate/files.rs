//! What is in the files that a configuration names: bodies of responses, and prefix lists?

use std::collections::HashMap;
use std::fs;
use std::io::Read as _;
use std::sync::Arc;

use weir_abi::http::MAX_BODY_BYTES;
use weir_access::file::MAX_FILE_BYTES;

use crate::diagnostic::{Diagnostic, Located};
use crate::state::Bodies;

/// A file's content, or what is wrong with it and what to do.
type Content = Result<Arc<[u8]>, (String, &'static str)>;

/// Bodies that were read, each file once.
#[derive(Debug, Default)]
pub struct Files {
    read: HashMap<String, Content>,
    is_kept: bool,
}

impl Files {
    /// Files whose contents were kept when their configuration was applied: the disk is asked for others only.
    pub fn kept(bodies: &Bodies) -> Self {
        let read = bodies.iter().map(|(path, content)| (path.clone(), Ok(content.clone()))).collect();
        Self { read, is_kept: true }
    }

    /// Whether the configuration was applied before, with all that it names: files that are gone since keep it from nothing.
    pub(super) fn is_kept(&self) -> bool {
        self.is_kept
    }

    /// The contents, to be kept.
    pub fn into_bodies(self) -> Bodies {
        self.read.into_iter().filter_map(|(path, content)| Some((path, content.ok()?))).collect()
    }

    /// The content of a file, or what is wrong with it.
    pub(super) fn body(&mut self, path: &Located<String>) -> Result<Box<[u8]>, Box<Diagnostic>> {
        self.content(path, &BODY).map(|content| Box::from(&*content))
    }

    /// The content of a prefix list, or what is wrong with the file.
    pub(super) fn list(&mut self, path: &Located<String>) -> Result<Arc<[u8]>, Box<Diagnostic>> {
        self.content(path, &LIST)
    }

    fn content(&mut self, path: &Located<String>, kind: &Kind) -> Result<Arc<[u8]>, Box<Diagnostic>> {
        let found = self.read.entry(path.value.clone()).or_insert_with(|| read(&path.value, kind));
        found.clone().map_err(|(message, help)| Box::new(Diagnostic::error(path.span, message).help(help)))
    }
}

/// How files differ from what was kept of them, each in a line.
pub fn differences(bodies: &Bodies) -> Vec<String> {
    let mut list = Vec::new();
    for (path, kept) in bodies {
        match read(path, &LIST) {
            Ok(content) if content == *kept => {}
            Ok(_) => list.push(format!("{path} differs from what was applied; weir apply reads it again")),
            Err((message, _)) => {
                list.push(format!("{message}; what was applied of it stays in force until weir apply"));
            }
        }
    }
    list
}

/// What a file is for.
struct Kind {
    most: usize,
    /// What it must not be larger than, and what to do then.
    too_large: (&'static str, &'static str),
}

const BODY: Kind =
    Kind { most: MAX_BODY_BYTES, too_large: ("64 KiB", "use a smaller body, or a backend that serves it") };
const LIST: Kind =
    Kind { most: MAX_FILE_BYTES, too_large: ("32 MiB", "join neighbours to shorter prefixes") };

fn read(path: &str, kind: &Kind) -> Content {
    if !path.starts_with('/') {
        return Err((
            format!("\"{path}\" is not an absolute path"),
            "begin it with /: weir-ctlplane reads the file",
        ));
    }
    let unreadable = |error: std::io::Error| {
        (
            format!("cannot read {path}: {error}"),
            "name a file that weir-ctlplane may read; it is read by weir apply",
        )
    };
    // a pipe or a device would keep the reader waiting
    if !fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err((format!("{path} is not a file"), "name a regular file"));
    }
    let mut bytes = Vec::new();
    let open = fs::File::open(path).map_err(unreadable)?;
    open.take(kind.most as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() > kind.most {
        let (size, help) = kind.too_large;
        return Err((format!("{path} is larger than {size}"), help));
    }
    Ok(bytes.into())
}

/// The media type of a file, by the end of its name.
pub(super) fn content_type(path: &str) -> &'static str {
    match path.rsplit('.').next().unwrap_or("") {
        "html" | "htm" => "text/html; charset=utf-8",
        "txt" => "text/plain; charset=utf-8",
        "json" => "application/json",
        _ => "application/octet-stream",
    }
}
