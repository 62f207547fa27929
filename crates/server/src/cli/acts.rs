//! Filters, and acts by filter with their progress.

use super::output::{self, number};
use super::place::Place;
use super::{EXIT_FAILED, EXIT_OK};
use crate::config::value;
use clap::Args;
use postrider_api::Order;
use postrider_engine::operate::{Act, Filter};
use serde_json::{Value, json};
use std::time::Duration;

/// Between two looks at an act that goes on.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Which recipients are meant.
#[derive(Debug, Args)]
pub(super) struct FilterArgs {
    /// Messages (msg_…) or recipients (rcp_…)
    pub ids: Vec<String>,
    /// From this reverse-path: an address, *@domain, or <>
    #[arg(long, value_name = "ADDRESS", help_heading = "Filters")]
    pub sender: Option<String>,
    /// To this recipient: an address or *@domain
    #[arg(long, value_name = "ADDRESS", help_heading = "Filters")]
    pub recipient: Option<String>,
    /// To this domain; *.domain for its subdomains
    #[arg(long, value_name = "DOMAIN", help_heading = "Filters")]
    pub domain: Option<String>,
    /// Brought by this account or legacy listener
    #[arg(long, value_name = "NAME", help_heading = "Filters")]
    pub account: Option<String>,
    /// Accepted at least this long ago, such as 2h
    #[arg(long, value_name = "TIME", value_parser = seconds, help_heading = "Filters")]
    pub older_than: Option<u64>,
    /// Last reply contains this text
    #[arg(long, value_name = "TEXT", help_heading = "Filters")]
    pub reply: Option<String>,
    /// In this state
    #[arg(long, value_parser = ["ready", "scheduled", "deferred", "held", "sending"], help_heading = "Filters")]
    pub state: Option<String>,
    /// Everything that waits
    #[arg(long, help_heading = "Filters")]
    pub all: bool,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// Which recipients to list.
#[derive(Debug, Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    pub filter: FilterArgs,
    /// At most so many; 0 for all
    #[arg(long, default_value_t = 100)]
    pub limit: usize,
}

fn seconds(text: &str) -> Result<u64, String> {
    value::duration(text).map(|duration| duration.as_secs())
}

impl FilterArgs {
    pub(super) fn filter(&self) -> Filter {
        Filter {
            all: self.all,
            ids: self.ids.clone(),
            sender: self.sender.clone(),
            recipient: self.recipient.clone(),
            domain: self.domain.clone(),
            account: self.account.clone(),
            older_than_s: self.older_than,
            reply: self.reply.clone(),
            state: self.state.clone(),
        }
    }

    /// The same as pairs of a query.
    pub(super) fn pairs(&self) -> Vec<(&'static str, String)> {
        let filter = self.filter();
        let ids = Some(filter.ids.join(",")).filter(|ids| !ids.is_empty());
        let age = filter.older_than_s.map(|seconds| seconds.to_string());
        let all = filter.all.then(|| "true".to_owned());
        [
            ("all", all),
            ("ids", ids),
            ("sender", filter.sender),
            ("recipient", filter.recipient),
            ("domain", filter.domain),
            ("account", filter.account),
            ("older_than_s", age),
            ("reply", filter.reply),
            ("state", filter.state),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .collect()
    }
}

/// Gives an order and follows it to its end.
pub(super) fn order(place: &Place, verb: &str, order: &Order, as_json: bool) -> anyhow::Result<u8> {
    let is_resume = matches!(order.act, Act::Resume { .. });
    if order.filter == Filter::default() && !is_resume {
        eprintln!("postrider: {verb} whom? Give ids or filters, or --all for everything that waits.");
        return Ok(EXIT_FAILED);
    }
    let client = place.client();
    let mut act = client.post("/v1/queue", &json!(order))?;
    let bar = progress_bar(verb, &act);
    while act["done"] != true {
        output::pause(POLL_INTERVAL);
        act = client.get(&format!("/v1/acts/{}", number(&act, "number")))?;
        bar.set_length(number(&act, "total"));
        bar.set_position(number(&act, "scanned"));
    }
    bar.finish_and_clear();
    if as_json {
        output::print_json(&act);
    } else if is_resume {
        output::print("resumed\n");
    } else {
        output::print(&summary(verb, &act));
    }
    Ok(EXIT_OK)
}

fn summary(verb: &str, act: &Value) -> String {
    match (number(act, "changed"), number(act, "scanned")) {
        (0, _) => format!("{verb}: nothing that waits matches\n"),
        (1, _) => format!("{verb}: 1 recipient\n"),
        (changed, scanned) => format!("{verb}: {changed} recipients ({scanned} looked at)\n"),
    }
}

fn progress_bar(verb: &str, act: &Value) -> indicatif::ProgressBar {
    if !output::stderr_is_terminal() || act["done"] == true {
        return indicatif::ProgressBar::hidden();
    }
    let style = indicatif::ProgressStyle::with_template("{msg} {bar:30} {pos}/{len} {eta}");
    let bar = indicatif::ProgressBar::new(number(act, "total")).with_message(verb.to_owned());
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
