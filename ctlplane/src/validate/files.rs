//! What is in the files that a configuration names: bodies of responses?

use std::collections::HashMap;
use std::fs;
use std::io::Read as _;

use weir_abi::http::MAX_BODY_BYTES;

use crate::diagnostic::{Diagnostic, Located};

/// A file's content, or what is wrong with it and what to do.
type Content = Result<Box<[u8]>, (String, &'static str)>;

/// Bodies that were read, each file once.
#[derive(Debug, Default)]
pub(super) struct Files {
    read: HashMap<String, Content>,
}

impl Files {
    /// The content of a file, or what is wrong with it.
    pub(super) fn body(&mut self, path: &Located<String>) -> Result<Box<[u8]>, Box<Diagnostic>> {
        let found = self.read.entry(path.value.clone()).or_insert_with(|| read(&path.value));
        found.clone().map_err(|(message, help)| Box::new(Diagnostic::error(path.span, message).help(help)))
    }
}

fn read(path: &str) -> Content {
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
    open.take(MAX_BODY_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() > MAX_BODY_BYTES {
        return Err((
            format!("{path} is larger than 64 KiB"),
            "use a smaller body, or a backend that serves it",
        ));
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
