//! What a record costs at start: found, checked and given, its body skipped.

use crate::Path;
use crate::spool::{Memory, append_batch};
use bytes::Bytes;
use postrider_spool::{Log, Lsn, SegmentFile, Settings};
use std::hint::black_box;

const SEGMENT_SIZE_BYTES: u32 = 16 << 20;
const BATCHES: u32 = 50;
/// A batch is of twenty messages and as many outcomes.
const RECORDS: u32 = BATCHES * 40;

/// A log of messages of 4 KiB and outcomes.
pub struct Recovery {
    disk: Memory,
    files: Vec<SegmentFile>,
}

impl Path for Recovery {
    const NAME: &'static str = "recovery_scan";
    const ITEMS: u32 = RECORDS;

    fn ready() -> Self {
        let settings = Settings { segment_size_bytes: SEGMENT_SIZE_BYTES, ..Settings::default() };
        let mut log = Log::new(settings, 7);
        let (mut disk, mut ticket) = (Memory { keeps: true, ..Memory::default() }, 0);
        let body = Bytes::from(vec![b'x'; 4096]);
        for _ in 0..BATCHES {
            append_batch(&mut log, &mut ticket, &body);
            disk.run(&mut log);
        }
        let files = (0..).zip(&disk.files).map(|(index, _)| SegmentFile { index, size: SEGMENT_SIZE_BYTES });
        Recovery { files: files.collect(), disk }
    }

    fn step(&mut self) {
        let mut recovery = postrider_spool::Recovery::new(&self.files, &mut self.disk, Lsn(1), 7);
        let mut records = 0;
        while let Some(record) = recovery.next(&mut self.disk) {
            records += 1;
            black_box(record);
        }
        assert_eq!(records, RECORDS, "a scan finds every record");
    }
}
