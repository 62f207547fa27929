//! Reading a log without owning it: for checks and for people.

use crate::files::Files;
use crate::open::OpenError;
use postrider_spool::{
    Fault, Log, Lsn, Medium, Position, Recovery, Replayed, Report, SegmentFile, Settings, read_record,
};
use rustc_hash::FxHashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// What a log directory holds.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// Its files.
    pub segments: Vec<SegmentFile>,
    /// What was met on the way: damage, and where a tail was cut.
    pub report: Report,
    /// Octets of heads.
    pub head_bytes: u64,
    /// Octets of bodies.
    pub body_bytes: u64,
    /// Records whose body is not what was written.
    pub bad_bodies: Vec<(Lsn, Position)>,
}

/// Reads every record that the log in `dir` holds, oldest first, whatever a checkpoint covers. Nothing is
/// written, and no lock is taken: while a relay runs, its newest records may look torn. With `bodies`, each
/// body is read and verified too.
///
/// # Errors
/// When the directory or a file cannot be read.
pub fn inspect(
    dir: &Path,
    bodies: bool,
    mut take: impl FnMut(&Replayed<'_>),
) -> Result<Inspection, OpenError> {
    let files = Files::new(dir, 0);
    let segments = files.list().map_err(|error| OpenError::io(dir, error))?;
    let mut disk = ReadOnly::default();
    for segment in &segments {
        let path = files.path(segment.index);
        disk.files.insert(segment.index, File::open(&path).map_err(|error| OpenError::io(&path, error))?);
    }
    let mut recovery = Recovery::of_everything(&segments, &mut disk);
    let (mut head_bytes, mut body_bytes) = (0, 0);
    let mut kept = Vec::new();
    while let Some(record) = recovery.next(&mut disk) {
        head_bytes += record.head.len() as u64;
        body_bytes += u64::from(record.body_len);
        if bodies && record.body_len > 0 {
            kept.extend(record.position.map(|position| (record.lsn, position)));
        }
        take(&record);
    }
    let report = recovery.report().clone();
    // The log knows from the headers which file holds which filling.
    let log = Log::recovered(Settings::default(), recovery.finish());
    let fillings: FxHashMap<_, _> = log.fillings().collect();
    let bad_bodies = kept
        .into_iter()
        .filter(|(_, position)| {
            let Some(segment) = fillings.get(&position.generation()) else { return true };
            read_record(&mut disk, *segment, log.salt(), *position, true).is_err()
        })
        .collect();
    Ok(Inspection { segments, report, head_bytes, body_bytes, bad_bodies })
}

#[derive(Default)]
struct ReadOnly {
    files: FxHashMap<u32, File>,
}

impl Medium for ReadOnly {
    fn read_at(&mut self, segment: u32, offset: u32, buffer: &mut [u8]) -> Result<(), Fault> {
        let file = self.files.get(&segment).ok_or(Fault::Io)?;
        let mut read = 0;
        while read < buffer.len() {
            match file.read_at(&mut buffer[read..], u64::from(offset) + read as u64) {
                Ok(0) => break,
                Ok(more) => read += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(Fault::Io),
            }
        }
        buffer[read..].fill(0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Committer, open};
    use postrider_spool::{Append, Body, Completion, Ticket};

    /// A log with two kept records of this body.
    fn written(dir: &Path, body: &'static [u8]) {
        let recovered = open(dir, 1 << 20, 7).unwrap().replay(|_| {}).unwrap();
        let (sender, woken) = std::sync::mpsc::channel();
        let committer =
            Committer::start(recovered, vec![Box::new(move || sender.send(()).unwrap_or(()))]).unwrap();
        // The second one proves that the first was synced: damage to it is no torn tail.
        for ticket in [1, 2] {
            let append = Append {
                ticket: Ticket(ticket),
                kind: 1,
                head: b"envelope".to_vec(),
                body: Body::from_iter([bytes::Bytes::from_static(body)]),
                urgent: true,
                ..Append::default()
            };
            committer.handle().submit(&mut vec![append]);
            let mut news = Completion::default();
            while news.durable.is_none() {
                woken.recv().unwrap();
                committer.handle().take_news(0, &mut news);
            }
        }
        committer.stop();
    }

    #[test]
    fn a_log_is_read_without_being_changed_and_a_flipped_bit_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let body = b"the quick brown fox";
        written(dir.path(), body);
        let segment = dir.path().join("segment-000000");
        let before = std::fs::read(&segment).unwrap();
        let mut heads = Vec::new();
        let found = inspect(dir.path(), true, |record| heads.push(record.head.to_vec())).unwrap();
        assert_eq!(heads, [b"envelope".to_vec(), b"envelope".to_vec()]);
        assert_eq!((found.report.damages_count, found.bad_bodies.len(), found.body_bytes), (0, 0, 38));
        assert_eq!(std::fs::read(&segment).unwrap(), before);

        let mut bytes = before;
        let at = bytes.windows(body.len()).position(|window| window == body).unwrap();
        bytes[at] ^= 1;
        std::fs::write(&segment, bytes).unwrap();
        assert_eq!(inspect(dir.path(), false, |_| {}).unwrap().bad_bodies.len(), 0);
        assert_eq!(inspect(dir.path(), true, |_| {}).unwrap().bad_bodies.len(), 1);
    }
}
