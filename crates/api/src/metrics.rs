//! Totals and lanes in Prometheus' text form.

use crate::port::SpoolView;
use postrider_engine::operate::{LaneView, Totals};
use std::fmt::Write as _;

/// Lanes that are shown singly: the busiest. The label must not grow with the number of domains.
const LANES_MAX: usize = 100;

pub(crate) fn text(totals: &Totals, lanes: &[LaneView], version: &str, uptime_s: u64, more: &str) -> String {
    let mut out = String::new();
    let mut family = |name: &str, kind: &str, help: &str, values: &[(String, u64)]| {
        let _ = writeln!(out, "# HELP postrider_{name} {help}\n# TYPE postrider_{name} {kind}");
        for (labels, value) in values {
            let _ = writeln!(out, "postrider_{name}{labels} {value}");
        }
    };
    let one = |value: u64| [(String::new(), value)];
    let version = format!("{{version=\"{}\"}}", escaped(version));
    family("info", "gauge", "The program.", &[(version, 1)]);
    family("uptime_seconds", "gauge", "Seconds since the start.", &one(uptime_s));
    family("queue_messages", "gauge", "Messages that wait.", &one(totals.messages));
    let states = [
        ("ready", totals.ready),
        ("parked", totals.parked),
        ("held", totals.held),
        ("in_flight", totals.in_flight),
        ("loading", totals.loading),
    ];
    let states = states.map(|(state, value)| (format!("{{state=\"{state}\"}}"), value));
    family("queue_recipients", "gauge", "Recipients that wait, by state.", &states);
    family("messages_accepted_total", "counter", "Messages accepted since the start.", &one(totals.accepted));
    family("attempts_deferred_total", "counter", "Attempts deferred since the start.", &one(totals.deferred));
    let terminal: Vec<_> =
        totals.terminal.iter().map(|(name, value)| (format!("{{state=\"{name}\"}}"), *value)).collect();
    family("recipients_total", "counter", "Recipients by terminal state since the start.", &terminal);

    let mut busiest: Vec<_> = lanes.iter().collect();
    busiest.sort_by_key(|lane| std::cmp::Reverse(lane.ready + lane.parked + lane.in_flight));
    busiest.truncate(LANES_MAX);
    let mut of_lanes = |name: &str, help: &str, value: &dyn Fn(&LaneView) -> u64| {
        let values: Vec<_> = busiest
            .iter()
            .map(|lane| (format!("{{lane=\"{}\"}}", escaped(&lane.key)), value(lane)))
            .collect();
        family(name, "gauge", help, &values);
    };
    of_lanes("lane_waiting", "Recipients that wait in a lane; only the busiest lanes.", &|lane| {
        lane.ready + lane.parked
    });
    of_lanes("lane_connections", "Open connections of a lane.", &|lane| u64::from(lane.connections));
    of_lanes("lane_window", "Connections that a lane may open.", &|lane| u64::from(lane.window));
    out.push_str(more);
    out
}

/// Figures of the log.
pub(crate) fn spool(view: &SpoolView) -> String {
    let rows = [
        ("spool_segments", "gauge", "Segment files of the log.", u64::from(view.segments)),
        ("spool_free_segments", "gauge", "Of these, free.", u64::from(view.free_segments)),
        (
            "spool_suspect_segments",
            "gauge",
            "Of these, given up after a failure.",
            u64::from(view.suspect_segments),
        ),
        ("spool_live_bytes", "gauge", "Octets of records that are still needed.", view.live_bytes),
        ("spool_live_records", "gauge", "Records that are still needed.", view.live_records),
        ("spool_syncs_total", "counter", "Syncs since the start.", view.syncs),
        ("spool_batches_total", "counter", "Batches written since the start.", view.batches),
        ("spool_records_total", "counter", "Records written since the start.", view.records),
        ("spool_bytes_total", "counter", "Octets written since the start.", view.bytes),
        ("spool_lost_total", "counter", "Records that could not be taken.", view.lost),
        (
            "spool_journal_lag_records",
            "gauge",
            "Records that the event journal has still to go through.",
            view.journal_lag,
        ),
        ("spool_disk_free_bytes", "gauge", "Octets that are free on the disk.", view.disk_free_bytes),
        (
            "spool_disk_free_min_bytes",
            "gauge",
            "Octets that messages leave free there.",
            view.disk_free_min_bytes,
        ),
        ("spool_takes_messages", "gauge", "1 if the log takes messages.", u64::from(view.health == "good")),
    ];
    let mut out = String::new();
    for (name, kind, help, value) in rows {
        let _ = write!(
            out,
            "# HELP postrider_{name} {help}\n# TYPE postrider_{name} {kind}\npostrider_{name} {value}\n"
        );
    }
    out
}

fn escaped(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
