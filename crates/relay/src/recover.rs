//! From checkpoint and log to the shards: every record goes to whom it concerns.

use postrider_disk::{Manifest, OpenError, Opened, Recovered};
use postrider_engine::{Owner, Shard, owner};
use postrider_model::Timestamp;

/// Makes shards and folds the past into them; says which bodies live.
///
/// # Errors
/// When the log cannot be read.
pub(crate) fn recover(
    opened: Opened,
    make: impl Fn() -> Vec<Shard>,
    now: Timestamp,
) -> Result<(Recovered, Vec<Shard>), OpenError> {
    let mut shards = make();
    while let Some(manifest) = opened.checkpoint() {
        match load(&opened, &manifest, &mut shards) {
            Ok(()) => break,
            Err(error) => {
                tracing::error!(number = manifest.number, %error, "a checkpoint is damaged; the one before it serves");
                opened.discard_checkpoint();
                shards = make();
            }
        }
    }
    let recovered = replay(opened, &mut shards, now)?;
    Ok((recovered, shards))
}

fn load(opened: &Opened, manifest: &Manifest, shards: &mut [Shard]) -> Result<(), String> {
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
                    for part in parts {
                        let content =
                            opened.checkpoints().read_part(part).map_err(|error| error.to_string())?;
                        shard.load_part(&content).map_err(|error| format!("{}: {error}", part.name))?;
                    }
                    Ok::<(), String>(())
                })
            })
            .collect();
        loading
            .into_iter()
            .try_for_each(|thread| thread.join().map_err(|_| "loading it panicked".to_owned())?)
    })
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
