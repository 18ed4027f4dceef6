//! Frames on a byte stream that may start in the middle of one.

/// First bytes of every frame.
pub const MAGIC: [u8; 4] = *b"DCA1";
/// The longest content of a frame, in bytes.
pub const FRAME_LEN_MAX: usize = 512 * 1024;
const HEAD: usize = 8;

/// What is wrong with the stream. The reader stays usable: it looks for the next magic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Bytes that belong to no frame were dropped.
    #[error("{len} bytes that belong to no frame")]
    Garbage {
        /// How many.
        len: usize,
    },
    /// A frame that claims to be longer than [`FRAME_LEN_MAX`].
    #[error("a frame of {len} bytes (at most {FRAME_LEN_MAX})")]
    TooLong {
        /// Bytes claimed.
        len: u32,
    },
}

/// `content` as one frame.
///
/// # Panics
/// When `content` is longer than [`FRAME_LEN_MAX`]; every message of [`super`] is shorter.
pub fn frame(content: &[u8]) -> Vec<u8> {
    assert!(
        content.len() <= FRAME_LEN_MAX,
        "messages of the agent are bounded"
    );
    let mut frame = Vec::with_capacity(HEAD + content.len());
    frame.extend(MAGIC);
    frame.extend((content.len() as u32).to_be_bytes());
    frame.extend(content);
    frame
}

/// Takes bytes as they come, gives frames. Holds at most one frame and the bytes of one `push`.
#[derive(Debug, Default)]
pub struct Deframer {
    buffer: Vec<u8>,
}

impl Deframer {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds what was read. Call [`Deframer::next_frame`] until it gives `None` before the next push.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame's content, or what was skipped on the way to it; `None`: more bytes are needed.
    pub fn next_frame(&mut self) -> Option<Result<Vec<u8>, FrameError>> {
        let start = self
            .buffer
            .windows(MAGIC.len())
            .position(|window| window == MAGIC);
        // Without a magic, the last bytes may still be the beginning of one.
        let garbage = start.unwrap_or_else(|| {
            let kept = (1..MAGIC.len())
                .rev()
                .find(|n| self.buffer.ends_with(&MAGIC[..*n]))
                .unwrap_or(0);
            self.buffer.len() - kept
        });
        if garbage > 0 {
            self.buffer.drain(..garbage);
            return Some(Err(FrameError::Garbage { len: garbage }));
        }
        let head = self.buffer.get(MAGIC.len()..HEAD)?;
        let len = u32::from_be_bytes(head.try_into().ok()?);
        if len as usize > FRAME_LEN_MAX {
            self.buffer.drain(..MAGIC.len());
            return Some(Err(FrameError::TooLong { len }));
        }
        let end = HEAD + len as usize;
        let content = self.buffer.get(HEAD..end)?.to_vec();
        self.buffer.drain(..end);
        Some(Ok(content))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(deframer: &mut Deframer) -> Vec<Result<Vec<u8>, FrameError>> {
        std::iter::from_fn(|| deframer.next_frame()).collect()
    }

    #[test]
    fn a_frame_arrives_whole_however_it_is_cut() {
        let stream = [frame(b"one"), frame(b""), frame(&[b'D'; 1000])].concat();
        for step in [1, 2, 3, 7, 8, 500, stream.len()] {
            let mut deframer = Deframer::new();
            let mut got = Vec::new();
            for piece in stream.chunks(step) {
                deframer.push(piece);
                got.extend(read_all(&mut deframer));
            }
            assert_eq!(
                got,
                [Ok(b"one".to_vec()), Ok(vec![]), Ok(vec![b'D'; 1000])],
                "cut every {step} bytes"
            );
        }
    }

    #[test]
    fn garbage_and_absurd_lengths_are_named_and_the_next_frame_is_found() {
        let mut deframer = Deframer::new();
        deframer.push(b"tail of an old answer");
        deframer.push(&[b"DCA1".as_slice(), &(1u32 << 30).to_be_bytes(), &frame(b"new")].concat());
        let got = read_all(&mut deframer);
        assert_eq!(
            got,
            [
                Err(FrameError::Garbage { len: 21 }),
                Err(FrameError::TooLong { len: 1 << 30 }),
                Err(FrameError::Garbage { len: 4 }),
                Ok(b"new".to_vec())
            ]
        );
    }

    #[test]
    fn a_magic_split_over_two_reads_is_kept() {
        let mut deframer = Deframer::new();
        deframer.push(b"xxDC");
        assert_eq!(read_all(&mut deframer), [Err(FrameError::Garbage { len: 2 })]);
        deframer.push(&frame(b"y")[2..]);
        assert_eq!(read_all(&mut deframer), [Ok(b"y".to_vec())]);
    }

    #[test]
    fn the_buffer_stays_bounded_under_garbage() {
        let mut deframer = Deframer::new();
        for _ in 0..100 {
            deframer.push(&[0x55; 4096]);
            read_all(&mut deframer);
            assert!(deframer.buffer.len() < 4);
        }
    }
}
