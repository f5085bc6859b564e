//! What was measured: medians with their spread, for people and for programs, and what was to be reached.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::reference::Factors;
use crate::console::{grouped, table};

/// The figures of one metric of one case, one value per run.
#[derive(Clone, Debug)]
pub(crate) struct Figure {
    /// Name of the case.
    pub(crate) case: String,
    /// Whose figure it is.
    pub(crate) implementation: &'static str,
    /// What was measured.
    pub(crate) metric: &'static str,
    /// Its unit.
    pub(crate) unit: &'static str,
    /// One value per run; at least one.
    pub(crate) values: Vec<f64>,
    /// What is in the figure and what is not.
    pub(crate) setup: String,
}

/// As programs read it.
#[derive(Debug, Serialize)]
struct Record<'a> {
    bench: &'static str,
    case: &'a str,
    implementation: &'static str,
    metric: &'static str,
    value: f64,
    unit: &'static str,
    runs: usize,
    min: f64,
    max: f64,
    /// How many times the reference machine's time this one needs; where there is a target that it could excuse.
    #[serde(skip_serializing_if = "Option::is_none")]
    machine_factor: Option<f64>,
    setup: &'a str,
}

/// What a figure has to be.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Target {
    AtMost(f64),
    AtLeast(f64),
}

impl Figure {
    fn sorted(&self) -> Vec<f64> {
        let mut values = self.values.clone();
        values.sort_by(f64::total_cmp);
        values
    }

    /// The middle value.
    pub(crate) fn median(&self) -> f64 {
        median(&self.values)
    }

    fn target(&self) -> Option<Target> {
        if self.implementation != "weir" {
            return None;
        }
        let mut parts = self.case.split('/');
        let (first, last) = (parts.next()?, self.case.rsplit('/').next()?);
        match (self.metric, first, last) {
            ("ns_per_packet", "dsr" | "ipip", "1k") => Some(Target::AtMost(45.0)),
            ("ns_per_packet", "nat" | "fullnat", "1k") => Some(Target::AtMost(60.0)),
            ("ns_per_packet", "dsr", "1m") => Some(Target::AtMost(80.0)),
            ("ns_per_packet", "fullnat", "1m") => Some(Target::AtMost(100.0)),
            ("goodput_of_kernel", "goodput", _) => Some(Target::AtLeast(0.9)),
            ("flows_per_second", "new-flows", _) => Some(Target::AtLeast(5e6)),
            ("bytes_per_flow", "flow-table", _) => Some(Target::AtMost(64.0)),
            ("ns_per_transaction", "echo", "10k") => Some(Target::AtMost(120.0)),
            ("ns_per_transaction", "echo", "100k") => Some(Target::AtMost(200.0)),
            ("ns_per_transaction", "echo", "1m") => Some(Target::AtMost(300.0)),
            ("times_smoltcp", "echo", "100k") => Some(Target::AtLeast(2.5)),
            ("ns_per_connection", "churn", _) => Some(Target::AtMost(250.0)),
            ("bytes_per_connection", "idle", _) => Some(Target::AtMost(400.0)),
            ("ns_per_request", "memory", "keep-alive") => Some(Target::AtMost(1_250.0)),
            ("ns_per_request", "memory", "close") => Some(Target::AtMost(2_500.0)),
            ("times_fewest_routes", "memory", _) => Some(Target::AtMost(1.2)),
            ("added_of_better" | "p99_of_better", "testbed", _) => Some(Target::AtMost(1.0)),
            ("own_of_better", "testbed", _) => Some(Target::AtMost(0.5)),
            ("allocations_per_request", "memory", _) => Some(Target::AtMost(0.0)),
            ("gbit_per_second", "relay-bulk", _) => Some(Target::AtLeast(40.0)),
            ("p99_ms", "publish", _) => Some(Target::AtMost(50.0)),
            ("p99_ms", "weight-to-ack", _) => Some(Target::AtMost(20.0)),
            ("p99_ms", "verdict-to-ack", _) => Some(Target::AtMost(10.0)),
            ("ms", "apply", _) => Some(Target::AtMost(1_000.0)),
            ("ms", "converge", _) => Some(Target::AtMost(3_000.0)),
            ("mbytes", "memory", _) => Some(Target::AtMost(150.0)),
            ("cpu_share", "probes", _) => Some(Target::AtMost(0.5)),
            ("ns_per_lookup", "acl-100k", _) => Some(Target::AtMost(15.0)),
            ("ms", "restart", _) => Some(Target::AtMost(1_000.0)),
            _ => None,
        }
    }

