//! `postrider config` and `postrider reload`

use super::args::ConfigCommand;
use super::output::{self, items};
use super::place::Place;
use super::{EXIT_FOUND_PROBLEMS, EXIT_OK};
use crate::config::{self, Problems, Severity, show};
use serde_json::json;
use std::path::Path;

pub(super) fn run(place: &Place, command: &ConfigCommand) -> anyhow::Result<u8> {
    match command {
        ConfigCommand::Check { file } => Ok(check(place, file.as_deref())),
        ConfigCommand::Schema => {
            output::print_json(&show::json_schema());
            Ok(EXIT_OK)
        }
        ConfigCommand::Show { changed } => match place.load() {
            Ok(loaded) => {
                output::print(&show::effective(&loaded.written, &loaded.settings, *changed));
                Ok(EXIT_OK)
            }
            Err(problems) => Ok(refused(&problems)),
        },
        ConfigCommand::Reference => {
            output::print(&show::reference());
            Ok(EXIT_OK)
        }
    }
}

fn check(place: &Place, file: Option<&Path>) -> u8 {
    let file = file.or(place.config.as_deref());
    match config::load(file, place.data_dir.as_deref()) {
        Ok(loaded) => {
            eprint!("{}", loaded.problems);
            let name = file.map_or("no file: the defaults".to_owned(), |file| file.display().to_string());
            match loaded.problems.count(Severity::Warning) {
                0 => output::print(&format!("{name}: all well\n")),
                warnings => output::print(&format!("{name}: usable; warnings: {warnings}\n")),
            }
            EXIT_OK
        }
        Err(problems) => refused(&problems),
    }
}

/// Says what is wrong, to a person.
pub(crate) fn refused(problems: &Problems) -> u8 {
    eprint!("{problems}");
    let (errors, warnings) = (problems.count(Severity::Error), problems.count(Severity::Warning));
    eprintln!("errors: {errors}, warnings: {warnings}");
    EXIT_FOUND_PROBLEMS
}

pub(super) fn reload(place: &Place) -> anyhow::Result<u8> {
    let answer = place.client().post("/v1/reload", &json!({}))?;
    for note in items(&answer, "notes") {
        eprintln!("{}", note.as_str().unwrap_or_default());
    }
    output::print("reloaded\n");
    Ok(EXIT_OK)
}
