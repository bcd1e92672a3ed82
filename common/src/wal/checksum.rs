//! The running checksum of SQLite's WAL: two 32-bit sums over pairs of words, in the byte order the file header names.

/// The running checksum. Feeding is incremental; every piece must be a multiple of 8 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Checksummer {
    big_endian: bool,
    sums: [u32; 2],
}

impl Checksummer {
    /// Goes on from `sums`; a new file starts from `[0, 0]`. `big_endian` is the byte order of the words it reads.
    pub const fn new(big_endian: bool, sums: [u32; 2]) -> Checksummer {
        Checksummer { big_endian, sums }
    }

    /// Adds bytes; panics when their number is no multiple of 8 (headers and pages always are).
    pub fn update(&mut self, bytes: &[u8]) {
        self.sums = if self.big_endian {
            sum(self.sums, bytes, u32::from_be_bytes)
        } else {
            sum(self.sums, bytes, u32::from_le_bytes)
        };
    }

    /// The checksum so far.
    pub const fn sums(self) -> [u32; 2] {
        self.sums
    }

    /// Byte order of the words.
    pub const fn big_endian(self) -> bool {
        self.big_endian
    }
}

/// Eight bytes a step. Each of the two sums needs only the other one's last value, so a step costs two additions of
/// latency; `word` is inlined to a load or a load and a swap.
#[inline(always)]
fn sum([mut a, mut b]: [u32; 2], bytes: &[u8], word: impl Fn([u8; 4]) -> u32) -> [u32; 2] {
    let (pairs, rest) = bytes.as_chunks::<8>();
    assert!(rest.is_empty(), "BUG: the wal checksum takes multiples of 8 bytes, not {}", bytes.len());
    for &[p, q, r, s, t, u, v, w] in pairs {
        a = a.wrapping_add(word([p, q, r, s])).wrapping_add(b);
        b = b.wrapping_add(word([t, u, v, w])).wrapping_add(a);
    }
    [a, b]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_orders_follow_the_definition() {
        let bytes = [0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4];
        let mut big = Checksummer::new(true, [10, 20]);
        big.update(&bytes);
        // 10+1+20=31, 20+2+31=53, 31+3+53=87, 53+4+87=144
        assert_eq!(big.sums(), [87, 144]);
        let mut swapped = bytes;
        swapped.chunks_mut(4).for_each(<[u8]>::reverse);
        let mut little = Checksummer::new(false, [10, 20]);
        little.update(&swapped[..8]);
        little.update(&swapped[8..]);
        assert_eq!(little.sums(), big.sums());
    }
}
