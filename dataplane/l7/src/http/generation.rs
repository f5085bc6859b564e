//! Which rules does an exchange go by? Those that were in force when its request came, until its response has begun.
//!
//! Generations that exchanges still need are kept; the last drop of their rules is not a worker's: [`Generations::retired`] hands out
//! what nobody needs any more.

use std::sync::Arc;

use weir_l4::Services;

use crate::rules::Rules;

/// No generation.
pub(crate) const NONE: u16 = u16::MAX;

/// One that was in force, or is.
#[derive(Debug)]
struct Generation {
    services: Arc<Services>,
    rules: Arc<Rules>,
    exchanges: u32,
}

/// The generation in force and those that exchanges need.
#[derive(Debug)]
pub(crate) struct Generations {
    places: Vec<Option<Generation>>,
    current: u16,
    /// What nobody needs any more.
    retired: Vec<(Arc<Services>, Arc<Rules>)>,
}

impl Generations {
    pub(crate) fn new(services: Arc<Services>, rules: Arc<Rules>) -> Self {
        Self {
            places: vec![Some(Generation { services, rules, exchanges: 0 })],
            current: 0,
            retired: Vec::new(),
        }
    }

    /// Another one is in force from here on.
    pub(crate) fn adopt(&mut self, services: Arc<Services>, rules: Arc<Rules>) {
        let old = self.current;
        let free = self.places.iter().position(Option::is_none);
        let at = free.unwrap_or(self.places.len());
        if at >= usize::from(NONE) {
            // so many can't have exchanges; were it so, the last ones would go by the newest rules
            return;
        }
        let generation = Some(Generation { services, rules, exchanges: 0 });
        match self.places.get_mut(at) {
            Some(place) => *place = generation,
            None => self.places.push(generation),
        }
        self.current = at as u16;
        self.retire(old);
    }

    fn retire(&mut self, at: u16) {
        if at == self.current {
            return;
        }
        let Some(place) = self.places.get_mut(usize::from(at)) else { return };
        if place.as_ref().is_some_and(|generation| generation.exchanges == 0)
            && let Some(generation) = place.take()
        {
            self.retired.push((generation.services, generation.rules));
        }
    }

    /// An exchange begins: it goes by this generation until [`Self::leave`].
    #[inline]
    pub(crate) fn enter(&mut self) -> u16 {
        if let Some(Some(generation)) = self.places.get_mut(usize::from(self.current)) {
            generation.exchanges += 1;
        }
        self.current
    }

    /// An exchange needs its rules no more.
    #[inline]
    pub(crate) fn leave(&mut self, at: u16) {
        if let Some(Some(generation)) = self.places.get_mut(usize::from(at)) {
            generation.exchanges = generation.exchanges.saturating_sub(1);
            if generation.exchanges == 0 && at != self.current {
                self.retire(at);
            }
        }
    }

    /// The number of the generation in force.
    #[inline]
    pub(crate) fn number(&self) -> u64 {
        self.services(NONE).map_or(0, |services| services.generation())
    }

    /// The rules of a generation; those in force for [`NONE`].
    #[inline]
    pub(crate) fn rules(&self, at: u16) -> Option<&Arc<Rules>> {
        let at = if at == NONE { self.current } else { at };
        Some(&self.places.get(usize::from(at))?.as_ref()?.rules)
    }

    /// The services of a generation; those in force for [`NONE`].
    #[inline]
    pub(crate) fn services(&self, at: u16) -> Option<&Arc<Services>> {
        let at = if at == NONE { self.current } else { at };
        Some(&self.places.get(usize::from(at))?.as_ref()?.services)
    }

    /// Rules that nobody needs any more, to be dropped elsewhere.
    pub(crate) fn retired(&mut self) -> Option<(Arc<Services>, Arc<Rules>)> {
        self.retired.pop()
    }
}
