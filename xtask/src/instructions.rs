//! Instructions of the hot paths, counted by callgrind and held against the recorded figures.
//!
//! A count does not depend on the machine's load or speed. What start-up and warming cost is taken out: a path is
//! gone for some steps and for twice as many, and the difference counts. Valgrind shows every program the same
//! processor with AVX2, whatever stands behind it, so that the choice of routines is the same too.

use crate::shell;
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The recorded figures.
const FIGURES: &str = "crates/hotpaths/instructions.toml";
/// What prints and records them.
const HOW: &str = "cargo xtask bench --instructions --record";
/// Messages or records that the shorter of two runs takes, about.
const ITEMS: u32 = 2_000;
/// A count may be off by this much from the recorded one.
const TOLERANCE: f64 = 0.05;

/// Callgrind counts `rep movsb` once for every octet, which no processor does; so the C library copies in vectors.
const NO_STRING_INSTRUCTIONS: &str =
    "glibc.cpu.x86_rep_movsb_threshold=1000000000:glibc.cpu.x86_rep_stosb_threshold=1000000000";

/// Instructions for one message or record, by path.
type Figures = BTreeMap<String, f64>;

/// Counts and compares; a path that has grown is an error. With `record` the figures are written instead.
pub(crate) fn run(record: bool) -> Result<()> {
    if !shell::succeeds("valgrind", &["--version"]) {
        eprintln!("\n── instructions: skipped, valgrind is not installed");
        return Ok(());
    }
    if !is_comparable() {
        eprintln!("\n── instructions: skipped, the figures are of x86-64 with AVX2");
        return Ok(());
    }
    let counted = count(&build()?)?;
    let compiler = compiler()?;
    let place = shell::root().join(FIGURES);
    if record {
        fs::write(&place, written(&counted, &compiler))?;
        println!("{}", fs::read_to_string(&place)?);
        return Ok(());
    }
    let (recorded, their_compiler) = read(&fs::read_to_string(&place).unwrap_or_default())?;
    let findings = compare(&recorded, &counted);
    print!("{}", table(&recorded, &counted));
    if findings.is_empty() {
        return Ok(());
    }
    if compiler != their_compiler {
        eprintln!("The figures were recorded with {their_compiler}; this is {compiler}.");
    }
    let mut grown = Vec::new();
    for finding in findings {
        match finding {
            Finding::Grown(text) => grown.push(text),
            Finding::Fallen(text) => eprintln!("{text}: record it with `{HOW}`, so that it is kept"),
        }
    }
    if grown.is_empty() {
        return Ok(());
    }
    bail!("{}. If that is the price of something better, `{HOW}` and commit {FIGURES}", grown.join("; "))
}

/// The program, in the profile of the programs that tests start, beside which it costs little to build.
fn build() -> Result<PathBuf> {
    let mut command = shell::command(&shell::cargo(), &shell::BUILD_QUICK);
    shell::must("program whose instructions are counted", &mut command)?;
    Ok(shell::target().join("quick/hotpaths"))
}

/// Valgrind's processor is the same everywhere if the machine has AVX2.
fn is_comparable() -> bool {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    cfg!(target_arch = "x86_64") && info.split_whitespace().any(|flag| flag == "avx2")
}

fn compiler() -> Result<String> {
    let output = Command::new("rustc").arg("--version").current_dir(shell::root()).output()?;
    Ok(String::from_utf8(output.stdout)?.split_whitespace().take(2).collect::<Vec<_>>().join(" "))
}

fn count(program: &Path) -> Result<Figures> {
    let output = Command::new(program).output().context("cannot start hotpaths")?;
    let list = String::from_utf8(output.stdout)?;
    let mut figures = Figures::new();
    for line in list.lines() {
        let (name, items) = line.split_once(' ').context("hotpaths lists names and numbers")?;
        let items: u32 = items.parse()?;
        let steps = (ITEMS / items).max(2);
        let runs = [steps, 2 * steps].map(|steps| start(program, name, steps));
        let [few, many] = runs.map(|run| run.and_then(finish));
        let per_item = (many? as f64 - few? as f64) / f64::from(steps * items);
        ensure!(per_item > 0.0, "{name}: callgrind counted nothing");
        figures.insert(name.to_owned(), per_item.round());
    }
    Ok(figures)
}

