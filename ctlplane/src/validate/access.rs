//! Do the access lists make sense, with the files that they name, and do listeners ask for what there is?

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use weir_abi::image::MAX_TABLE_BYTES;
use weir_access::file::{self, Entry, MAX_PREFIXES};
use weir_access::rate::MAX_FILL_SECONDS;
use weir_access::{List, Per, Prefix, Rate};

use super::Rules;
use super::files::Files;
use crate::diagnostic::{Diagnostic, Located, Span};
use crate::model;
use crate::schema::access::{AccessList, FlowRate};
use crate::units::family_name;

/// The lists, and what each listener asks, by position.
#[derive(Debug, Default)]
pub(super) struct Access {
    pub(super) lists: Vec<Arc<model::AccessList>>,
    pub(super) listeners: HashMap<usize, model::Access>,
}

/// Where a prefix was written.
#[derive(Clone, Copy)]
struct Origin<'a> {
    span: Span,
    /// A file and its line.
    line: Option<(&'a str, usize)>,
}

impl Origin<'_> {
    fn told(self) -> String {
        self.line.map_or(String::new(), |(file, line)| format!("{file}:{line}: "))
    }
}

/// Prefixes of a list, each with where it was written first.
#[derive(Default)]
struct Collected<'a> {
    prefixes: Vec<(Prefix, bool)>,
    origins: HashMap<Prefix, (bool, Origin<'a>)>,
    repeated: usize,
    first_repeated: Option<(Prefix, Origin<'a>)>,
}

impl Rules<'_> {
    pub(super) fn access(&mut self, files: &mut Files) -> Access {
        let schema = self.schema;
        self.unique_names("access lists", schema.access_lists.iter().filter_map(|list| list.name.as_ref()));
        if let Some(list) = schema.access_lists.get(weir_abi::access::MAX_LISTS) {
            self.push(Diagnostic::error(list.span, "too many access lists").help("use at most 1,024"));
        }
        let mut access = Access::default();
        let mut positions = HashMap::new();
        for list in &schema.access_lists {
            let Some(name) = &list.name else { continue };
            // a list that can't be built is an error already; its listeners shall not be told that there is none
            let built = self.access_list(list, files);
            positions
                .entry(name.value.as_str())
                .or_insert((built.is_some().then_some(access.lists.len()), list));
            access.lists.extend(built);
        }
        let vips: HashMap<&str, IpAddr> = schema
            .vips
            .iter()
            .filter_map(|vip| Some((vip.name.as_ref()?.value.as_str(), vip.address.as_ref()?.value)))
            .collect();
        for (at, listener) in schema.listeners.iter().enumerate() {
            let vip = listener.vip.as_ref().and_then(|name| vips.get(name.value.as_str()).copied());
            let asked = &listener.access;
            let found = asked.list.as_ref().and_then(|name| {
                let (position, _) = self.lookup("access_list", name, &positions, "access_list")?;
                if let (Some(list), Some(vip)) = (position.and_then(|at| access.lists.get(at)), vip) {
                    self.list_fits(name, list, vip);
                }
                position
            });
            let rates = self.rates(&asked.rates, vip);
            let connections_per_source = asked.connections_per_source.as_ref().map_or(0, |most| most.value);
            let of_listener = model::Access { list: found, rates, connections_per_source };
            if of_listener != model::Access::default() {
                access.listeners.insert(at, of_listener);
            }
        }
        let named: Vec<&str> =
            schema.listeners.iter().filter_map(|l| Some(l.access.list.as_ref()?.value.as_str())).collect();
        for list in &schema.access_lists {
            let Some(name) = list.name.as_ref().filter(|name| !named.contains(&name.value.as_str())) else {
                continue;
            };
            let message = format!("no listener uses access list \"{}\"", name.value);
            let help = format!("add access = \"{}\" to a [[listener]]", name.value);
            self.push(Diagnostic::warning(name.span, message).help(help));
        }
        access
    }

    /// A list whose prefixes none has the family of the listener's clients decides nothing there.
    fn list_fits(&mut self, name: &Located<String>, list: &model::AccessList, vip: IpAddr) {
        let of_family = |(prefix, _): &(Prefix, bool)| prefix.network.is_ipv4() == vip.is_ipv4();
        if list.prefixes.is_empty() || list.prefixes.iter().any(of_family) {
            return;
        }
        let (family, word) = (family_name(vip), if list.default_deny { "denied" } else { "allowed" });
        let message =
            format!("access list \"{}\" has no {family} prefix: all clients here are {word}", list.name);
        let help = format!("add {family} prefixes to the list, or name another");
        self.push(Diagnostic::warning(name.span, message).help(help));
    }

    fn access_list(&mut self, list: &AccessList, files: &mut Files) -> Option<Arc<model::AccessList>> {
        let mut contents: Vec<(&Located<String>, Vec<Entry>)> = Vec::new();
        let mut is_whole = true;
        let named = [(&list.files, None), (&list.allow_files, Some(false)), (&list.deny_files, Some(true))];
        for (paths, deny) in named {
            for path in paths {
                match self.read_list_file(path, deny, files) {
                    Some(entries) => contents.push((path, entries)),
                    None => is_whole = false,
                }
            }
        }
        let mut collected = Collected::default();
        for (prefixes, deny) in [(&list.allow, false), (&list.deny, true)] {
            for prefix in prefixes {
                let origin = Origin { span: prefix.span, line: None };
                self.collect(&mut collected, prefix.value, deny, origin);
            }
        }
        for (path, entries) in &contents {
            for entry in entries {
                let origin = Origin { span: path.span, line: Some((&path.value, entry.line)) };
                self.collect(&mut collected, entry.prefix, entry.deny, origin);
            }
        }
        if let Some((prefix, origin)) = collected.first_repeated {
            let more = match collected.repeated {
                1 => String::new(),
                count => format!(", and so are {} more", count - 1),
            };
            let message = format!("{}{prefix} is listed twice{more}", origin.told());
            self.push(Diagnostic::warning(origin.span, message).help("remove what is there twice"));
        }
        let name = list.name.as_ref()?;
        if collected.prefixes.len() > MAX_PREFIXES {
            let message = format!("{} prefixes in access list \"{}\"", collected.prefixes.len(), name.value);
            let help = format!("use at most {MAX_PREFIXES}: join neighbours to shorter prefixes");
            self.push(Diagnostic::error(name.span, message).help(help));
            return None;
        }
        let default_deny = list.default_deny.as_ref()?.value;
        // in one order, so that a list of the same prefixes is the same list
        collected.prefixes.sort_unstable();
        self.covered(name.span, &collected, default_deny);
        let built = List::build(&collected.prefixes, default_deny).ok().filter(|list| {
            // the file is about as large
            list.bytes() < MAX_TABLE_BYTES / 2
        });
        let Some(built) = built else {
            let message = format!("access list \"{}\" takes more than 32 MiB as a table", name.value);
            self.push(Diagnostic::error(name.span, message).help("join neighbours to shorter prefixes"));
            return None;
        };
        is_whole.then(|| {
            Arc::new(model::AccessList {
                name: name.value.clone(),
                default_deny,
                prefixes: collected.prefixes,
                built,
            })
        })
    }

    fn read_list_file(
        &mut self,
        path: &Located<String>,
        deny: Option<bool>,
        files: &mut Files,
    ) -> Option<Vec<Entry>> {
        let content = match files.list(path) {
            Ok(content) => content,
            Err(finding) => {
                self.push(*finding);
                return None;
            }
        };
        let (entries, faults) = file::parse(&content, deny);
        for fault in &faults {
            let message = format!("{}:{}:{}: {}", path.value, fault.line, fault.column, fault.message);
            let line = if deny.is_none() { "\"allow PREFIX\" or \"deny PREFIX\"" } else { "a prefix" };
            let help = format!("write {line}, one a line; # begins a comment");
            self.push(Diagnostic::error(path.span, message).help(help));
        }
        if entries.is_empty() && faults.is_empty() {
            let message = format!("{} has no prefixes", path.value);
            self.push(Diagnostic::warning(path.span, message).help("remove it, or fill it"));
        }
        faults.is_empty().then_some(entries)
    }

    fn collect<'a>(
        &mut self,
        collected: &mut Collected<'a>,
        (address, length): (IpAddr, u8),
        deny: bool,
        origin: Origin<'a>,
    ) {
        let prefix = Prefix::new(address, length);
        if prefix.network != address {
            let message = format!(
                "{}{address}/{length} has bits set after its prefix length: {prefix} is meant here",
                origin.told()
            );
            self.push(
                Diagnostic::warning(origin.span, message).help(format!("write {prefix}, or {address}")),
            );
        }
        match collected.origins.get(&prefix) {
            None => {
                collected.origins.insert(prefix, (deny, origin));
                collected.prefixes.push((prefix, deny));
            }
            Some((before, _)) if *before == deny => {
                collected.repeated += 1;
                collected.first_repeated.get_or_insert((prefix, origin));
            }
            Some((_, first)) => {
                let message = format!("{}{prefix} is both allowed and denied", origin.told());
                let first_here = format!("{}first here", first.told());
                let finding = Diagnostic::error(origin.span, message).related(first.span, first_here);
                self.push(finding.help("remove one of them: of different lengths, the longer decides"));
            }
        }
    }

    /// Prefixes that say what a shorter one around them says already: harmless, but perhaps not meant.
    fn covered(&mut self, span: Span, collected: &Collected<'_>, default_deny: bool) {
        let mut around: Vec<(Prefix, bool)> = Vec::new();
        let mut covered = 0;
        let mut first = None;
        for (prefix, deny) in &collected.prefixes {
            // sorted by network, then length: what is around comes before
            while around.last().is_some_and(|(outer, _)| !outer.contains(prefix.network)) {
                around.pop();
            }
            if let Some((outer, _)) = around.last().filter(|(_, same)| same == deny) {
                covered += 1;
                first.get_or_insert((*prefix, *outer, *deny));
            }
            around.push((*prefix, *deny));
        }
        let Some((prefix, outer, deny)) = first else { return };
        let origin =
            collected.origins.get(&prefix).map_or(Origin { span, line: None }, |(_, origin)| *origin);
        let word = if deny { "denied" } else { "allowed" };
        let default = if default_deny == deny { ", as by default" } else { "" };
        let more = match covered {
            1 => String::new(),
            count => format!("; {} more are within others alike", count - 1),
        };
        let message = format!("{}{prefix} is {word} by {outer} already{default}{more}", origin.told());
        self.push(Diagnostic::warning(origin.span, message).help("leave it out, it changes nothing"));
    }

    fn rates(&mut self, rates: &[FlowRate], vip: Option<IpAddr>) -> Vec<Rate> {
        let mut found: Vec<Rate> = Vec::new();
        for rate in rates {
            let (Some(prefix), Some(per_second)) = (&rate.prefix, &rate.per_second) else { continue };
            let (address, length) = prefix.value;
            let network = Prefix::new(address, length);
            if network.network != address {
                let message = format!("{address}/{length} has bits set after its prefix length");
                let help = format!("write {network}");
                self.push(Diagnostic::error(prefix.span, message).help(help));
            }
            if let Some(vip) = vip.filter(|vip| vip.is_ipv4() != network.network.is_ipv4()) {
                let message = format!("no client of an {} vip is in {network}", family_name(vip));
                self.push(Diagnostic::warning(prefix.span, message).help("remove it"));
            }
            let per = rate.per.as_ref().map_or(Per::Source, |per| per.value);
            let per_second = per_second.value;
            let burst = rate.burst.as_ref().map_or(per_second, |burst| burst.value);
            if u64::from(burst) > u64::from(per_second) * MAX_FILL_SECONDS {
                let span = rate.burst.as_ref().map_or(rate.span, |burst| burst.span);
                let message = format!("a burst of {burst} takes more than an hour to fill at {per_second}/s");
                let help = format!("use at most {}", u64::from(per_second) * MAX_FILL_SECONDS);
                self.push(Diagnostic::error(span, message).help(help));
            }
            if found.iter().any(|other| other.prefix == network && other.per == per) {
                let message = format!("{network} has two rates of this kind");
                self.push(Diagnostic::error(prefix.span, message).help("remove one of them"));
            }
            found.push(Rate { prefix: network, per_second, burst, per });
        }
        found
    }
}
