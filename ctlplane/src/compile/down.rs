//! Which backends take new flows, all things considered?
//!
//! In this order; each rule sees only what those before it have left:
//!
//! 1. An administrative `drain` or `maint` says what it says whatever health finds.
//! 2. A backend that is down by its checks takes none. (Breakers of HTTP, per worker, come next; they see what is left here.)
//! 3. A backend of weight 0 takes some only where every other that could is down.
//! 4. Where fewer than `panic_threshold` of those with a weight are up, or none is, health is ignored: so many of them being down
//!    says more about the checks than about the backends, and the few that are left would break down under the load of all.
//! 5. A backend that was down comes back with a tenth of its weight, which grows over `slow_start`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use weir_abi::record::AdminState;

use super::effective;
use crate::model::Pool;
use crate::state::Override;

/// Steps of a slow start: each costs a table.
const STEPS: u32 = 10;

/// What health found, by pool. Lives as long as the daemon: it is found out again, never kept.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Down {
    pools: BTreeMap<String, PoolHealth>,
}

/// What health found about a pool's backends.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PoolHealth {
    /// Those that are down, with the reason.
    pub down: BTreeMap<String, String>,
    /// Those that are on their way back to their weight.
    rising: BTreeMap<String, Rising>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Rising {
    since: Instant,
    over: Duration,
    /// Tenths that it has, 1 to 9.
    step: u32,
}

impl Down {
    /// A backend is down; false where it was.
    pub fn set_down(&mut self, pool: &str, backend: &str, reason: &str) -> bool {
        let of_pool = self.pools.entry(pool.to_owned()).or_default();
        of_pool.rising.remove(backend);
        of_pool.down.insert(backend.to_owned(), reason.to_owned()).is_none()
    }

    /// A backend is up, with all its weight after `slow_start`; false where it was up.
    pub fn set_up(&mut self, pool: &str, backend: &str, slow_start: Duration, now: Instant) -> bool {
        let Some(of_pool) = self.pools.get_mut(pool) else { return false };
        let was_down = of_pool.down.remove(backend).is_some();
        if was_down && slow_start > Duration::ZERO {
            let rising = Rising { since: now, over: slow_start, step: 1 };
            of_pool.rising.insert(backend.to_owned(), rising);
        }
        self.pools.retain(|_, of_pool| !of_pool.is_nothing());
        was_down
    }

    /// Lets weights grow that should; false where none does.
    pub fn grow(&mut self, now: Instant) -> bool {
        let mut has_grown = false;
        for of_pool in self.pools.values_mut() {
            of_pool.rising.retain(|_, rising| {
                let tenths = now.duration_since(rising.since).as_millis() * u128::from(STEPS)
                    / rising.over.as_millis().max(1);
                let step = u32::try_from(tenths).unwrap_or(STEPS).clamp(1, STEPS);
                has_grown |= step != rising.step;
                rising.step = step;
                step < STEPS
            });
        }
        if has_grown {
            self.pools.retain(|_, of_pool| !of_pool.is_nothing());
        }
        has_grown
    }

    /// Of one pool.
    pub fn of(&self, pool: &str) -> Option<&PoolHealth> {
        self.pools.get(pool)
    }

    /// All that are down: pool, backend, reason.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        self.pools.iter().flat_map(|(pool, of_pool)| {
            of_pool.down.iter().map(move |(name, reason)| (pool.as_str(), name.as_str(), reason.as_str()))
        })
    }
}

impl PoolHealth {
    fn is_nothing(&self) -> bool {
        self.down.is_empty() && self.rising.is_empty()
    }
}

/// What health comes to in a pool's tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Acting {
    /// Backends for which being down has an effect.
    pub down: BTreeSet<String>,
    /// Those of weight 0 serve, in equal parts.
    pub weightless_serve: bool,
    /// Tenths of their weight that backends have which are on their way back.
    pub tenths: BTreeMap<String, u32>,
    /// Health is ignored.
    pub is_panic: bool,
}

impl Acting {
    /// The weight of a backend that is ready, in the pool's own scale.
    pub fn weight(&self, name: &str, weight: u16) -> u32 {
        if self.down.contains(name) {
            return 0;
        }
        match weight {
            0 => self.weightless_serve.into(),
            weight if self.tenths.is_empty() => weight.into(),
            weight => u32::from(weight) * self.tenths.get(name).copied().unwrap_or(STEPS),
        }
    }
}

