//! The figures of all runs as one table, and the targets against them.

use super::relay::Kind;
use super::workload::Workload;
use std::collections::BTreeMap;
use std::fmt::Write;

/// One run's figures.
#[derive(Clone, Debug, Default)]
pub(crate) struct Figures {
    pub(crate) per_s: f64,
    pub(crate) cpu_us: f64,
    pub(crate) memory_bytes: u64,
    pub(crate) written_bytes: f64,
    pub(crate) accept_p50_us: f64,
    pub(crate) accept_p99_us: f64,
    pub(crate) through_p99_us: f64,
    pub(crate) lost: u64,
    pub(crate) duplicates: u64,
    pub(crate) damaged: u64,
    pub(crate) refused: u64,
    /// What went wrong with the run itself.
    pub(crate) trouble: Option<String>,
}

/// All runs of all relays.
#[derive(Default)]
pub(crate) struct Results {
    runs: BTreeMap<(Workload, Kind), Vec<Figures>>,
    syncs: BTreeMap<(Workload, Kind), f64>,
}

/// A target of the first release: at least this share of another row's figure.
struct Target {
    workload: Workload,
    of: (Workload, Kind),
    at_least: f64,
}

const TARGETS: &[Target] = &[
    Target { workload: Workload::Small20, of: (Workload::Small20, Kind::Yardstick), at_least: 0.8 },
    Target { workload: Workload::Small20, of: (Workload::Small20, Kind::Postfix), at_least: 15.0 },
    Target { workload: Workload::Small200, of: (Workload::Small200, Kind::Yardstick), at_least: 0.7 },
    Target { workload: Workload::Large, of: (Workload::Large, Kind::Yardstick), at_least: 0.8 },
    Target { workload: Workload::Large, of: (Workload::Large, Kind::Postfix), at_least: 8.0 },
    Target { workload: Workload::Tls, of: (Workload::Small20, Kind::Postrider), at_least: 0.7 },
    Target { workload: Workload::Parked, of: (Workload::Small20, Kind::Postrider), at_least: 1.0 },
];
/// CPU of a message in the workloads of 4 KiB, as a multiple of the yardstick's in the same run: 55 µs where that
/// takes 34.
const CPU_MOST: f64 = 55.0 / 34.0;

impl Results {
    pub(crate) fn add(&mut self, workload: Workload, kind: Kind, figures: Figures) {
        self.runs.entry((workload, kind)).or_default().push(figures);
    }

    pub(crate) fn add_syncs(&mut self, workload: Workload, kind: Kind, per_message: f64) {
        self.syncs.insert((workload, kind), per_message);
    }

