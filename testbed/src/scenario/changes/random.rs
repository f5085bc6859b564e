//! An operator who changes things at random, and knows what must be in force.

use std::collections::{BTreeMap, VecDeque};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::random::Random;
use crate::scenario::rig::Rig;
use crate::topology::lab::{BACKENDS, Family, backend};
use crate::traffic::servers::VIP_PORT;

/// Changes that are told when something fails.
const TOLD: usize = 12;
/// Backends of each pool that stay ready, so that no pool is ever without.
const ANCHOR: &str = "app-1";
/// Routes at once.
const ROUTES: usize = 6;

/// A backend's weight and state.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Backend {
    weight: u64,
    state: &'static str,
}

/// What must be in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Model {
    /// Backends by pool and name.
    pools: BTreeMap<String, BTreeMap<String, Backend>>,
    /// Names of routes.
    routes: Vec<String>,
    /// Whether the listener that nobody uses is drained.
    side_drains: bool,
}

/// The operator.
pub(super) struct Operator {
    random: Random,
    model: Model,
    /// By number of history.
    past: BTreeMap<u64, Model>,
    last: VecDeque<String>,
    made: BTreeMap<&'static str, usize>,
}

impl Operator {
    /// Who knows what the rig started with.
    pub(super) fn new(rig: &Rig, seed: u64) -> Result<Self> {
        let mut model = Model::default();
        for pool in rig.weir.status()?.pools.iter().filter(|pool| pool.name != "script") {
            let backends = pool.backends.iter();
            let ready = |weight| Backend { weight, state: "ready" };
            let backends = backends.map(|backend| (backend.name.clone(), ready(backend.weight)));
            model.pools.insert(pool.name.clone(), backends.collect());
        }
        let mut operator = Self {
            random: Random::new(seed, "changes/under-load"),
            model,
            past: BTreeMap::new(),
            last: VecDeque::new(),
            made: BTreeMap::new(),
        };
        operator.remember(rig)?;
        Ok(operator)
    }

    /// Makes one change, and waits for its end.
    pub(super) fn change(&mut self, rig: &Rig) -> Result<()> {
        match self.random.below(100) {
            0..25 => self.weight(rig),
            25..40 => self.add(rig),
            40..50 => self.remove(rig),
            50..65 => self.drain_or_ready(rig),
            65..82 => self.route(rig),
            82..87 => self.side(rig),
            87..90 => self.algorithm(rig),
            _ => self.roll_back(rig),
        }?;
        self.remember(rig)
    }

    /// An error unless what is in force is what was asked for.
    pub(super) fn compare(&self, rig: &Rig) -> Result<()> {
        let status = rig.weir.status()?;
        for (name, wanted) in &self.model.pools {
            let pool = status.pools.iter().find(|pool| pool.name == *name);
            let pool = pool.with_context(|| format!("pool {name} is gone"))?;
            let there = pool.backends.iter().filter(|backend| backend.state != "removed");
            let there: BTreeMap<&str, (u64, &str)> = there
                .map(|backend| (backend.name.as_str(), (backend.weight, backend.state.as_str())))
                .collect();
            let wanted: BTreeMap<&str, (u64, &str)> = wanted
                .iter()
                .map(|(name, backend)| (name.as_str(), (backend.weight, backend.state)))
                .collect();
            ensure!(there == wanted, "pool {name} has {there:?}, asked for was {wanted:?}");
        }
        Ok(())
    }

    /// The last changes, for errors.
    pub(super) fn last_words(&self) -> String {
        Vec::from(self.last.clone()).join("\n")
    }

    /// How many of what.
    pub(super) fn summary(&self) -> String {
        let words: Vec<String> = self.made.iter().map(|(what, count)| format!("{what} {count}")).collect();
        words.join(", ")
    }

    fn run(&mut self, rig: &Rig, what: &'static str, arguments: &[&str]) -> Result<()> {
        if self.last.len() == TOLD {
            self.last.pop_front();
        }
        self.last.push_back(format!("weir {}", arguments.join(" ")));
        *self.made.entry(what).or_default() += 1;
        rig.weir.weir(arguments).map(drop)
    }

    /// Notes what the newest entry of history left.
    fn remember(&mut self, rig: &Rig) -> Result<()> {
        let newest = newest(rig)?;
        let before = self.past.insert(newest, self.model.clone());
        ensure!(
            before.is_none_or(|before| before == self.model),
            "the last change has no number of its own: {newest} is that of an earlier one"
        );
        Ok(())
    }

    /// A pool, and a backend of it that may be changed.
    fn choose(&mut self) -> Option<(String, String)> {
        let pools: Vec<String> = self.model.pools.keys().cloned().collect();
        let pool = self.random.pick(&pools).clone();
        let names = self.model.pools.get(&pool)?.keys();
        let names: Vec<String> = names.filter(|name| *name != ANCHOR).cloned().collect();
        (!names.is_empty()).then(|| (pool, self.random.pick(&names).clone()))
    }

    fn backend(&mut self, pool: &str, name: &str) -> Result<&mut Backend> {
        let found = self.model.pools.get_mut(pool).and_then(|pool| pool.get_mut(name));
        found.with_context(|| format!("{pool}/{name} is not known"))
    }

