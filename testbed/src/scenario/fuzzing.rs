//! The fuzz targets, each for a few seconds.

use std::time::Duration;

use super::Scenario;
use crate::fuzz::{self, TARGETS};

const SHORT: Duration = Duration::from_secs(3);
const LONG: Duration = Duration::from_secs(60);

pub(super) fn scenarios() -> Vec<Scenario> {
    TARGETS
        .iter()
        .flat_map(|target| {
            [
                Scenario::new(format!("fuzz/{}", target.name), move |context| {
                    fuzz::one(target, SHORT, context.seed).map(drop)
                }),
                Scenario::long(format!("fuzz/{}/long", target.name), move |context| {
                    fuzz::one(target, LONG, context.seed + 1).map(drop)
                }),
            ]
        })
        .collect()
}
