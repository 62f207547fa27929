//! From checkpoint and log to the shards: every record goes to whom it concerns.
//!
//! What is due and what concerns all is loaded before the log behind the checkpoint is replayed; the rest is left
//! to the [`Loader`](crate::loader::Loader), so that the first delivery does not wait for what is due in hours.

use crate::loader::Late;
use postrider_disk::{Manifest, OpenError, Opened, Part, Recovered};
use postrider_engine::{Owner, PartKind, Shard, owner};
use postrider_model::Timestamp;
use postrider_queue::Bucket;

/// Octets of parts with recipients that are loaded before the start for each shard, though at least one part
/// that is due.
const EARLY_BYTES: u64 = 2 << 20;

/// Makes shards and folds the past into them, but for the parts that are to be loaded later; says which
/// bodies live.
///
/// # Errors
/// When the log cannot be read.
pub(crate) fn recover(
    opened: Opened,
    make: impl Fn() -> Vec<Shard>,
    now: Timestamp,
) -> Result<(Recovered, Vec<Shard>, Option<Late>), OpenError> {
    let mut shards = make();
    let mut late = None;
    while let Some(manifest) = opened.checkpoint() {
        match load(&opened, &manifest, &mut shards, now) {
            Ok(rest) => {
                late = Some(rest).filter(|late| late.0.iter().any(|parts| !parts.is_empty()));
                break;
            }
            Err(error) => {
                tracing::error!(number = manifest.number, %error, "a checkpoint is damaged; the one before it serves");
                opened.discard_checkpoint();
                shards = make();
            }
        }
    }
    if late.is_some() {
        shards.iter_mut().for_each(Shard::expect_parts);
    }
    let mut recovered = replay(opened, &mut shards, now)?;
    if late.is_some() {
        recovered.settle_later();
    }
    Ok((recovered, shards, late))
}

/// Loads what the start waits for; gives the rest.
fn load(opened: &Opened, manifest: &Manifest, shards: &mut [Shard], now: Timestamp) -> Result<Late, String> {
    let same_shards = manifest.head == u16::try_from(shards.len()).unwrap_or(u16::MAX).to_le_bytes();
    std::thread::scope(|scope| {
        let loading: Vec<_> = shards
            .iter_mut()
            .enumerate()
            .map(|(index, shard)| {
                scope.spawn(move || {
                    let own = format!("s{index}-");
                    let parts =
                        manifest.parts.iter().filter(|part| !same_shards || part.name.starts_with(&own));
                    let (early, late) = divide(parts, now);
                    for part in early {
                        let content =
                            opened.checkpoints().read_part(part).map_err(|error| error.to_string())?;
                        shard.load_part(&content).map_err(|error| format!("{}: {error}", part.name))?;
                    }
                    Ok::<_, String>(late.into_iter().cloned().collect())
                })
            })
            .collect();
        let late: Result<_, String> = loading
            .into_iter()
            .map(|thread| thread.join().map_err(|_| "loading it panicked".to_owned())?)
            .collect();
        late.map(Late)
    })
}

/// What is loaded before the start, and the rest in the order in which it is due.
fn divide<'a>(parts: impl Iterator<Item = &'a Part>, now: Timestamp) -> (Vec<&'a Part>, Vec<&'a Part>) {
    let mut parts: Vec<_> = parts.map(|part| (PartKind::of(&part.name), part)).collect();
    parts.sort_by(|(a, part), (b, other)| a.cmp(b).then_with(|| part.version.cmp(&other.version)));
    let (mut bytes, mut due) = (0, 0);
    let today = Bucket::of(now);
    let (early, late): (Vec<_>, Vec<_>) = parts.into_iter().partition(|(kind, part)| {
        let is_due = match kind {
            PartKind::State => return true,
            PartKind::Strays => false,
            PartKind::Bucket(bucket) => *bucket <= today,
        };
        bytes += part.length;
        due += u32::from(is_due);
        bytes <= EARLY_BYTES || (is_due && due == 1)
    });
    let plain = |parts: Vec<(PartKind, &'a Part)>| parts.into_iter().map(|(_, part)| part).collect();
    (plain(early), plain(late))
}

fn replay(opened: Opened, shards: &mut [Shard], now: Timestamp) -> Result<Recovered, OpenError> {
    let count = u16::try_from(shards.len()).unwrap_or(u16::MAX);
    let (mut records, mut damaged) = (0u64, 0u64);
    let mut recovered = opened.replay(|record| {
        records += 1;
        let fold = |shard: &mut Shard| shard.replay(record.kind, record.head, record.position, record.copied);
        let folded = match owner(record.kind, record.head, count) {
            Ok(Owner::Shard(shard)) => fold(&mut shards[usize::from(shard)]),
            Ok(Owner::All) => shards.iter_mut().try_for_each(fold),
            Err(error) => Err(error),
        };
        if let Err(error) = folded {
            damaged += 1;
            tracing::error!(%error, lsn = record.lsn.0, "a record cannot be understood and is set aside");
        }
    })?;
    let mut live = Vec::new();
    for shard in shards.iter_mut() {
        shard.replayed(now, &mut live);
    }
    for position in live {
        recovered.retain(position);
    }
    tracing::info!(records, damaged, "the log is replayed");
    Ok(recovered)
}