    fn weight(&mut self, rig: &Rig) -> Result<()> {
        let Some((pool, name)) = self.choose() else { return Ok(()) };
        // the anchor as well, but never without a weight
        let (name, least) = if self.random.below(4) == 0 { (ANCHOR.to_owned(), 1) } else { (name, 0) };
        let weight = (least + self.random.below(200)) as u64;
        self.run(rig, "weights", &["backend", "weight", &format!("{pool}/{name}"), &weight.to_string()])?;
        self.backend(&pool, &name)?.weight = weight;
        Ok(())
    }

    /// A backend at the other port of one of the servers, or one that was removed before.
    fn add(&mut self, rig: &Rig) -> Result<()> {
        let pools: Vec<String> = self.model.pools.keys().cloned().collect();
        let pool = self.random.pick(&pools).clone();
        let number = 1 + self.random.below(BACKENDS);
        let is_other = self.random.below(2) == 0;
        let (name, port) = if is_other {
            (format!("more-{number}"), VIP_PORT)
        } else {
            (format!("app-{number}"), crate::traffic::servers::SERVER_PORT)
        };
        if self.model.pools.get(&pool).is_some_and(|pool| pool.contains_key(&name)) {
            return self.weight(rig);
        }
        let weight = 1 + self.random.below(100) as u64;
        let address = std::net::SocketAddr::new(backend(Family::Ipv4, number), port).to_string();
        let (place, share) = (format!("{pool}/{name}"), weight.to_string());
        let words = ["backend", "add", &place, "--address", &address, "--weight", &share];
        self.run(rig, "adds", &words)?;
        self.model.pools.entry(pool).or_default().insert(name, Backend { weight, state: "ready" });
        Ok(())
    }

    fn remove(&mut self, rig: &Rig) -> Result<()> {
        let Some((pool, name)) = self.choose() else { return Ok(()) };
        self.run(rig, "removes", &["backend", "remove", &format!("{pool}/{name}")])?;
        self.model.pools.entry(pool).or_default().remove(&name);
        Ok(())
    }

    fn drain_or_ready(&mut self, rig: &Rig) -> Result<()> {
        let Some((pool, name)) = self.choose() else { return Ok(()) };
        let state = if self.backend(&pool, &name)?.state == "ready" { "drain" } else { "ready" };
        let what = if state == "drain" { "drains" } else { "readies" };
        self.run(rig, what, &["backend", state, &format!("{pool}/{name}")])?;
        self.backend(&pool, &name)?.state = state;
        Ok(())
    }

    /// A route comes, goes, or leads elsewhere; some take every request.
    fn route(&mut self, rig: &Rig) -> Result<()> {
        let number = self.random.below(ROUTES);
        let name = format!("r{number}");
        let pool = format!("pool={}", self.random.pick(&["app", "other"]));
        if !self.model.routes.contains(&name) {
            // two of the same condition need another priority
            let priority = format!("priority={}", 1 + number);
            let takes = if number.is_multiple_of(2) {
                "method=GET".to_owned()
            } else {
                format!("path_prefix=/{name}")
            };
            self.run(rig, "routes", &["route", "add", &name, "listener=web", &takes, &priority, &pool])?;
            self.model.routes.push(name);
        } else if self.random.below(2) == 0 {
            self.run(rig, "routes", &["route", "set", &name, &pool])?;
        } else {
            self.run(rig, "routes", &["route", "remove", &name])?;
            self.model.routes.retain(|other| *other != name);
        }
        Ok(())
    }

    /// The listener that nobody uses.
    fn side(&mut self, rig: &Rig) -> Result<()> {
        let word = if self.model.side_drains { "ready" } else { "drain" };
        self.run(rig, "listeners", &["listener", word, "side"])?;
        self.model.side_drains = !self.model.side_drains;
        Ok(())
    }

    fn algorithm(&mut self, rig: &Rig) -> Result<()> {
        let algorithm = *self.random.pick(&["round-robin", "maglev", "least-conn", "random-two"]);
        self.run(rig, "algorithms", &["pool", "set", "app", &format!("algorithm={algorithm}")])
    }

    /// Back to what some change left, which must then be in force again.
    fn roll_back(&mut self, rig: &Rig) -> Result<()> {
        let numbers: Vec<u64> = self.past.keys().copied().collect();
        let to = *self.random.pick(&numbers);
        self.run(rig, "rollbacks", &["rollback", &to.to_string()])?;
        self.model = self.past.get(&to).context("a change that is not known")?.clone();
        let left = rig.weir.weir(&["diff", &to.to_string(), &newest(rig)?.to_string()])?;
        ensure!(left.trim() == "no difference", "change {to} is not what its rollback left:\n{left}");
        Ok(())
    }
}

/// Number of the last change.
fn newest(rig: &Rig) -> Result<u64> {
    let history: Value = serde_json::from_str(&rig.weir.weir(&["history", "--json"])?)?;
    history["changes"][0]["number"].as_u64().with_context(|| format!("no change in {history}"))
}
