//! Why does a request take this route and not another?
//!
//! Asks every route in order, one question after the other, without the index: slow, for `weir explain request`. Tests hold it
//! against [`RouteTable::find`], which must come to the same end.

use super::question::{Fields, Question};
use super::spec::{Action, Host, Path};
use super::table::{RouteTable, covers, trimmed};

/// Most routes that are told of.
pub const CONSIDERED: usize = 64;

/// What a route says to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It takes the request.
    Taken,
    /// It would take the request, but another one comes first.
    Behind,
    /// It is for another host.
    OtherHost,
    /// It is for another path.
    OtherPath,
    /// This one of its conditions, the first of them that does, fails.
    Failed {
        /// Its place among the route's conditions.
        condition: usize,
    },
}

/// A route and what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Considered {
    /// The route's place in the list.
    pub route: usize,
    /// What it says.
    pub verdict: Verdict,
}

/// Why a request takes its route.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Explanation {
    /// The place of the route that takes it; `None`: no route does.
    pub taken: Option<usize>,
    /// Routes in the order in which they are asked: the one that takes the request, and of the others those that came closest,
    /// at most [`CONSIDERED`] in all.
    pub considered: Vec<Considered>,
    /// Routes that are not told of.
    pub left_off: usize,
    /// The pools that the route splits requests among, with their share in hundredths of a percent.
    pub pools: Vec<(u32, u32)>,
}

impl RouteTable {
    /// Why a request takes the route that [`Self::find`] tells.
    pub fn explain<F: Fields + ?Sized>(&self, question: &Question<'_, F>) -> Explanation {
        let mut taken = None;
        let mut considered = Vec::new();
        for (rank, route) in self.in_order().enumerate() {
            let verdict = match self.verdict(rank, route, question) {
                Verdict::Taken if taken.is_some() => Verdict::Behind,
                verdict => verdict,
            };
            if verdict == Verdict::Taken {
                taken = Some(route);
            }
            considered.push(Considered { route, verdict });
        }
        let all = considered.len();
        // those of other hosts go first, then those of other paths, from the end
        for distance in [Verdict::OtherHost, Verdict::OtherPath] {
            let mut excess = considered.len().saturating_sub(CONSIDERED);
            let mut kept = Vec::with_capacity(considered.len());
            for one in considered.into_iter().rev() {
                if one.verdict == distance && excess > 0 {
                    excess -= 1;
                } else {
                    kept.push(one);
                }
            }
            kept.reverse();
            considered = kept;
        }
        // one place is for the route that takes the request, wherever it stands
        let mut others = CONSIDERED - usize::from(taken.is_some());
        considered.retain(|one| {
            let is_kept = one.verdict == Verdict::Taken || others > 0;
            others -= usize::from(is_kept && one.verdict != Verdict::Taken);
            is_kept
        });
        let pools = match taken.and_then(|taken| self.route(taken)).map(|route| &route.action) {
            Some(Action::Pools(splits)) => {
                let sum: u64 = splits.iter().map(|split| u64::from(split.weight)).sum();
                let share = |weight: u32| (u64::from(weight) * 10_000).checked_div(sum).unwrap_or(0) as u32;
                splits.iter().map(|split| (split.pool, share(split.weight))).collect()
            }
            _ => Vec::new(),
        };
        Explanation { taken, left_off: all - considered.len(), considered, pools }
    }

    /// What a route says, were it alone.
    fn verdict<F: Fields + ?Sized>(&self, rank: usize, place: usize, question: &Question<'_, F>) -> Verdict {
        let Some(route) = self.route(place) else { return Verdict::OtherHost };
        if !is_for(&route.host, question.host) {
            return Verdict::OtherHost;
        }
        let fits = match &route.path {
            Path::Any => true,
            Path::Exact(path) => path.as_bytes() == question.path,
            Path::Prefix(prefix) => covers(trimmed(prefix).as_bytes(), question.path),
            Path::Regex(_) => self.regex_of(rank).is_some_and(|pattern| pattern.matches(question.path)),
        };
        if !fits {
            return Verdict::OtherPath;
        }
        match self.tests_of(rank).iter().position(|test| !test.passes(question)) {
            Some(condition) => Verdict::Failed { condition },
            None => Verdict::Taken,
        }
    }
}

fn is_for(host: &Host, asked: &[u8]) -> bool {
    let asked = asked.strip_suffix(b".").unwrap_or(asked);
    match host {
        Host::Any => true,
        Host::Exact(name) => name.as_bytes().eq_ignore_ascii_case(asked),
        Host::Suffix(suffix) => {
            let at = asked.len().saturating_sub(suffix.len());
            at > 0 && asked.get(at..).is_some_and(|end| end.eq_ignore_ascii_case(suffix.as_bytes()))
        }
    }
}