    fn median(&self, workload: Workload, kind: Kind, of: impl Fn(&Figures) -> f64) -> Option<f64> {
        let good = self.runs.get(&(workload, kind))?.iter().filter(|figures| figures.per_s > 0.0);
        let mut values: Vec<f64> = good.map(of).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len().checked_sub(1)? / 2).copied()
    }

    fn rate(&self, workload: Workload, kind: Kind) -> Option<f64> {
        self.median(workload, kind, |figures| figures.per_s)
    }

    /// The table, in Markdown.
    pub(crate) fn table(&self) -> String {
        let head = [
            "workload",
            "relay",
            "msg/s",
            "noise",
            "÷ Postfix",
            "÷ yardstick",
            "CPU µs/msg",
            "peak MiB",
            "written B/msg",
            "syncs/msg",
            "accept p50 ms",
            "p99 ms",
            "through p99 ms",
            "lost",
            "copies",
            "damaged",
            "refused",
        ];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        for (workload, kind) in self.runs.keys() {
            rows.push(self.row(*workload, *kind));
        }
        let widths: Vec<usize> = (0..head.len())
            .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
            .collect();
        let mut out = String::new();
        for (number, row) in rows.iter().enumerate() {
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let pad = " ".repeat(width - cell.chars().count());
                let _ =
                    if column < 2 { write!(out, "| {cell}{pad} ") } else { write!(out, "| {pad}{cell} ") };
            }
            out.push_str("|\n");
            if number == 0 {
                for (column, width) in widths.iter().enumerate() {
                    let colon = if column < 2 { '-' } else { ':' };
                    let _ = write!(out, "|{}{colon}", "-".repeat(width + 1));
                }
                out.push_str("|\n");
            }
        }
        out
    }

    fn row(&self, workload: Workload, kind: Kind) -> Vec<String> {
        let runs = &self.runs[&(workload, kind)];
        let rate = self.rate(workload, kind);
        let median = |of: &dyn Fn(&Figures) -> f64| self.median(workload, kind, of);
        let against = |other: Kind| Some(rate? / self.rate(workload, other)?);
        let rates = || runs.iter().map(|run| run.per_s);
        let spread = rates().fold(0.0, f64::max) - rates().fold(f64::INFINITY, f64::min);
        let sum = |of: fn(&Figures) -> u64| runs.iter().map(of).sum::<u64>().to_string();
        vec![
            workload.name().to_owned(),
            kind.name().to_owned(),
            number(rate, 0),
            rate.map_or_else(|| "-".into(), |rate| format!("±{:.0} %", 50.0 * spread / rate)),
            number(against(Kind::Postfix), 2),
            number(against(Kind::Yardstick), 2),
            number(median(&|run| run.cpu_us), 0),
            number(median(&|run| run.memory_bytes as f64 / 1048576.0), 1),
            number(median(&|run| run.written_bytes), 0),
            number(self.syncs.get(&(workload, kind)).copied(), 2),
            number(median(&|run| run.accept_p50_us / 1000.0), 2),
            number(median(&|run| run.accept_p99_us / 1000.0), 2),
            number(median(&|run| run.through_p99_us / 1000.0), 2),
            sum(|run| run.lost),
            sum(|run| run.duplicates),
            sum(|run| run.damaged),
            sum(|run| run.refused),
        ]
    }

    /// Each target that can be judged by what was run, with whether it is met.
    pub(crate) fn targets(&self) -> Vec<(String, bool)> {
        let mut out = Vec::new();
        for target in TARGETS {
            let (other, kind) = target.of;
            let Some(ours) = self.rate(target.workload, Kind::Postrider) else { continue };
            let Some(theirs) = self.rate(other, kind) else { continue };
            let ratio = ours / theirs;
            let of = if other == target.workload { kind.name() } else { other.name() };
            let text = format!("{}: {ratio:.2} × {of}, at least {}", target.workload.name(), target.at_least);
            out.push((text, ratio >= target.at_least));
        }
        for workload in [Workload::Small20, Workload::Small200] {
            let cpu = |kind| self.median(workload, kind, |run| run.cpu_us);
            if let (Some(ours), Some(theirs)) = (cpu(Kind::Postrider), cpu(Kind::Yardstick)) {
                let most = theirs * CPU_MOST;
                out.push((
                    format!("{}: {ours:.0} µs of CPU, at most {most:.0}", workload.name()),
                    ours <= most,
                ));
            }
        }
        let p99 = |kind| self.median(Workload::Small200, kind, |run| run.accept_p99_us / 1000.0);
        if let (Some(ours), Some(theirs)) = (p99(Kind::Postrider), p99(Kind::Yardstick)) {
            let text = format!("4k-200: acceptance p99 {ours:.1} ms, at most the yardstick's {theirs:.1} ms");
            out.push((text, ours <= theirs));
        }
        for ((workload, kind), runs) in &self.runs {
            let wrong: u64 = runs.iter().map(|run| run.lost + run.damaged + run.duplicates).sum();
            if *kind == Kind::Postrider && wrong > 0 {
                out.push((
                    format!("{}: {wrong} lost, damaged or duplicate, none allowed", workload.name()),
                    false,
                ));
            }
        }
        out
    }

    /// What went wrong with single runs, and what makes them unequal.
    pub(crate) fn troubles(&self) -> Vec<String> {
        let mut out = Vec::new();
        for ((workload, kind), per_message) in &self.syncs {
            if *per_message == 0.0 {
                let (workload, kind) = (workload.name(), kind.name());
                out.push(format!(
                    "{workload} {kind}: not one sync, so its 250 promises less than the others'"
                ));
            }
        }
        for ((workload, kind), runs) in &self.runs {
            for run in runs {
                out.extend(
                    run.trouble
                        .as_ref()
                        .map(|trouble| format!("{} {}: {trouble}", workload.name(), kind.name())),
                );
            }
        }
        out
    }
}

fn number(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.decimals$}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(ours: &[f64], theirs: f64) -> Results {
        let mut results = Results::default();
        for per_s in ours {
            let figures = Figures { per_s: *per_s, cpu_us: 50.0, ..Figures::default() };
            results.add(Workload::Small20, Kind::Postrider, figures);
        }
        let figures = Figures { per_s: theirs, cpu_us: 34.0, ..Figures::default() };
        results.add(Workload::Small20, Kind::Yardstick, figures);
        results
    }

    #[test]
    fn the_median_is_what_counts() {
        let table = results(&[90.0, 10.0, 80.0], 100.0).table();
        let row = table.lines().nth(2).unwrap();
        assert!(row.contains("Postrider") && row.contains("| 0.80 |") || row.contains(" 0.80 "), "{row}");
    }

    #[test]
    fn targets_are_met_or_missed_by_ratio() {
        let met = results(&[81.0], 100.0).targets();
        assert_eq!(met.len(), 2);
        assert!(met.iter().all(|(_, met)| *met), "{met:?}");
        assert!(results(&[79.0], 100.0).targets().iter().any(|(_, met)| !met));
    }

    #[test]
    fn a_run_that_failed_is_no_figure() {
        assert!(results(&[0.0], 100.0).targets().is_empty());
    }
}
