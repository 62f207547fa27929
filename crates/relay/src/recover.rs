//! From the log to the shards: every record goes to whom it concerns.

use postrider_disk::{OpenError, Opened, Recovered};
use postrider_engine::{Owner, Shard, owner};
use postrider_model::Timestamp;

/// Folds the past into the shards and says which bodies live.
///
/// # Errors
/// When the log cannot be read.
pub(crate) fn replay(opened: Opened, shards: &mut [Shard], now: Timestamp) -> Result<Recovered, OpenError> {
    let count = u16::try_from(shards.len()).unwrap_or(u16::MAX);
    let mut records = 0u64;
    let mut damaged = 0u64;
    let mut recovery = opened.replay(|record| {
        records += 1;
        let folded = match owner(record.kind, record.head, count) {
            Ok(Owner::Shard(shard)) => {
                shards[usize::from(shard)].replay(record.kind, record.head, record.position, record.copied)
            }
            Ok(Owner::All) => shards
                .iter_mut()
                .try_for_each(|shard| shard.replay(record.kind, record.head, record.position, record.copied)),
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
        recovery.retain(position);
    }
    tracing::info!(records, damaged, "the log is replayed");
    Ok(recovery)
}
