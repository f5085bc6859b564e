//! Does the receive queue keep each byte that came first, once and in order, as a plain array of bytes would?

use proptest::prelude::*;

use super::*;
use crate::buffer::{Chunk, HeapBuffer};
use crate::seq::SeqNumber;

const BEFORE_WRAP: u32 = 20_000;

#[derive(Clone, Debug)]
enum Step {
    /// A segment so far from the next expected byte, of so many bytes.
    Segment {
        ahead: i32,
        len: u16,
    },
    Pop,
    Consume(u32),
    Renege,
}

#[derive(Default)]
struct Model {
    /// What arrived first at each offset of the stream.
    bytes: Vec<Option<u8>>,
    expected: usize,
    read: usize,
    /// Starts of segments by their arrival, the last one last; where a run changed last.
    touched: Vec<usize>,
}

fn seq(offset: usize) -> SeqNumber {
    SeqNumber(u32::MAX - BEFORE_WRAP) + offset as u32
}

impl Model {
    /// The first part that was there.
    fn segment(&mut self, start: usize, bytes: &[u8]) -> (Option<(usize, usize)>, bool) {
        let end = start + bytes.len();
        if self.bytes.len() < end {
            self.bytes.resize(end, None);
        }
        let (mut duplicate, mut is_stored) = (None, false);
        let mut is_open = false;
        for (offset, &byte) in (start..end).zip(bytes) {
            let is_there = offset < self.expected || self.bytes[offset].is_some();
            // One run, or what was expected before, ends where the next begins.
            let is_same_run = is_open && offset != self.expected;
            match (is_there, duplicate) {
                (true, None) => {
                    duplicate = Some((offset, offset + 1));
                    is_open = true;
                }
                (true, Some((first, _))) if is_same_run => duplicate = Some((first, offset + 1)),
                _ => is_open = false,
            }
            if !is_there {
                self.bytes[offset] = Some(byte);
                is_stored = true;
            }
        }
        self.touched.push(start.max(self.expected));
        self.touched.push(end - 1);
        (duplicate, is_stored)
    }

    fn advance(&mut self) {
        while self.bytes.get(self.expected).is_some_and(Option::is_some) {
            self.expected += 1;
        }
    }