/// What `health` comes to in `pool`.
pub fn acting(
    pool: &Pool,
    overrides: Option<&BTreeMap<String, Override>>,
    health: Option<&PoolHealth>,
) -> Acting {
    let Some(health) = health.filter(|health| !health.is_nothing()) else { return Acting::default() };
    let is_up = |name: &str| !health.down.contains_key(name);
    let (mut weighty, mut weighty_up, mut weightless_up) = (0u64, 0u64, 0u64);
    for backend in &pool.backends {
        let set = overrides.and_then(|overrides| overrides.get(&backend.name));
        let (weight, state) = effective(backend, set);
        let up = u64::from(is_up(&backend.name));
        match (state, weight) {
            (AdminState::Ready, 0) => weightless_up += up,
            (AdminState::Ready, _) => {
                weighty += 1;
                weighty_up += up;
            }
            _ => {}
        }
    }
    let weightless_serve = weighty > 0 && weighty_up == 0 && weightless_up > 0;
    let is_panic = !weightless_serve
        && weighty_up < weighty
        && pool
            .panic_percent
            .is_some_and(|percent| weighty_up == 0 || weighty_up * 100 < weighty * u64::from(percent));
    if is_panic {
        return Acting { is_panic, ..Acting::default() };
    }
    let configured = pool.backends.iter().map(|backend| &backend.name);
    let down = configured.filter(|name| !is_up(name)).cloned().collect();
    // where all that serve are on their way back, they share the load evenly
    let tenths: BTreeMap<String, u32> =
        health.rising.iter().map(|(name, rising)| (name.clone(), rising.step)).collect();
    Acting { down, weightless_serve, tenths, is_panic }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnostic::Source;
    use crate::machine::Machine;
    use crate::validate;

    /// A pool of backends with these weights, named a, b, c and so on.
    fn pool(weights: &[u16], panic: &str) -> Pool {
        let mut text = String::from(
            "[[port]]\nname = \"p\"\ndevice = \"null:\"\naddresses = [\"198.18.0.254/16\"]\n[[pool]]\nname = \"p\"\n",
        );
        if !panic.is_empty() {
            text += &format!("panic_threshold = \"{panic}\"\n");
        }
        for (at, weight) in weights.iter().enumerate() {
            let name = char::from(b'a' + at as u8);
            text += &format!(
                "[[pool.backend]]\nname = \"{name}\"\naddress = \"198.18.1.{}:80\"\nweight = {weight}\n",
                at + 1
            );
        }
        let machine = Machine::with_cpus(vec![0, 1]);
        let (model, findings) = validate::load(Source { name: "t", text: &text }, &machine);
        let model = model.unwrap_or_else(|| panic!("{findings:?}"));
        Pool::clone(&model.pools[0])
    }

    /// Weights of all backends, where these are down.
    fn weights(pool: &Pool, down: &str) -> Vec<u32> {
        let mut health = Down::default();
        for name in down.chars() {
            health.set_down("p", &name.to_string(), "why");
        }
        let acting = acting(pool, None, health.of("p"));
        pool.backends.iter().map(|backend| acting.weight(&backend.name, backend.weight)).collect()
    }

    #[test]
    fn each_rule_sees_what_those_before_it_left() {
        let usual = pool(&[10, 20, 0, 0], "");
        assert_eq!(weights(&usual, ""), [10, 20, 0, 0]);
        assert_eq!(weights(&usual, "a"), [0, 20, 0, 0]);
        assert_eq!(weights(&usual, "ab"), [0, 0, 1, 1], "weight 0 serves where the others are down");
        assert_eq!(weights(&usual, "abc"), [0, 0, 0, 1]);
        assert_eq!(weights(&usual, "abcd"), [10, 20, 0, 0], "all are down: health is ignored");
        let stubborn = pool(&[10, 20], "off");
        assert_eq!(weights(&stubborn, "ab"), [0, 0], "not where that is off");
        let half = pool(&[1, 1, 1, 1], "50%");
        assert_eq!(weights(&half, "ab"), [0, 0, 1, 1]);
        assert_eq!(weights(&half, "abc"), [1, 1, 1, 1]);
        assert_eq!(weights(&pool(&[1, 1], "100%"), "a"), [1, 1]);
    }

    #[test]
    fn who_comes_back_grows() {
        let pool = pool(&[100, 100], "");
        let began = Instant::now();
        let mut health = Down::default();
        assert!(!health.set_up("p", "a", Duration::from_secs(10), began), "it was up");
        assert!(health.set_down("p", "a", "why") && !health.set_down("p", "a", "why still"));
        assert!(health.set_up("p", "a", Duration::from_secs(10), began));
        let weight = |health: &Down| acting(&pool, None, health.of("p")).weight("a", 100);
        let other = |health: &Down| acting(&pool, None, health.of("p")).weight("b", 100);
        assert_eq!((weight(&health), other(&health)), (100, 1_000), "a tenth");
        assert!(!health.grow(began + Duration::from_millis(1_900)));
        assert!(health.grow(began + Duration::from_millis(5_500)));
        assert_eq!((weight(&health), other(&health)), (500, 1_000));
        assert!(health.grow(began + Duration::from_secs(10)));
        assert_eq!((weight(&health), other(&health)), (100, 100));
        assert_eq!(health, Down::default(), "nothing is left of it");
        health.set_down("p", "a", "why");
        health.set_up("p", "a", Duration::from_secs(10), began);
        health.set_down("p", "a", "again");
        assert!(!health.grow(began + Duration::from_secs(20)), "down is down");
    }
}
