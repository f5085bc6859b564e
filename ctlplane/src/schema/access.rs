//! `[[access_list]]`, and what a listener asks of new flows.

use std::net::IpAddr;

use weir_abi::access::{MAX_CONNECTIONS_PER_SOURCE, MAX_RATES};
use weir_access::Per;
use weir_access::file::parse_prefix;
use weir_access::rate::{MAX_PER_SECOND, MAX_PER_SECOND_OF_SOURCE};

use crate::diagnostic::{Diagnostic, Located, Span};
use crate::reader::TableReader;

/// `[[access_list]]`.
#[derive(Debug)]
pub struct AccessList {
    /// Place of the section.
    pub span: Span,
    /// `name`.
    pub name: Option<Located<String>>,
    /// `default`: whether what no prefix has is denied.
    pub default_deny: Option<Located<bool>>,
    /// `allow`, as written: host bits may be set.
    pub allow: Vec<Located<(IpAddr, u8)>>,
    /// `deny`, as written.
    pub deny: Vec<Located<(IpAddr, u8)>>,
    /// `files`: each line says allow or deny.
    pub files: Vec<Located<String>>,
    /// `allow_files`: prefixes.
    pub allow_files: Vec<Located<String>>,
    /// `deny_files`: prefixes.
    pub deny_files: Vec<Located<String>>,
}

/// What a listener asks of new flows.
#[derive(Debug, Default)]
pub struct Access {
    /// `access`, the name of a list.
    pub list: Option<Located<String>>,
    /// `rate`.
    pub rates: Vec<FlowRate>,
    /// `connections_per_source`.
    pub connections_per_source: Option<Located<u32>>,
}

/// An element of `rate`.
#[derive(Debug)]
pub struct FlowRate {
    /// Its place.
    pub span: Span,
    /// `prefix`.
    pub prefix: Option<Located<(IpAddr, u8)>>,
    /// `per_second`.
    pub per_second: Option<Located<u32>>,
    /// `burst`.
    pub burst: Option<Located<u32>>,
    /// `per`.
    pub per: Option<Located<Per>>,
}

const PREFIX: &str = "a prefix like \"198.18.0.0/16\", or an address";
const PATH: &str = "an absolute path";

pub(super) fn read_list(table: &mut TableReader<'_, '_>) -> AccessList {
    let name = super::read_name(table);
    table.require("default", "\"allow\"");
    let path = |text: &str| {
        if text.starts_with('/') { Ok(text.to_owned()) } else { Err(format!("\"{text}\" is not absolute")) }
    };
    AccessList {
        span: table.span(),
        name,
        default_deny: table.word("default", &[("allow", false), ("deny", true)], &[]),
        allow: table.parsed_one_or_many("allow", PREFIX, parse_prefix),
        deny: table.parsed_one_or_many("deny", PREFIX, parse_prefix),
        files: table.parsed_one_or_many("files", PATH, path),
        allow_files: table.parsed_one_or_many("allow_files", PATH, path),
        deny_files: table.parsed_one_or_many("deny_files", PATH, path),
    }
}

pub(super) fn read(table: &mut TableReader<'_, '_>) -> Access {
    let rates = table.tables("rate", "listener.rate", read_rate);
    if let Some(rate) = rates.get(MAX_RATES as usize) {
        let finding = Diagnostic::error(rate.span, format!("{} rates are too many", rates.len()));
        table.diagnostics().push(finding.help(format!("use at most {MAX_RATES} in one listener")));
    }
    Access {
        list: table.string("access", "the name of an access_list"),
        rates,
        connections_per_source: table.integer(
            "connections_per_source",
            1,
            MAX_CONNECTIONS_PER_SOURCE,
            "connections at once (leave it out for no limit)",
        ),
    }
}

fn read_rate(table: &mut TableReader<'_, '_>) -> FlowRate {
    table.require("prefix", "\"0.0.0.0/0\"");
    table.require("per_second", "1000");
    let per = table.word("per", &[("source", Per::Source), ("prefix", Per::Prefix)], &[]);
    let of_source = per.as_ref().is_none_or(|per| per.value == Per::Source);
    let most = if of_source { MAX_PER_SECOND_OF_SOURCE } else { MAX_PER_SECOND };
    FlowRate {
        span: table.span(),
        prefix: table.parsed("prefix", PREFIX, parse_prefix),
        per_second: table.integer("per_second", 1, most, "new flows a second"),
        burst: table.integer("burst", 1, 10_000_000, "new flows at once"),
        per,
    }
}
