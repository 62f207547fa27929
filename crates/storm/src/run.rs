//! Source, sink and check in one process: the common case.

use crate::check::{self, Known, Report};
use crate::sink::{self, Sink};
use crate::source::{self, Counts, Plan};
use anyhow::Context;
use serde::Serialize;
use std::time::{Duration, Instant};

/// How often the wait for deliveries looks.
const LOOK: Duration = Duration::from_millis(2);

/// What is run.
#[derive(Debug)]
pub struct Options {
    /// The source.
    pub plan: Plan,
    /// The sink.
    pub sink: sink::Options,
    /// How long deliveries may still come after the source is done, without any new one.
    pub drain_patience: Duration,
}

/// What came out.
#[derive(Debug, Serialize)]
pub struct Result {
    /// The accounting.
    #[serde(flatten)]
    pub report: Report,
    /// Connections the source made.
    pub connections: u64,
    /// Connections that broke.
    pub broken: u64,
    /// Messages of the plan that were never handed over.
    pub unsent: u64,
    /// Why the source stopped before its plan was done.
    pub trouble: Option<String>,
}

impl Result {
    /// True when the accounting holds and the plan was carried out.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.report.holds() && self.unsent == 0 && self.trouble.is_none()
    }

    /// One line for people.
    #[must_use]
    pub fn line(&self) -> String {
        let report = &self.report;
        let ms = |us: u64| us as f64 / 1000.0;
        format!(
            "{:.0} relayed/s ({} recipients in {:.2} s), acceptance p50 {:.2} p99 {:.2} p99.9 {:.2} ms, \
             end to end p50 {:.2} p99 {:.2} ms, lost {}, duplicates {}, damaged {}, refused {}, unknown {}",
            report.relayed_per_s,
            report.delivered,
            report.span_s,
            ms(report.acceptance.p50_us),
            ms(report.acceptance.p99_us),
            ms(report.acceptance.p999_us),
            ms(report.end_to_end.p50_us),
            ms(report.end_to_end.p99_us),
            report.lost,
            report.duplicates,
            report.damaged + report.crossed,
            report.refused,
            report.unknown,
        )
    }
}

/// Runs a source against a relay whose next hop is the sink, waits for the deliveries, and accounts.
///
/// # Errors
/// The plan is out of range, the sink's address is taken, or a thread failed. What the relay did wrong is in the
/// result.
pub fn run(options: Options) -> anyhow::Result<Result> {
    let kept = (options.plan.journal.clone(), options.sink.log.clone());
    let sink = Sink::start(options.sink)?;
    let source = source::run(&options.plan)?;
    let owed = owed(&source.counts, &options.plan);
    let mut seen = (sink.taken(), Instant::now());
    while seen.0 < owed && seen.1.elapsed() < options.drain_patience {
        std::thread::sleep(LOOK);
        let taken = sink.taken();
        if taken != seen.0 {
            seen = (taken, Instant::now());
        }
    }
    // The relay's last replies are on their way; a moment lets copies show themselves too.
    std::thread::sleep(LOOK * 10);
    let remains = sink.stop();
    let read = |path: &std::path::Path| {
        std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
    };
    let journal = kept.0.as_deref().map_or(Ok(source.journal), read)?;
    let log = kept.1.as_deref().map_or(Ok(remains.log), read)?;
    let report = check::check(&journal, &log, &Known::default())?;
    let Counts { connections, broken, unsent, .. } = source.counts;
    Ok(Result { report, connections, broken, unsent, trouble: source.trouble })
}

/// Recipients to wait for. Refused recipients of accepted messages make it too many; the wait then ends by
/// patience.
fn owed(counts: &Counts, plan: &Plan) -> u64 {
    counts.acknowledged * u64::from(plan.recipients)
}
