//! `hotpaths` lists the paths; `hotpaths PATH STEPS` goes one, for callgrind to watch.

use anyhow::{Context, Result, bail};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match &args[..] {
        [] => hotpaths::ALL.iter().for_each(|path| println!("{} {}", path.name, path.items)),
        [name, steps] => {
            let path = hotpaths::ALL.iter().find(|path| path.name == *name);
            let steps = steps.parse().context("the number of steps")?;
            (path.with_context(|| format!("there is no path {name}"))?.run)(steps);
        }
        _ => bail!("usage: hotpaths [PATH STEPS]"),
    }
    Ok(())
}
