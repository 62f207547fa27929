//! `cargo run -p postrider-sim -- SEED [SEED]`: lives one seed, or all from the first to before the second.

use postrider_sim::{Length, live};

fn main() {
    let seeds: Vec<u64> = std::env::args().skip(1).filter_map(|seed| seed.parse().ok()).collect();
    let (from, to) = match seeds[..] {
        [seed] => (seed, seed + 1),
        [from, to] => (from, to),
        _ => {
            eprintln!("usage: postrider-sim SEED [SEED]");
            std::process::exit(2);
        }
    };
    for seed in from..to {
        let tally = live(seed, &Length::default());
        println!("seed {seed}: {tally:?}");
    }
}
