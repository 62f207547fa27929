//! The reference pages are made from the program: these tests say when they are out of date, and with
//! `POSTRIDER_UPDATE_DOCS=1` they bring them up to date.

use clap::CommandFactory;
use postrider::cli::Cli;
use postrider::config::show;
use std::fmt::Write as _;
use std::path::PathBuf;

/// Ends what people write in a page; what follows is made.
const MARK: &str = "\n<!-- Below is made from ";

fn check(page: &str, made: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(page);
    let text = std::fs::read_to_string(&path).unwrap();
    let mark = text.find(MARK).unwrap_or_else(|| panic!("{page} has lost its mark {MARK:?}"));
    let end = mark + 1 + text[mark + 1..].find('\n').unwrap_or(text.len() - mark - 1);
    let wanted = format!("{}\n\n{}\n", &text[..end], made.trim());
    if std::env::var_os("POSTRIDER_UPDATE_DOCS").is_some() {
        std::fs::write(&path, wanted).unwrap();
    } else if text != wanted {
        panic!("docs/{page} is out of date: run POSTRIDER_UPDATE_DOCS=1 cargo test -p postrider --test docs");
    }
}

#[test]
fn the_page_of_settings_is_up_to_date() {
    check("configuration.md", &show::reference());
}

#[test]
fn the_page_of_commands_is_up_to_date() {
    let mut out = String::new();
    let command = Cli::command().term_width(100);
    command_help(&command, "postrider", 2, &mut out);
    check("cli.md", &out);
}

fn command_help(command: &clap::Command, name: &str, level: usize, out: &mut String) {
    let mut shown = command.clone().bin_name(name).disable_help_subcommand(true);
    let help = shown.render_long_help().to_string();
    let help: Vec<_> = help.lines().map(str::trim_end).collect();
    let _ = write!(out, "{} `{name}`\n\n```text\n{}\n```\n\n", "#".repeat(level), help.join("\n").trim_end());
    for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set() && inner.get_name() != "help")
    {
        command_help(inner, &format!("{name} {}", inner.get_name()), level + 1, out);
    }
}