/// A run under callgrind, and where its result will be.
fn start(program: &Path, name: &str, steps: u32) -> Result<(Child, PathBuf)> {
    let result = program.with_file_name(format!("{name}-{steps}.callgrind"));
    let child = Command::new("valgrind")
        .args(["--tool=callgrind", "--quiet"])
        .arg(format!("--callgrind-out-file={}", result.display()))
        .arg(program)
        .args([name, &steps.to_string()])
        // The environment lies on the program's stack; it is the same for everybody.
        .env_clear()
        .env("GLIBC_TUNABLES", NO_STRING_INSTRUCTIONS)
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
        .stdin(Stdio::null())
        .spawn()
        .context("cannot start valgrind")?;
    Ok((child, result))
}

fn finish((mut child, result): (Child, PathBuf)) -> Result<u64> {
    ensure!(child.wait()?.success(), "valgrind failed");
    let text = fs::read_to_string(&result)?;
    fs::remove_file(&result)?;
    let total = text.lines().find_map(|line| line.strip_prefix("totals: "));
    Ok(total.context("callgrind wrote no total")?.trim().parse()?)
}

fn written(figures: &Figures, compiler: &str) -> String {
    let mut out = format!(
        "# Instructions for one message or record of each hot path of this crate, made by\n\
         #     {HOW}\n\
         # `cargo xtask test` fails if one grows by more than {:.0} % without a new figure here.\n\
         compiler = \"{compiler}\"\n\n[instructions]\n",
        100.0 * TOLERANCE
    );
    for (name, figure) in figures {
        let _ = writeln!(out, "{name} = {figure}");
    }
    out
}

fn read(text: &str) -> Result<(Figures, String)> {
    let mut figures = Figures::new();
    let mut compiler = String::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((name, value)) = line.split_once(" = ") else { continue };
        if name == "compiler" {
            compiler = value.trim_matches('"').to_owned();
        } else {
            let figure = value.parse().with_context(|| format!("{FIGURES}: {line}"))?;
            figures.insert(name.to_owned(), figure);
        }
    }
    Ok((figures, compiler))
}

#[derive(Debug, PartialEq)]
enum Finding {
    /// More than was recorded, or not recorded at all.
    Grown(String),
    Fallen(String),
}

fn compare(recorded: &Figures, counted: &Figures) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (name, now) in counted {
        let Some(then) = recorded.get(name) else {
            findings.push(Finding::Grown(format!("{name} takes {now} instructions and has no figure")));
            continue;
        };
        let text = || format!("{name} takes {now} instructions, recorded are {then}");
        if *now > then * (1.0 + TOLERANCE) {
            findings.push(Finding::Grown(text()));
        } else if *now < then * (1.0 - TOLERANCE) {
            findings.push(Finding::Fallen(text()));
        }
    }
    for name in recorded.keys().filter(|name| !counted.contains_key(*name)) {
        findings.push(Finding::Grown(format!("{name} has a figure and is not there any more")));
    }
    findings
}

fn table(recorded: &Figures, counted: &Figures) -> String {
    let mut out = String::new();
    for (name, now) in counted {
        let change = recorded.get(name).map(|then| format!(", {:+.1} %", 100.0 * (now / then - 1.0)));
        let _ = writeln!(out, "{name}: {now} instructions{}", change.unwrap_or_default());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(text: &str) -> Figures {
        read(text).unwrap().0
    }

    #[test]
    fn what_is_written_can_be_read() {
        let made = figures("session_per_message = 31234\nspool_append = 900");
        let (read, compiler) = read(&written(&made, "rustc 1.95.0")).unwrap();
        assert_eq!((read, compiler.as_str()), (made, "rustc 1.95.0"));
    }

    #[test]
    fn five_per_cent_are_passed_over_and_more_is_not() {
        let recorded = figures("a = 1000\nb = 1000\nc = 1000");
        assert_eq!(compare(&recorded, &figures("a = 1050\nb = 950\nc = 1000")), []);
        let found = compare(&recorded, &figures("a = 1051\nb = 949\nc = 1000"));
        assert!(matches!(&found[..], [Finding::Grown(_), Finding::Fallen(_)]), "{found:?}");
    }

    #[test]
    fn a_path_without_a_figure_and_a_figure_without_a_path_are_found() {
        let found = compare(&figures("a = 1"), &figures("b = 1"));
        assert!(matches!(&found[..], [Finding::Grown(_), Finding::Grown(_)]), "{found:?}");
    }
}