    /// The factor that the machine's slowness puts on this figure, where it is one of the packet loop.
    fn machine_factor(&self, factors: &Factors) -> Option<f64> {
        let is_of_loop = matches!(
            self.metric,
            "ns_per_packet"
                | "flows_per_second"
                | "ns_per_transaction"
                | "ns_per_connection"
                | "ns_per_request"
                | "gbit_per_second"
        );
        let scaled = is_of_loop && self.target().is_some();
        factors.scale(self.case.ends_with("/1k")).filter(|_| scaled)
    }

    fn verdict(&self, factors: &Factors) -> Option<Verdict> {
        let (target, value) = (self.target()?, self.median());
        let mut words = if target.met(value) { "reached".to_owned() } else { "missed".to_owned() };
        if !target.met(value)
            && let Some(factor) = self.machine_factor(factors)
        {
            let scaled = target.scaled(value, factor);
            let word = if target.met(scaled) { "would be reached" } else { "missed as well" };
            words += &format!("; scaled by {factor:.2}: {} {word}", shown(scaled));
        }
        let limit = match target {
            Target::AtMost(limit) => format!("≤ {}", shown(limit)),
            Target::AtLeast(limit) => format!("≥ {}", shown(limit)),
        };
        Some(Verdict { reached: target.met(value), limit, words })
    }
}

/// What became of a target. Only the figure as it was measured can reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Verdict {
    reached: bool,
    limit: String,
    words: String,
}

impl Target {
    fn met(self, value: f64) -> bool {
        match self {
            Self::AtMost(limit) => value <= limit,
            Self::AtLeast(limit) => value >= limit,
        }
    }

    /// What the reference machine might have measured, if all of a figure grew by the same factor.
    fn scaled(self, value: f64, factor: f64) -> f64 {
        match self {
            Self::AtMost(_) => value / factor,
            Self::AtLeast(_) => value * factor,
        }
    }
}

/// The middle value; 0 of none.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        count if count.is_multiple_of(2) => (values[count / 2 - 1] + values[count / 2]) / 2.0,
        count => values[count / 2],
    }
}

/// The value that a share of all values does not exceed (nearest rank); 0 of none.
pub(crate) fn percentile(values: &[f64], share: f64) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let rank = (values.len() as f64 * share).ceil() as usize;
    values.get(rank.saturating_sub(1).min(values.len().saturating_sub(1))).copied().unwrap_or(0.0)
}

fn shown(value: f64) -> String {
    match value.abs() {
        size if size >= 10_000.0 => grouped(value.round() as u64),
        size if size >= 100.0 => format!("{value:.0}"),
        _ => format!("{value:.2}"),
    }
}

/// All figures as a table with their targets, and how many were missed.
pub(crate) fn report(figures: &[Figure]) -> (String, usize) {
    let factors = Factors::of(figures);
    let heading = ["case", "implementation", "metric", "median", "min", "max", "unit", "runs", "target", ""];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    let mut missed = 0;
    for figure in figures {
        let sorted = figure.sorted();
        let verdict = figure.verdict(&factors);
        missed += usize::from(verdict.as_ref().is_some_and(|verdict| !verdict.reached));
        let (target, word) = verdict.map_or_else(Default::default, |verdict| (verdict.limit, verdict.words));
        let edge = |value: Option<&f64>| value.map_or_else(String::new, |&value| shown(value));
        rows.push(vec![
            figure.case.clone(),
            figure.implementation.to_owned(),
            figure.metric.to_owned(),
            shown(figure.median()),
            edge(sorted.first()),
            edge(sorted.last()),
            figure.unit.to_owned(),
            sorted.len().to_string(),
            target,
            word,
        ]);
    }
    (table(&rows, &[3, 4, 5, 7]), missed)
}