    fn runs(&self) -> Vec<(usize, usize)> {
        let mut runs: Vec<(usize, usize)> = Vec::new();
        for offset in self.expected..self.bytes.len() {
            if self.bytes[offset].is_none() {
                continue;
            }
            match runs.last_mut() {
                Some((_, end)) if *end == offset => *end += 1,
                _ => runs.push((offset, offset + 1)),
            }
        }
        runs
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let ahead = prop_oneof![3 => Just(0_i32), 3 => 0_i32..8_000, 2 => -600_i32..600];
    let len = prop_oneof![Just(100_u16), 0_u16..50, 1_u16..3_000];
    let step = prop_oneof![
        12 => (ahead, len).prop_map(|(ahead, len)| Step::Segment { ahead: ahead / 50 * 50, len }),
        3 => Just(Step::Pop),
        2 => (0_u32..2_000).prop_map(Step::Consume),
        1 => prop::bool::weighted(0.2).prop_map(|is_it| if is_it { Step::Renege } else { Step::Pop }),
    ];
    prop::collection::vec(step, 1..300)
}

/// Two runs that touch are one in the queue as in the model, so blocks can be compared as sets; the first is the newest.
fn check_blocks(queue: &ReceiveQueue, nodes: &Nodes<HeapBuffer>, model: &Model, newest: Option<usize>) {
    let runs: Vec<_> = model.runs().iter().map(|&(start, end)| (seq(start), seq(end))).collect();
    let blocks = queue.sack_blocks(nodes, 4);
    assert_eq!(blocks.len(), runs.len().min(4));
    assert!(blocks.iter().all(|block| runs.contains(block)), "{blocks:?} of {runs:?}");
    let waiting: u32 = runs.iter().map(|(start, end)| end.since(*start)).sum();
    assert_eq!(queue.has_out_of_order(), waiting > 0);
    if let (Some(newest), Some(&(start, end))) = (newest, blocks.first())
        && newest >= model.expected
    {
        let last = seq(newest);
        assert!(!last.is_before(start) && last.is_before(end), "{last:?} is not in the first of {blocks:?}");
    }
    assert_eq!(queue.sack_blocks(nodes, 1).first(), blocks.first());
    assert!(queue.sack_blocks(nodes, 0).is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn the_first_arrival_of_each_byte_is_read_once_and_in_order(steps in steps()) {
        let mut nodes = Nodes::new(100_000);
        let mut queue = ReceiveQueue::new();
        let mut model = Model::default();
        for (count, step) in steps.iter().enumerate() {
            let mut newest = None;
            match *step {
                Step::Segment { ahead, len } => {
                    let start = model.expected.saturating_add_signed(ahead as isize);
                    // Each arrival has bytes of its own, so that it shows which one is kept.
                    let bytes = vec![count as u8; usize::from(len)];
                    let chunk = Chunk::whole(HeapBuffer::from(&bytes[..]));
                    if start == model.expected && (count % 2 == 0 || !queue.has_out_of_order()) {
                        // Also over what waits, which the caller avoids: then the newer bytes are read.
                        queue.append(&mut nodes, chunk).unwrap();
                        let end = start + bytes.len();
                        model.bytes.resize(model.bytes.len().max(end), None);
                        model.bytes[start..end].fill(Some(count as u8));
                        model.expected = end;
                    } else if len == 0 {
                        let inserted = queue.insert(&mut nodes, seq(start), chunk, seq(model.expected));
                        assert_eq!(inserted, Inserted::default());
                    } else {
                        let (duplicate, stored) = model.segment(start, &bytes);
                        let inserted = queue.insert(&mut nodes, seq(start), chunk, seq(model.expected));
                        assert_eq!(inserted.stored, stored);
                        let wanted = duplicate.map(|(start, end)| (seq(start), seq(end)));
                        assert_eq!(inserted.duplicate, wanted);
                        newest = Some(start + bytes.len() - 1);
                    }
                    let expected = queue.advance(&mut nodes, seq(model.expected));
                    model.advance();
                    assert_eq!(expected, seq(model.expected));
                }
                Step::Pop => {
                    let peeked = queue.peek(&nodes).map(<[u8]>::to_vec);
                    let chunk = queue.pop(&mut nodes);
                    assert_eq!(chunk.as_ref().map(|chunk| chunk.bytes().to_vec()), peeked);
                    let bytes: Vec<_> = chunk.iter().flat_map(|chunk| chunk.bytes().iter().copied().map(Some)).collect();
                    let end = model.read + bytes.len();
                    assert!(end <= model.expected);
                    assert_eq!(&model.bytes[model.read..end], &bytes[..]);
                    model.read = end;
                }
                Step::Consume(bytes) => {
                    let ready = model.expected - model.read;
                    assert_eq!(queue.consume(&mut nodes, bytes) as usize, ready.min(bytes as usize));
                    model.read += ready.min(bytes as usize);
                }
                Step::Renege => {
                    queue.drop_out_of_order(&mut nodes);
                    model.bytes.truncate(model.expected);
                }
            }
            assert_eq!(queue.len() as usize, model.expected - model.read);
            let ready: Vec<_> = queue.pieces(&nodes).flatten().copied().map(Some).collect();
            assert_eq!(&ready[..], &model.bytes[model.read..model.expected]);
            let kept = model.runs().iter().map(|(start, end)| end - start).sum::<usize>();
            assert!(nodes.pinned() >= (queue.len() as usize + kept) as u64);
            check_blocks(&queue, &nodes, &model, newest);
        }
        queue.clear(&mut nodes);
        assert_eq!((nodes.used(), nodes.pinned()), (0, 0));
    }
}
