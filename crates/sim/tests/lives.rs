//! Whole lives, each from its seed. `POSTRIDER_TEST_LONG=1` lives a thousand, ten thousand crashes in all.
//! One life by hand: `cargo run -p postrider-sim -- SEED`.

use postrider_sim::{Length, live};

fn lives(first: u64) {
    let count = if std::env::var_os("POSTRIDER_TEST_LONG").is_some() { 500 } else { 12 };
    let mut compared = 0;
    let mut checkpoints = 0;
    let mut late_loads = 0;
    for seed in first..first + count {
        let tally = live(seed, &Length::default());
        assert_eq!(tally.crashes, 10, "seed {seed}");
        compared += tally.compared;
        checkpoints += tally.checkpoints;
        late_loads += tally.late_loads;
    }
    assert!(compared > 0 && checkpoints > 0 && late_loads > 0, "the lives were too quiet to show anything");
}

#[test]
fn promises_hold_through_crashes_in_even_thousands() {
    lives(2_000);
}

#[test]
fn promises_hold_through_crashes_in_odd_thousands() {
    lives(3_001);
}

#[test]
fn the_same_seed_is_the_same_life() {
    let length = Length { crashes: 2, messages: 60 };
    assert_eq!(live(76, &length), live(76, &length));
}