/// Setups, each once, with the cases that they hold for.
pub(crate) fn setups(figures: &[Figure]) -> String {
    let mut seen: Vec<(&str, Vec<&str>)> = Vec::new();
    for figure in figures {
        match seen.iter_mut().find(|(setup, _)| *setup == figure.setup) {
            Some((_, cases)) if cases.contains(&figure.case.as_str()) => {}
            Some((_, cases)) => cases.push(&figure.case),
            None => seen.push((&figure.setup, vec![&figure.case])),
        }
    }
    seen.iter().map(|(setup, cases)| format!("  {}: {setup}\n", cases.join(", "))).collect()
}

/// Writes all figures as one list of objects.
pub(crate) fn write_json(path: &Path, bench: &'static str, figures: &[Figure]) -> Result<()> {
    let factors = Factors::of(figures);
    let records: Vec<Record<'_>> = figures
        .iter()
        .map(|figure| {
            let sorted = figure.sorted();
            Record {
                bench,
                case: &figure.case,
                implementation: figure.implementation,
                metric: figure.metric,
                value: figure.median(),
                unit: figure.unit,
                runs: sorted.len(),
                min: sorted.first().copied().unwrap_or(0.0),
                max: sorted.last().copied().unwrap_or(0.0),
                machine_factor: figure.machine_factor(&factors),
                setup: &figure.setup,
            }
        })
        .collect();
    std::fs::write(path, serde_json::to_vec_pretty(&records)?)
        .with_context(|| format!("could not write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(case: &str, metric: &'static str, values: &[f64]) -> Figure {
        Figure {
            case: case.to_owned(),
            implementation: "weir",
            metric,
            unit: "ns",
            values: values.to_vec(),
            setup: "somehow".to_owned(),
        }
    }

    #[test]
    fn medians_and_percentiles() {
        assert_eq!((median(&[3.0, 1.0, 2.0]), median(&[4.0, 1.0]), median(&[])), (2.0, 2.5, 0.0));
        let values: Vec<f64> = (1..=200).map(f64::from).collect();
        assert_eq!((percentile(&values, 0.99), percentile(&values, 0.5)), (198.0, 100.0));
        assert_eq!((percentile(&[7.0], 0.999), percentile(&[], 0.5)), (7.0, 0.0));
    }

    #[test]
    fn targets_follow_mode_and_size() {
        let figures = [
            figure("dsr/ipv4/1k", "ns_per_packet", &[44.0]),
            figure("nat/ipv6/1k", "ns_per_packet", &[61.0]),
            figure("gue/ipv4/1k", "ns_per_packet", &[900.0]),
            figure("dsr/ipv4/1k", "mpps", &[1.0]),
            figure("new-flows/ipv4/dsr/room", "flows_per_second", &[4.9e6]),
        ];
        let words: Vec<Option<bool>> = figures
            .iter()
            .map(|figure| figure.verdict(&Factors::default()).map(|verdict| verdict.reached))
            .collect();
        assert_eq!(words, [Some(true), Some(false), None, None, Some(false)]);
        assert_eq!(report(&figures).1, 2);
        assert_eq!(setups(&figures).matches("somehow").count(), 1);
    }

    #[test]
    fn a_scaled_figure_reaches_nothing() {
        let factors = Factors { packet: Some(1.6), line: Some(1.8), dependent: None };
        let verdict = figure("dsr/ipv4/1k", "ns_per_packet", &[64.0]).verdict(&factors).unwrap();
        assert!(!verdict.reached && verdict.words == "missed; scaled by 1.60: 40.00 would be reached");
        let verdict = figure("dsr/ipv4/1k", "ns_per_packet", &[80.0]).verdict(&factors).unwrap();
        assert!(!verdict.reached && verdict.words == "missed; scaled by 1.60: 50.00 missed as well");
        let verdict =
            figure("new-flows/ipv4/nat/room", "flows_per_second", &[4e6]).verdict(&factors).unwrap();
        assert!(!verdict.reached && verdict.words.ends_with("would be reached"));
        let verdict = figure("publish", "p99_ms", &[51.0]).verdict(&factors).unwrap();
        assert_eq!(verdict.words, "missed");
        assert_eq!(figure("dsr/ipv4/1k", "mpps", &[9.0]).machine_factor(&factors), None);
    }
}
